"""An Executor whose step other ranks run as well, each on its part of the model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from hal.engine.batch import Batch, StepResult
from hal.engine.batch_codec import BatchEncoder, KnownMasks
from hal.engine.executor import Executor, PendingStep


class OtherRanks(Protocol):
    """Those that run each batch as well."""

    def send(self, frame: bytes) -> None:
        """A batch for all of them."""

    def check(self) -> None:
        """Raise EngineError where one was lost: then the sums lack its part."""

    def abort(self) -> None:
        """This rank has left a step, in which the others now wait: end them."""

    def whole(self) -> AbstractContextManager[None]:
        """Keeps an interrupt away within."""


@dataclass(frozen=True, slots=True)
class _PendingRankedStep:
    step: PendingStep
    ranks: OtherRanks

    def wait(self) -> StepResult:
        """Raises EngineError where a rank was lost."""
        result = self.step.wait()
        self.ranks.check()
        return result


class RankedExecutor:
    """Rank 0: sends each batch to the others, then runs it. They sample the same tokens from the
    same logits, so nothing comes back."""

    def __init__(self, own: Executor, ranks: OtherRanks) -> None:
        self._own = own
        self._ranks = ranks
        self._encoder = BatchEncoder()

    @property
    def max_num_seqs(self) -> int:
        """As of this rank's."""
        return self._own.max_num_seqs

    @property
    def num_blocks(self) -> int:
        """As of this rank's."""
        return self._own.num_blocks

    @property
    def vocab_size(self) -> int:
        """As of this rank's."""
        return self._own.vocab_size

    def submit(self, batch: Batch) -> PendingStep:
        """Run one step on all ranks. A failure is the end of the group."""
        self._ranks.check()
        batch = _with_known_masks(batch)
        frame = self._encoder.encode(batch)
        with self._ranks.whole():
            try:
                self._ranks.send(frame)
                return _PendingRankedStep(self._own.submit(batch), self._ranks)
            except BaseException:
                self._ranks.check()  # the rank that was lost is the cause, if one was
                self._ranks.abort()
                raise


def _with_known_masks(batch: Batch) -> Batch:
    """Masks are computed once, before the batch is sent."""
    masks = batch.sampling.masks
    if masks is None:
        return batch
    known = KnownMasks(masks.rows, masks.words())
    return replace(batch, sampling=replace(batch.sampling, masks=known))
