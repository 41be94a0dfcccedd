"""Which slots run guided sequences, and how far each has followed its grammar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hal.engine.batch import Index, Int32
from hal.engine.grammar import Grammar, Matcher, PendingMasks


class GuidedRows:
    """Matchers by slot; a slot keeps its last one until it is assigned anew."""

    def __init__(self) -> None:
        self._matchers: dict[int, Matcher] = {}

    def assign(self, slot: int, grammar: Grammar | None, output: Sequence[int]) -> None:
        """A sequence got the slot; `output` is what it has sampled before a preemption."""
        self._matchers.pop(slot, None)
        if grammar is not None:
            self._matchers[slot] = grammar.matcher(output)

    def record(self, slots: Index, token_ids: Int32) -> None:
        """Every slot has sampled its token; a negative one marks a row that failed."""
        for row, matcher in self._rows(slots):
            if token_ids[row] >= 0:
                matcher.consume(int(token_ids[row]))

    def masks(self, slots: Index) -> PendingMasks | None:
        """Of the guided ones among the sampled slots; None without any."""
        found = self._rows(slots)
        if not found:
            return None
        rows = np.array([row for row, _ in found], np.int32)
        return PendingMasks(rows, [matcher for _, matcher in found])

    def lost(self, slots: Index) -> dict[int, str]:
        """Rows whose grammar met a limit of its parser, and what it says."""
        errors = {row: matcher.error for row, matcher in self._rows(slots)}
        return {
            row: f"guided decoding cannot go on: {error}"
            for row, error in errors.items()
            if error is not None
        }

    def _rows(self, slots: Index) -> list[tuple[int, Matcher]]:
        if not self._matchers:
            return []
        found = ((row, self._matchers.get(slot)) for row, slot in enumerate(slots.tolist()))
        return [(row, matcher) for row, matcher in found if matcher is not None]
