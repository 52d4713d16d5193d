"""Work that goes on when whoever asked for it has gone: a thread cannot be stopped."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Awaitable[T], stop: Callable[[], None] = lambda: None) -> T:
    """Awaits work that ends in a thread, and stays until it has ended even if cancelled.

    What the thread takes must go on to count, in the queue and against every limit, for as long as
    it is taken.

    Args:
        work: What is awaited.
        stop: Is called where it is cancelled, to tell the thread that nobody waits for it.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue
        task.cancelled() or task.exception()  # nobody asks for it any more
        raise


async def all_or_none(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Awaits all; the first that fails cancels the others, and is raised when they have ended."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
