"""A server process that can be stopped, killed, and started again."""

import pwd
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tumorseg.core.errors import InputError

PATIENCE_SECONDS = 120
STOP_SECONDS = 20


@dataclass
class Server:
    """One server process, with the processes that it starts.

    Attributes:
        name: For messages and the log's name.
        command: What to run.
        log: Receives its output.
        ready: Whether it answers.
        environment: Its whole environment.
        user: The user to run it as; None for this process's user.
        gentle: The signal that ends it in order.
    """

    name: str
    command: list[str]
    log: Path
    ready: Callable[[], bool]
    environment: dict[str, str]
    user: str | None = None
    gentle: signal.Signals = signal.SIGTERM
    process: psutil.Popen | None = field(default=None, init=False)

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
            InputError: It ended, or did not answer in time.
        """
        with self.log.open("ab") as output:
            self.process = psutil.Popen(
                self.command,
                cwd=self.log.parent,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.user,
                group=None if self.user is None else pwd.getpwnam(self.user).pw_gid,
                extra_groups=None if self.user is None else [],
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                last = self.log.read_text(errors="replace")[-1000:].strip()
                raise InputError(f"{self.name} did not start: {last}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Kills it and all that it started, as a crash would."""
        self._end(signal.SIGKILL, 0)

    def stop(self) -> None:
        """Ends it in order; kills what has not ended in time."""
        self._end(self.gentle, STOP_SECONDS)

    def _end(self, how: signal.Signals, patience: float) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            family = [self.process, *self.process.children(recursive=True)]
            self.process.send_signal(how)
            _, alive = psutil.wait_procs(family, patience)
            for one in alive:
                one.kill()
            psutil.wait_procs(alive)
        self.process = None
