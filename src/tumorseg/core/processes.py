"""Processes that can be told from later ones of the same number, and groups of them."""

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Process:
    """A process that can be told from a later one of the same number.

    Attributes:
        pid: Its number.
        host: The name of its machine or container.
        boot: The machine's boot.
        began: When it began, in ticks since that boot; empty where it has ended.
    """

    pid: int
    host: str
    boot: str
    began: str

    @classmethod
    def tagged(cls, tag: str) -> "Process | None":
        """The process that a `tag` names; None where it is a word of another kind."""
        match tag.split(":"):
            case ["process", host, boot, pid, began] if pid.isdigit():
                return cls(int(pid), host, boot, began)
        return None

    @property
    def tag(self) -> str:
        """It in one word."""
        return f"process:{self.host}:{self.boot}:{self.pid}:{self.began}"

    def lives(self) -> bool | None:
        """Whether it runs; None where this host cannot know."""
        if self.host != socket.gethostname():
            return None
        return self.boot == _boot() and self.began == _began(self.pid) != ""


def process(pid: int | None = None) -> Process:
    """A process of this host, by default this one."""
    pid = pid or os.getpid()
    return Process(pid, socket.gethostname(), _boot(), _began(pid))


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _began(pid: int) -> str:
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]  # a zombie is dead


def end_group(leader: int) -> None:
    """Ends all processes of a group, kindly first."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(leader, kind)
        deadline = time.monotonic() + GRACE_SECONDS
        while members(leader) and time.monotonic() < deadline:
            time.sleep(0.1)


def members(group: int) -> list[int]:
    """The processes of a group that run."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    found.append(int(folder.name))
    return found
