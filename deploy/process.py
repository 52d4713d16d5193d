"""A server process that can be stopped, killed, and started again."""

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tumorseg.core.errors import InputError

PATIENCE_SECONDS = 120


@dataclass
class Server:
    """One server process, with the processes that it starts.

    Attributes:
        name: For messages and the log's name.
        command: What to run.
        log: Receives its output.
        ready: Whether it answers.
        environment: Its whole environment.
        user: Whom to run it as; None for this process's user.
        gentle: The signal that ends it in order.
    """

    name: str
    command: list[str]
    log: Path
    ready: Callable[[], bool]
    environment: dict[str, str]
    user: str | None = None
    gentle: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
            InputError: It ended, or did not answer in time.
        """
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.log.parent,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.user,
                group=None if self.user is None else pwd.getpwnam(self.user).pw_gid,
                extra_groups=None if self.user is None else [],
                start_new_session=True,  # a group of its own, so that all of it can be killed
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                last = self.log.read_text(errors="replace")[-1000:].strip()
                raise InputError(f"{self.name} did not start; its last words: {last}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Kills it and all that it started, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it in order."""
        self._end(self.gentle)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        if how is not signal.SIGKILL and self.process.poll() is None:
            self.process.send_signal(how)
            with suppress(subprocess.TimeoutExpired):  # what follows ends it
                self.process.wait(20)
        with suppress(ProcessLookupError):  # none is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def __enter__(self) -> "Server":
        """Starts it."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops it."""
        self.stop()
