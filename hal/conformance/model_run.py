"""A model as the kit drives it, and the player that feeds it sequences over a poisoned cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hal.conformance.stage import Float64

Int32 = NDArray[np.int32]
ON_DEVICE = -1
"""As a token id: the token that the step before sampled for this sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one sequence runs in a step: `token_ids` at positions from `start` on."""

    slot: int
    start: int
    token_ids: Int32


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStep:
    """block_updates [U, 3]: (slot, index in the table, block); block_copies [C, 2]: (from, to),
    made before anything runs."""

    parts: tuple[Part, ...]
    block_updates: Int32
    block_copies: Int32


@dataclass(frozen=True, slots=True)
class StepOutput:
    """logits [T, vocab_size] of every token, and the token sampled behind each part's last."""

    logits: Float64
    sampled: Int32


class ModelUnderTest(Protocol):
    """A model with its cache on a device, run step by step as the engine would."""

    @property
    def block_size(self) -> int: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def max_blocks_per_seq(self) -> int: ...

    def poison(self) -> None:
        """Fill every cache with NaN."""

    def submit(self, step: ModelStep) -> StepOutput:
        """Run one step and wait for it."""


class Player:
    """Some sequences in one model. The cache starts full of NaN, block ids are permuted, unused
    entries of a block table name a block of NaN, and blocks that a window has passed become NaN.
    """

    def __init__(
        self,
        model: ModelUnderTest,
        texts: Sequence[Int32],
        window: int | None = None,
        seed: int = 0,
    ) -> None:
        self._model = model
        self._window = window
        self._texts = texts
        blocks = np.random.default_rng(seed).permutation(model.num_blocks)
        # Block 0 is the null block, which padding may write to.
        self._free = [int(block) for block in blocks if block > 0]
        self._poison = self._free.pop()
        self._tables: list[list[int]] = [[] for _ in texts]
        self._num_done = [0] * len(texts)
        self._num_passed = [0] * len(texts)
        self._logits: list[list[Float64]] = [[] for _ in texts]
        self._sampled: list[list[int]] = [[] for _ in texts]
        self._copies: list[tuple[int, int]] = []
        self._later_copies: list[tuple[int, int]] = []
        self._updates = [
            (slot, index, self._poison)
            for slot in range(len(texts))
            for index in range(model.max_blocks_per_seq)
        ]
        model.poison()

    def step(self, *parts: tuple[int, int]) -> None:
        """Run (sequence, number of its next tokens) for each of `parts` at once."""
        self._run([self._part(seq, self._next(seq, count)) for seq, count in parts])

    def decode(self, *seqs: int) -> None:
        """One more token of each sequence: the one that the device sampled itself."""
        token = np.array([ON_DEVICE], dtype=np.int32)
        self._run([self._part(seq, token) for seq in seqs])

    def release(self, seq: int) -> None:
        """Forget a sequence; its blocks go to whoever comes next, with what they hold."""
        self._free.extend(reversed(self._tables[seq]))
        self._updates += [(seq, i, self._poison) for i in range(len(self._tables[seq]))]
        self._tables[seq] = []
        self._num_done[seq] = self._num_passed[seq] = 0
        self._logits[seq], self._sampled[seq] = [], []

    def move_blocks(self, seq: int) -> None:
        """Copy a sequence's blocks elsewhere; NaN takes their place."""
        old = self._tables[seq][self._num_passed[seq] :]
        new = [self._free.pop() for _ in old]
        self._tables[seq][self._num_passed[seq] :] = new
        first = self._num_passed[seq]
        self._updates += [(seq, first + index, block) for index, block in enumerate(new)]
        self._copies += zip(old, new, strict=True)
        # A step later: no block may be source and destination of one step's copies.
        self._later_copies += [(self._poison, block) for block in old]

    def logits(self, seq: int) -> Float64:
        """[tokens so far, vocab_size]"""
        return np.concatenate(self._logits[seq])

    def sampled(self, seq: int) -> list[int]:
        """What the device sampled for this sequence, step by step."""
        return self._sampled[seq]

    def num_left(self, seq: int) -> int:
        return len(self._texts[seq]) - self._num_done[seq]

    def _next(self, seq: int, count: int) -> Int32:
        done = self._num_done[seq]
        return self._texts[seq][done : done + count]

    def _part(self, seq: int, token_ids: Int32) -> Part:
        start, table = self._num_done[seq], self._tables[seq]
        end = start + len(token_ids)
        while len(table) * self._model.block_size < end:
            self._updates.append((seq, len(table), self._free[-1]))
            table.append(self._free.pop())
        self._num_done[seq] = end
        return Part(slot=seq, start=start, token_ids=token_ids)

    def _run(self, parts: list[Part]) -> None:
        copies, self._copies, self._later_copies = self._copies, self._later_copies, []
        updates, self._updates = self._updates, []
        output = self._model.submit(
            ModelStep(
                parts=tuple(parts),
                block_updates=np.array(updates, dtype=np.int32).reshape(-1, 3),
                block_copies=np.array(copies, dtype=np.int32).reshape(-1, 2),
            )
        )
        first = 0
        for part, token in zip(parts, output.sampled.tolist(), strict=True):
            end = first + len(part.token_ids)
            self._logits[part.slot].append(output.logits[first:end])
            self._sampled[part.slot].append(token)
            first = end
            self._poison_passed(part.slot)

    def _poison_passed(self, seq: int) -> None:
        """Blocks that no later token of this sequence sees may be anyone's by now."""
        if self._window is None:
            return
        first_seen = max(0, self._num_done[seq] - self._window + 1)
        num_passed = first_seen // self._model.block_size
        passed = self._tables[seq][self._num_passed[seq] : num_passed]
        self._copies += [(self._poison, block) for block in passed]
        self._num_passed[seq] = num_passed
