"""The end of the process: what was accepted is answered, and nothing more is accepted."""

import asyncio
import contextlib
import select
import signal
import socket
import time
from types import FrameType

import uvicorn

from tumorseg.serving.operations import State

_STEP_SECONDS = 0.05
_READ_SECONDS = 1.0  # in which a request is read whose connection was just accepted


class Shutdown:
    """Takes SIGTERM and SIGINT before uvicorn does, and passes them on when all is accepted.

    Left alone, uvicorn closes connections whose request it has not read yet, and the listening
    socket stays open in BentoML's parent process: the kernel goes on accepting connections that
    are never answered.

    Args:
        state: Gets `stopping`, whereupon every answer closes its connection.
        seconds: How long uvicorn may then wait for answers that nobody reads.
    """

    def __init__(self, state: State, seconds: float) -> None:
        self._state = state
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Replaces uvicorn's signal handlers; does nothing where no uvicorn runs."""
        for number in (signal.SIGTERM, signal.SIGINT):
            server = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(server, uvicorn.Server):
                self._replace(server, number, asyncio.get_running_loop())

    def _replace(
        self, server: uvicorn.Server, number: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        def begin() -> None:
            self._task = loop.create_task(self._drain(server, number))

        def handle(signal_number: int, frame: FrameType | None) -> None:
            if self._state.stopping:
                if signal_number == signal.SIGINT:  # somebody at a terminal is impatient
                    server.handle_exit(signal_number, frame)
                return
            self._state.stopping = True
            loop.call_soon_threadsafe(begin)

        signal.signal(number, handle)

    async def _drain(self, server: uvicorn.Server, number: int) -> None:
        try:
            await self._close(server)
        finally:  # whatever goes wrong there, the process ends
            server.config.timeout_graceful_shutdown = int(self._seconds)
            server.handle_exit(number, None)

    async def _close(self, server: uvicorn.Server) -> None:
        """Refuses new connections; returns when no open one can bring a request any more."""
        await _refuse_connections(server)
        await asyncio.sleep(_READ_SECONDS)
        # An answer given before the signal told its client how long the connection would be kept,
        # and its next request may be under way; each answer from now on closes its own.
        keep_alive = server.config.timeout_keep_alive
        while self._state.last_kept and time.monotonic() < self._state.last_kept + keep_alive:
            await asyncio.sleep(_STEP_SECONDS)


async def _refuse_connections(server: uvicorn.Server) -> None:
    """Accepts what the kernel has accepted already, and ends listening."""
    listening = [one.dup() for each in server.servers for one in each.sockets]
    waiting = select.poll()  # `select` takes no descriptor above 1023
    for one in listening:
        waiting.register(one, select.POLLIN)
    end = time.monotonic() + server.config.timeout_keep_alive
    while waiting.poll(0) and time.monotonic() < end:
        await asyncio.sleep(0)
    for each in server.servers:
        each.close()
    for one in listening:
        with contextlib.suppress(OSError):  # ends listening in every process that holds the socket
            one.shutdown(socket.SHUT_RDWR)
        one.close()
