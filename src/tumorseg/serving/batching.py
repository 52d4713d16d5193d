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


class _Batcher:
    """Runs the network on what waits, in order of arrival, at most `max_size` inputs at a time.

    It never waits for a batch to fill: batches fill while the network computes the one before.

    Args:
        run: Runs the network on a batch.
        max_size: Inputs a run.
        max_seconds: An input that would wait longer, by the time of the latest runs, is refused.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Grid]], Awaitable[Sequence[Grid]]],
        max_size: int,
        max_seconds: float,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._max_seconds = max_seconds
        self._waiting: deque[tuple[Grid, asyncio.Future[Grid]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._run_seconds = 0.0  # until something was measured, nothing is refused

    async def __call__(self, prepared: Grid) -> Grid:
        """Returns the network's output for one input.

        Raises:
            Rejected: 503 if the network is too far behind.
        """
        runs = len(self._waiting) // self._max_size + 1
        if runs * self._run_seconds > self._max_seconds:
            raise Rejected(*BUSY)
        result: asyncio.Future[Grid] = asyncio.get_running_loop().create_future()
        self._waiting.append((prepared, result))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await result

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._waiting:
            batch: list[tuple[Grid, asyncio.Future[Grid]]] = []
            while self._waiting and len(batch) < self._max_size:
                prepared, result = self._waiting.popleft()
                if not result.done():  # as where its client went away
                    batch.append((prepared, result))
            if not batch:
                continue
            began = clock()
            outputs: Sequence[Grid | Exception]
            try:
                outputs = await self._run([prepared for prepared, _ in batch])
            except Exception as error:
                outputs = [error] * len(batch)
            self._run_seconds = (self._run_seconds or clock() - began) * 0.5 + 0.5 * (
                clock() - began
            )
            for (_, result), output in zip(batch, outputs, strict=True):
                if result.done():
                    continue
                if isinstance(output, Exception):
                    result.set_exception(output)
                else:
                    result.set_result(output)


class Slices:
    """Runs slices through the predictor: the network in batches, all else in worker threads.

    One picture, a batch of files and a volume share one queue, decoding goes on beside the network,
    and a bad file never enters a batch.

    Args:
        predictor: The model.
        settings: `max_batch_size`, `max_latency_ms` and `threads`.
    """

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self._predictor = predictor
        self._window = 2 * settings.max_batch_size
        self._helpers = anyio.CapacityLimiter(settings.threads)
        self._network = anyio.CapacityLimiter(1)
        self._probability = _Batcher(
            self._run, settings.max_batch_size, settings.max_latency_ms / 1000
        )

    async def in_thread(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Does a part of the work in a thread, so that the event loop stays free.

        Raises:
            Rejected: As `work` did; but not the same object, since one that crosses threads forms a
                cycle with its frames, and what they had unpacked would wait for the collector.
        """

        def done() -> T | Refusal:
            try:
                return work(*arguments)
            except Rejected as error:
                return Refusal(error.status, error.sentence)

        found = await to_the_end(anyio.to_thread.run_sync(done, limiter=self._helpers))
        if isinstance(found, Refusal):
            raise Rejected(*found)
        return found

    async def each(self, study: Study, finish: Callable[[Grey, Grid], T]) -> list[T]:
        """Segments every slice of a study.

        Args:
            study: What was sent.
            finish: Gets each slice, uint8, shape (H, W), with its probabilities, float32, shape
                (S, S), in a thread.

        Returns:
            What `finish` returned, in the order of the slices.

        Raises:
            Rejected: 503 if the network is too far behind.
        """
        # Only so many at once, so that a lone slice finds its place among those of a volume.
        window = asyncio.Semaphore(self._window)

        async def one(grey: Grey) -> T:
            async with window:
                prepared = await self.in_thread(self._predictor.prepare, grey)
                probability = await self._probability(prepared)
                return await self.in_thread(finish, grey, probability)

        return await all_or_none(one(grey) for grey in study.slices)

    async def found(self, greys: Sequence[Grey]) -> list[Segmentation] | Refusal:
        """Segments slices, uint8, shape (H, W) each, for a caller in another thread.

        A refusal is returned, since whoever raises it must do so in his own thread.
        """

        def finish(grey: Grey, grid: Grid) -> Segmentation:
            return self._predictor.finish(grid, (grey.shape[0], grey.shape[1]))

        try:
            return await self.each(Study("picture", list(greys)), finish)
        except Rejected as error:
            return Refusal(error.status, error.sentence)

    async def _run(self, prepared: Sequence[Grid]) -> Sequence[Grid]:
        operations.BATCH.observe(len(prepared))
        batch = np.stack(prepared)
        return list(
            await anyio.to_thread.run_sync(
                self._predictor.probabilities, batch, limiter=self._network
            )
        )
