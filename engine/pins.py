"""Which prefixes are pinned: a pin holds its blocks as a row does, so nothing can evict them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hal.engine.batch import Int32


@dataclass(frozen=True, slots=True)
class PinOutcome:
    """Full blocks of what should be pinned, how many of them are here, how many had no pin."""

    num_blocks: int
    num_found: int
    num_new: int

    @property
    def is_whole(self) -> bool:
        return self.num_found == self.num_blocks


class Pins:
    """Blocks by the name of their pin; pins may overlap, as prefixes do."""

    def __init__(self, num_blocks: int) -> None:
        self.counts = np.zeros(num_blocks, np.int32)  # pins of each block
        self._blocks: dict[str, Int32] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, name: str) -> bool:
        return name in self._blocks

    @property
    def num_blocks(self) -> int:
        """Blocks with at least one pin."""
        return int(np.count_nonzero(self.counts)) if self._blocks else 0

    def num_new(self, blocks: Int32) -> int:
        """How many more blocks would be pinned if these were."""
        return int(np.count_nonzero(self.counts[blocks] == 0))

    def add(self, name: str, blocks: Int32) -> None:
        """blocks: distinct"""
        assert name not in self._blocks
        self._blocks[name] = blocks
        self.counts[blocks] += 1

    def remove(self, name: str) -> Int32:
        """End a pin; returns the blocks that it held."""
        blocks = self._blocks.pop(name)
        self.counts[blocks] -= 1
        return blocks

    def touching(self, blocks: Int32) -> list[str]:
        """The pins that hold one of these blocks."""
        if not self.counts[blocks].any():
            return []
        return [name for name, held in self._blocks.items() if np.isin(held, blocks).any()]

    def check(self) -> None:
        """Raise AssertionError unless the counts are those of the pins."""
        held = [np.empty(0, np.int32), *self._blocks.values()]
        counts = np.bincount(np.concatenate(held), minlength=len(self.counts))
        assert np.array_equal(counts, self.counts), "counts of pins"
