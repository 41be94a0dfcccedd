"""An executor without a model: it keeps token ids where a real one keeps K and V.

The next token is a pure function of the tokens found through the block table, so a wrong block,
a missing copy or a wrong prefix share changes the output. For tests, simulation and benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from hal.engine.batch import TOKEN_ON_DEVICE, Batch, Int32, StepResult, Swaps
from hal.engine.block_manager import NULL_BLOCK

NEVER_WRITTEN = -1


def shadow_token(
    visible: Int32, seed: int, token_index: int, vocab_size: int, banned: frozenset[int]
) -> int:
    """The token after `visible` (all tokens, or the window's): a hash, moved on past bans."""
    salt = f"{seed},{token_index}".encode()
    token = crc32(visible.astype(np.int32).tobytes(), crc32(salt)) % vocab_size
    while token in banned:
        token = (token + 1) % vocab_size
    return token


@dataclass(frozen=True, slots=True)
class ShadowStep:
    """A step that already ran."""

    result: StepResult

    def wait(self) -> StepResult:
        return self.result


class ShadowExecutor:
    """Tokens at [block, offset] instead of K and V; at temperature 0 seed and index are ignored.

    poison: a row whose visible tokens contain this id fails, as if its logits were NaN.
    swap_block_s: seconds that a swapped block is said to have taken.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        vocab_size: int,
        window: int | None = None,
        poison: int | None = None,
        num_swap_blocks: int = 0,
        swap_block_s: float = 0.0,
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.num_blocks = num_blocks
        self.vocab_size = vocab_size
        self._block_size = block_size
        self._window = window
        self._poison = poison
        self._cache = np.full((num_blocks, block_size), NEVER_WRITTEN, np.int32)
        self._swap_space = np.full((num_swap_blocks, block_size), NEVER_WRITTEN, np.int32)
        self._swap_block_s = swap_block_s
        max_blocks = -(-max_model_len // block_size)
        self._tables = np.full((max_num_seqs, max_blocks), NULL_BLOCK, np.int32)
        self._last_token = np.full(max_num_seqs, NEVER_WRITTEN, np.int32)

    def submit(self, batch: Batch) -> ShadowStep:
        slots, indices, blocks = batch.block_updates.T
        self._tables[slots, indices] = blocks
        if batch.swaps is not None:
            self._swap(batch.swaps)
        sources, destinations = batch.block_copies.T
        assert not set(sources.tolist()) & set(destinations.tolist())
        self._cache[destinations] = self._cache[sources]
        self._write(batch)
        return ShadowStep(self._sample(batch))

    def _swap(self, swaps: Swaps) -> None:
        blocks, places = swaps.outs.T
        self._swap_space[places] = self._cache[blocks]
        places, blocks = swaps.ins.T
        self._cache[blocks] = self._swap_space[places]

    def _write(self, batch: Batch) -> None:
        slots = np.repeat(batch.slots, batch.q_lens)
        tokens = np.where(
            batch.token_ids == TOKEN_ON_DEVICE, self._last_token[slots], batch.token_ids
        )
        assert (tokens != NEVER_WRITTEN).all(), "a decode in a slot that never sampled"
        blocks = self._tables[slots, batch.positions // self._block_size]
        assert (blocks != NULL_BLOCK).all(), "a write into the null block"
        self._cache[blocks, batch.positions % self._block_size] = tokens

    def _sample(self, batch: Batch) -> StepResult:
        slot_of_token = np.repeat(batch.slots, batch.q_lens)
        token_ids = np.zeros((batch.num_samples, 1), np.int32)
        row_errors = np.zeros(batch.num_samples, np.bool_)
        for row, index in enumerate(batch.sample_index.tolist()):
            visible = self._read(int(slot_of_token[index]), int(batch.positions[index]))
            token_ids[row] = self._next_token(batch, row, visible)
            row_errors[row] = self._poison is not None and self._poison in visible
        self._last_token[batch.sample_slots] = token_ids[:, 0]
        return StepResult(
            token_ids=token_ids,
            num_tokens=np.where(row_errors, 0, 1).astype(np.int32),
            row_errors=row_errors,
            swap_s=self._swap_block_s * batch.swaps.num_blocks if batch.swaps else 0.0,
        )

    def _read(self, slot: int, position: int) -> Int32:
        """What the query at `position` sees, through the slot's block table."""
        start = 0 if self._window is None else max(0, position + 1 - self._window)
        positions = np.arange(start, position + 1)
        blocks = self._tables[slot, positions // self._block_size]
        visible: Int32 = self._cache[blocks, positions % self._block_size]
        return visible

    def _next_token(self, batch: Batch, row: int, visible: Int32) -> int:
        sampling = batch.sampling
        is_ban = (sampling.bias_rows == row) & np.isneginf(sampling.bias_values)
        banned = frozenset(sampling.bias_ids[is_ban].tolist())
        seed, index = int(sampling.settings.seeds[row]), int(sampling.token_index[row])
        if sampling.settings.temperature[row] == 0.0:
            seed = index = 0
        return shadow_token(visible, seed, index, self.vocab_size, banned)
