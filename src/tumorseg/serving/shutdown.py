"""The end of the process: what was accepted is answered, and nothing more is accepted."""

import asyncio
import contextlib
import ctypes
import select
import signal
import socket
import struct
from types import FrameType

import uvicorn

from tumorseg.serving.operations import State

_LOOK_SECONDS = 0.05
# From Linux's headers; Python names neither.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)  # the one instruction "accept 0 bytes"


class Shutdown:
    """Takes SIGTERM and SIGINT before uvicorn does, and passes them on when all is accepted.

    Left alone, uvicorn closes connections whose request it has not read yet, and the listening
    socket stays open in BentoML's parent process: the kernel goes on accepting connections that
    nobody will ever answer.

    Args:
        state: Is told that the process is stopping.
        seconds: How long uvicorn may then wait for answers that nobody reads.
    """

    def __init__(self, state: State, seconds: float) -> None:
        self._state = state
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Stands in for uvicorn's signal handlers; does nothing where no uvicorn runs."""
        for number in (signal.SIGTERM, signal.SIGINT):
            server = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(server, uvicorn.Server):
                self._stand_in(server, number, asyncio.get_running_loop())

    def _stand_in(
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
            await _accepted(server)
        finally:  # whatever goes wrong there, the process ends
            server.config.timeout_graceful_shutdown = int(self._seconds)
            server.handle_exit(number, None)


async def _accepted(server: uvicorn.Server) -> None:
    """Returns when no connection can bring a request any more, and shuts the door."""
    doors = [door.dup() for listener in server.servers for door in listener.sockets]
    waiting = select.poll()  # `select` knows no descriptor above 1023
    for door in doors:
        _lock(door)
        waiting.register(door, select.POLLIN)
    loop = asyncio.get_running_loop()
    # An answer given before the signal told its client how long the connection would be kept, and
    # its next request may be under way; each answer from now on closes its own.
    end, quiet = loop.time() + server.config.timeout_keep_alive + _LOOK_SECONDS, 0
    while loop.time() < end and quiet < 2:
        await asyncio.sleep(_LOOK_SECONDS)
        busy = waiting.poll(0) or server.server_state.connections
        quiet = 0 if busy else quiet + 1
    for listener in server.servers:
        listener.close()
    for door in doors:
        _shut(door)


def _lock(door: socket.socket) -> None:
    """Lets no new connection come to a listening socket, while those in its queue stay.

    Merely closed, it would reset connections that the kernel has accepted since the last look.
    """
    # A kernel without such filters leaves only that moment unguarded.
    with contextlib.suppress(OSError):
        instruction = ctypes.create_string_buffer(_DROP_ALL)
        program = struct.pack("HP", 1, ctypes.addressof(instruction))
        door.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _shut(door: socket.socket) -> None:
    """Ends listening in every process that holds the socket: from now on callers are refused."""
    with contextlib.suppress(OSError):
        door.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):  # for a process that may listen on it again
        door.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    door.close()
