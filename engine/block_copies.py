"""Copies from block to block that the next step makes before it runs anything."""

from __future__ import annotations

import numpy as np

from hal.engine.batch import Int32

_NO_COPIES: Int32 = np.empty((0, 2), np.int32)


class BlockCopies:
    """A copy reads its source when the step starts: until then that must not get a new owner."""

    def __init__(self) -> None:
        self._sources: dict[int, int] = {}  # by destination
        self._held: list[int] = []

    @property
    def held(self) -> list[int]:
        """Sources that nobody else holds."""
        return self._held

    def add(self, source: int, destination: int) -> None:
        self._sources[destination] = source

    def cancel(self, blocks: Int32) -> Int32:
        """Blocks that nobody holds any more: copies into them are dropped, and those that a copy
        still reads are held back. Returns the others."""
        if not self._sources:
            return blocks
        for block in blocks.tolist():
            self._sources.pop(block, None)
        sources = set(self._sources.values())
        is_read = np.array([block in sources for block in blocks.tolist()], np.bool_)
        self._held.extend(blocks[is_read].tolist())
        return blocks[~is_read]

    def take(self) -> Int32:
        """[C, 2]: (source, destination). No destination is the source of another."""
        if not self._sources:
            return _NO_COPIES
        pairs = [(source, destination) for destination, source in self._sources.items()]
        self._sources.clear()
        return np.array(pairs, np.int32)

    def release(self) -> list[int]:
        """After `take`: the sources that were held back."""
        held, self._held = self._held, []
        return held

    def check(self, ref_counts: Int32) -> None:
        """Raise AssertionError unless every destination has one holder and is no source."""
        for destination, source in self._sources.items():
            assert ref_counts[destination] == 1 and source not in self._sources
