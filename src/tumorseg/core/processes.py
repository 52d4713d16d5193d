"""Processes that may outlive the command that started them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

GRACE_SECONDS = 10.0
VARIABLE = "TUMORSEG_STARTED_FOR"  # all children of a process inherit it


def marked(purpose: str) -> list[psutil.Process]:
    """The running processes of this user whose environment has `VARIABLE` set to `purpose`."""
    running = psutil.process_iter(["environ"])
    return [one for one in running if (one.info["environ"] or {}).get(VARIABLE) == purpose]


def end_marked(purpose: str) -> None:
    """Ends the `marked` processes: SIGTERM, and SIGKILL after `GRACE_SECONDS`."""
    left = marked(purpose)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                end(process)
        _, left = psutil.wait_procs(left, GRACE_SECONDS)


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts `python -m command…`, its output in a log file, whose path is also its mark."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches only the command, which then stops this one
            env=os.environ | {VARIABLE: str(log.resolve())},
        )


@contextmanager
def background(command: list[str], log: Path) -> Iterator[None]:
    """Runs `python -m command…` until the context ends, its output in a log file."""
    process = start(command, log)
    try:
        yield
    finally:
        end_marked(str(log.resolve()))
        process.wait()


def tag() -> str:
    """The name of this process for flow runs: `process:HOST:PID:START_SECONDS`."""
    process = psutil.Process()
    return f"process:{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"


def is_dead(word: str) -> bool:
    """Whether a word is the `tag` of a process of this host that has ended."""
    match word.split(":"):
        case ["process", host, pid, started] if host == socket.gethostname():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                # Another process may have the number by now; clocks may be set by a second.
                same = abs(process.create_time() - float(started)) <= 1
                return not same or process.status() == psutil.STATUS_ZOMBIE
            return True
    return False
