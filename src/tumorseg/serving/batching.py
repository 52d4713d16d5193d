"""Slices of all requests, joined to batches for the network while it is busy."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
import numpy as np
from bentoml._internal.marshal.dispatcher import CorkDispatcher, Optimizer
from numpy.typing import NDArray

from tumorseg.core.service_settings import Settings
from tumorseg.imaging.decode import Refusal, Rejected, Study
from tumorseg.imaging.preprocess import Grey
from tumorseg.inference.predictor import Predictor, Segmentation
from tumorseg.serving import operations
from tumorseg.serving.guard import BUSY
from tumorseg.serving.lasting import all_or_none, to_the_end

Grid = NDArray[np.float32]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Eager(Optimizer):
    """Estimates how long a batch takes, as BentoML does, but never waits for one to fill.

    BentoML's own estimate of how long it pays to wait stays high for minutes after a rush, and a
    lone slice would wait that long for company that does not come. Batches fill by themselves
    while the network computes the one before.
    """

    def __init__(self, max_latency: float) -> None:
        super().__init__(max_latency)
        self.o_a = self.o_b = 0.0  # until something was measured, nothing is refused

    def trigger_refresh(self) -> None:
        """Estimates anew from the latest batches."""
        super().trigger_refresh()
        self.wait = 0


class _Dispatcher(CorkDispatcher[Grid, Grid]):
    async def train_optimizer(self, *_: Any) -> None:
        """Does nothing: BentoML would let the first requests wait for company to learn from."""


class Slices:
    """Runs slices through the predictor: the network in batches, all else in worker threads.

    This is BentoML's dispatcher, but not its `batchable` APIs: each of those has a queue of its
    own, and takes an argument of one kind. Here one picture, a batch of files and a volume share
    one queue, decoding goes on beside the network, and a bad file never enters a batch.

    Args:
        predictor: The model.
        settings: `max_batch_size`, `max_latency_ms` and `threads`.
    """

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self._predictor = predictor
        self._window = 2 * settings.max_batch_size
        self._helpers = anyio.CapacityLimiter(settings.threads)
        self._network = anyio.CapacityLimiter(1)
        self._dispatcher = _Dispatcher(
            settings.max_latency_ms,
            settings.max_batch_size,
            fallback=_too_late,
            get_batch_size=lambda _: 1,
        )
        self._dispatcher.optimizer = _Eager(settings.max_latency_ms / 1000)
        self._probability = self._dispatcher(self._run)

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


def _too_late() -> Grid:
    raise Rejected(*BUSY)
