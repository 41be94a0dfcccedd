"""Blocks that a newcomer leaves to those who run, or somebody would soon be preempted."""

from __future__ import annotations

import numpy as np

from hal.engine.batch import Index
from hal.engine.block_manager import BlockManager
from hal.engine.scheduler_config import SchedulerConfig
from hal.engine.sequence import Sequence
from hal.engine.slots import Slots


class SpareRoom:
    """What running sequences take while each grows by `spare_tokens`, or to its end."""

    def __init__(self, config: SchedulerConfig, slots: Slots, blocks: BlockManager) -> None:
        self._config = config
        self._slots = slots
        self._blocks = blocks
        self._num_blocks: int | None = None

    def forget(self) -> None:
        """Who runs has changed."""
        self._num_blocks = None

    def add(self, seq: Sequence) -> None:
        """It runs from now on, its choices soon."""
        if self._num_blocks is not None:
            growth = self._growth(np.array([seq.slot], np.intp))
            self._num_blocks += growth * len(seq.family)

    def num_blocks(self, leaving: Index | None = None) -> int:
        """Without those that are `leaving`."""
        if self._config.window is not None or not self._config.spare_tokens:
            return 0
        if leaving is not None:
            staying = self._slots.is_running.copy()
            staying[leaving] = False
            return self._growth(np.flatnonzero(staying))
        if self._num_blocks is None:
            self._num_blocks = self._growth(np.flatnonzero(self._slots.is_running))
        return self._num_blocks

    def _growth(self, slots: Index) -> int:
        ends = self._slots.ends_after(slots, self._config.spare_tokens)
        blocks = -(-ends // self._config.block_size) - self._blocks.num_table_blocks.take(slots)
        return int(blocks.clip(0).sum())
