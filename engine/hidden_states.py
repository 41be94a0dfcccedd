"""The final hidden states of requests that want those and not their tokens, pooled on the host.

An op for it would need a kernel of each vendor; the copy is paid by those requests alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hal.engine.batch import Float32, Int32, Pools, StepResult
from hal.engine.executor import PendingStep
from hal.tensor import Tensor

Download = Callable[[Tensor], NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingHiddenStates:
    """A submitted step whose hidden states stay on the device until the next one.

    sampled [N, hidden_size], every [T, hidden_size]; `every` is None without a mean to make.
    sums: of the slots whose prefill goes on, kept from step to step
    """

    step: PendingStep
    sample_slots: Int32
    pools: Pools
    download: Download
    sampled: Tensor
    every: Tensor | None
    sums: dict[int, NDArray[np.float64]] = field(repr=False)

    def wait(self) -> StepResult:
        """The step's own result with what `pools` asks for; a row without finite ones failed."""
        result = self.step.wait()
        last = self.download(self.sampled)[self.pools.last].astype(np.float32)
        hidden = np.concatenate([last, *self._means()])
        row_errors = result.row_errors.copy()
        row_errors[self.pools.rows] |= ~np.isfinite(hidden).all(axis=1)
        return replace(result, hidden=hidden, row_errors=row_errors)

    def _means(self) -> list[Float32]:
        if self.every is None:
            return []
        every = self.download(self.every)
        lengths = {}
        for slot, first, end, position in self.pools.chunks.tolist():
            part = every[first:end].sum(axis=0, dtype=np.float64)
            self.sums[slot] = part if position == 0 else self.sums[slot] + part
            lengths[slot] = position + end - first
        slots = self.sample_slots[self.pools.mean].tolist()
        means = [self.sums.pop(slot) / lengths[slot] for slot in slots]
        return [mean[None].astype(np.float32) for mean in means]
