"""Moves KV blocks between the device and the swap space, and says how long that took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hal.device import Device
from hal.engine.batch import StepResult, Swaps
from hal.engine.executor import PendingStep
from hal.opset.attention import AttentionFamily
from hal.tensor import Tensor


@dataclass(frozen=True, slots=True)
class PendingSwaps:
    """A submitted step that had to wait for copies."""

    step: PendingStep
    swap_s: float

    def wait(self) -> StepResult:
        return replace(self.step.wait(), swap_s=self.swap_s)


class BlockSwapper:
    """Host memory in the shape of every layer's cache."""

    def __init__(
        self, device: Device, families: Sequence[AttentionFamily], num_swap_blocks: int
    ) -> None:
        self._device = device
        self._families = families
        self._host = tuple(
            device.empty_host(family.kv_shape(num_swap_blocks), family.problem.kv_dtype)
            for family in families
        )

    def swap(self, swaps: Swaps, caches: Sequence[Tensor]) -> float:
        """All of `outs`, then all of `ins`, in every layer; seconds until they are made."""
        self._device.synchronize()  # or the copies would be charged for what runs before them
        began = time.perf_counter()
        for family, kv, host in zip(self._families, caches, self._host, strict=True):
            if len(swaps.outs):
                family.copy_blocks(kv, host, swaps.outs)
            if len(swaps.ins):
                family.copy_blocks(host, kv, swaps.ins)
        self._device.synchronize()
        return time.perf_counter() - began
