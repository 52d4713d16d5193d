"""Slices of all requests, joined to batches for the network while it is busy."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from tumorseg.core.service_settings import Settings
from tumorseg.imaging.preprocess import Grey
from tumorseg.imaging.study import Refusal, Rejected, Study
from tumorseg.inference.predictor import Predictor, Segmentation
from tumorseg.serving import operations
from tumorseg.serving.guard import BUSY

Grid = NDArray[np.float32]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def to_the_end(work: Awaitable[T], stop: Callable[[], None] = lambda: None) -> T:
    """Awaits work in a thread, to its end even if cancelled.

    A thread cannot be cancelled, and counts against every limit as long as it runs.

    Args:
        work: What is awaited.
        stop: Is called on cancellation, so that the thread can end early.
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
        task.cancelled() or task.exception()  # or asyncio logs that nobody asked for it
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


class Slices:
    """Runs slices through the predictor: the network in batches, all else in worker threads.

    All requests share one queue, in order of arrival. It never waits for a batch to fill: batches
    fill while the network computes the one before.

    Args:
        predictor: The model.
        settings: `max_batch_size`, `max_latency_ms` and `threads`.
    """

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self._predictor = predictor
        self._settings = settings
        self._threads = anyio.CapacityLimiter(settings.threads)
        self._waiting: deque[tuple[Grid, asyncio.Future[Grid]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._run_seconds = 0.0  # a run of the network, lately

    async def in_thread(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Runs a function in a thread.

        Raises:
            Rejected: As `work` did; but not the same object, since one that crosses threads forms a
                cycle with its frames, which keeps what they had unpacked until the collector runs.
        """

        def done() -> T | Refusal:
            try:
                return work(*arguments)
            except Rejected as error:
                return Refusal(error.status, error.sentence)

        found = await to_the_end(anyio.to_thread.run_sync(done, limiter=self._threads))
        if isinstance(found, Refusal):
            raise Rejected(*found)
        return found

    async def each(self, study: Study, finish: Callable[[Grey, Grid], T]) -> list[T]:
        """Runs the network on every slice of a study.

        Args:
            study: The study.
            finish: Is called in a thread with each slice, uint8, shape (H, W), and its
                probabilities, float32, shape (S, S).

        Returns:
            What `finish` returned, in the order of the slices.

        Raises:
            Rejected: 503 if the network is too far behind.
        """
        # Only so many at once, so that a volume does not hold up single slices.
        window = asyncio.Semaphore(2 * self._settings.max_batch_size)

        async def one(grey: Grey) -> T:
            async with window:
                prepared = await self.in_thread(self._predictor.prepare, grey)
                probability = await self._probability(prepared)
                return await self.in_thread(finish, grey, probability)

        return await all_or_none(one(grey) for grey in study.slices)

    async def segment(self, greys: Sequence[Grey]) -> list[Segmentation]:
        """Segments slices, uint8, shape (H, W) each; raises Rejected as `each`."""

        def finish(grey: Grey, grid: Grid) -> Segmentation:
            return self._predictor.finish(grid, (grey.shape[0], grey.shape[1]))

        return await self.each(Study("picture", list(greys)), finish)

    async def _probability(self, prepared: Grid) -> Grid:
        runs = len(self._waiting) // self._settings.max_batch_size + 1
        if runs * self._run_seconds > self._settings.max_latency_ms / 1000:
            raise Rejected(*BUSY)
        result: asyncio.Future[Grid] = asyncio.get_running_loop().create_future()
        self._waiting.append((prepared, result))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run_batches())
        return await result

    async def _run_batches(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._waiting:
            batch: list[tuple[Grid, asyncio.Future[Grid]]] = []
            while self._waiting and len(batch) < self._settings.max_batch_size:
                prepared, result = self._waiting.popleft()
                if not result.done():  # as where its client went away
                    batch.append((prepared, result))
            if not batch:
                return
            began = clock()
            operations.BATCH.observe(len(batch))
            outputs: Iterable[Grid | Exception]
            try:
                inputs = np.stack([prepared for prepared, _ in batch])
                outputs = await asyncio.to_thread(self._predictor.probabilities, inputs)
            except Exception as error:
                outputs = [error] * len(batch)
            seconds = clock() - began
            self._run_seconds = (seconds + (self._run_seconds or seconds)) / 2
            for (_, result), output in zip(batch, outputs, strict=True):
                if result.done():
                    continue
                if isinstance(output, Exception):
                    result.set_exception(output)
                else:
                    result.set_result(output)
