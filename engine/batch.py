"""One step's work, frozen: numpy arrays and ints only, so that it can be sent to any executor.

A running sequence owns a persistent `slot`; the executor keeps each slot's block table and last
sampled token, and a batch carries only what changed. S sequences, T tokens, N sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Index = NDArray[np.intp]  # numpy takes an array by it several times as fast as by int32

TOKEN_ON_DEVICE = -1
"""In `Batch.token_ids`: take the slot's last sampled token, which never left the device."""


class TokenMasks(Protocol):
    """Which tokens the M guided rows may take; the host's work, to be done beside the device's.

    The only part of a batch that is not there yet: an executor asks for `words` once its forward
    pass is on the way, or before it sends the batch elsewhere.
    """

    @property
    def rows(self) -> Int32:
        """[M]: which of the N sampled rows."""

    def words(self) -> Int32:
        """[M, ceil(vocab_size / 32)]: bits as the op mask_logits takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """What N sampled rows keep from step to step: the same object while the rows are the same.

    temperature, top_p, min_p        [N] float32; temperature 0 = argmax
    top_k                            [N] int32; 0 = off
    seeds                            [N] uint64: Philox key
    num_logprobs                     [N] int32; -1 = none
    presence, frequency, repetition  [N] float32
    """

    temperature: Float32
    top_k: Int32
    top_p: Float32
    min_p: Float32
    seeds: NDArray[np.uint64]
    num_logprobs: Int32
    presence: Float32
    frequency: Float32
    repetition: Float32


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch:
    """How the N sampled rows are sampled in this step.

    token_index                       [N] int32: Philox counter
    bias_rows, bias_ids, bias_values  [B]: logits[row, id] += value (-inf bans the token)
    penalty_rows, penalty_ids         [P] int32, one entry per distinct token seen by the row
    penalty_counts                    [P] int32: times in the output (0 = in the prompt only)
    masks                             of guided rows; None without any
    """

    settings: SamplingSettings
    token_index: Int32
    bias_rows: Int32
    bias_ids: Int32
    bias_values: Float32
    penalty_rows: Int32
    penalty_ids: Int32
    penalty_counts: Int32
    masks: TokenMasks | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Which hidden states are wanted, as the final norm leaves them.

    last    [.] int32: of the N sampled rows, whose own are
    mean    [.] int32: of the N sampled rows, for whom the mean over all tokens is
    chunks  [C, 4] int32 of those, and of who will be: slot, first row and end among the T tokens,
            position of the first
    """

    last: Int32
    mean: Int32
    chunks: Int32

    @property
    def rows(self) -> Int32:
        """[P]: of the N, who gets an answer now."""
        return np.concatenate([self.last, self.mean])


@dataclass(frozen=True, slots=True, kw_only=True)
class Swaps:
    """Blocks that move between the device and the swap space: all `outs`, then all `ins`.

    outs  [O, 2] int32: (block, swap block), the swap blocks distinct
    ins   [I, 2] int32: (swap block, block), the blocks distinct
    """

    outs: Int32
    ins: Int32

    @property
    def num_blocks(self) -> int:
        return len(self.outs) + len(self.ins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What every sequence runs this step.

    slots, q_lens, seq_lens  [S] int32; seq_lens counts the context after this step
    token_ids, positions     [T] int32, sequence after sequence; TOKEN_ON_DEVICE = last sampled
    block_updates            [U, 3] int32: (slot, index in the table, block id)
    swaps                    moved before block_copies; None: nothing
    block_copies             [C, 2] int32: (source, destination), copied before anything runs
    sample_index             [N] int32: rows of the T tokens whose next token is sampled
    sample_slots             [N] int32: the slot that keeps the sampled token
    pools                    whose hidden states are wanted; None: nobody's
    """

    step: int
    slots: Int32
    q_lens: Int32
    seq_lens: Int32
    token_ids: Int32
    positions: Int32
    block_updates: Int32
    block_copies: Int32
    sample_index: Int32
    sample_slots: Int32
    sampling: SamplingBatch
    pools: Pools | None = None
    swaps: Swaps | None = None

    @property
    def num_seqs(self) -> int:
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_samples(self) -> int:
        return len(self.sample_index)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledLogprobs:
    """Log probabilities of the N sampled rows; K is the largest number asked for.

    chosen, rank [N]; top_ids, top_logprobs [N, K], most likely first
    """

    chosen: Float32
    rank: Int32
    top_ids: Int32
    top_logprobs: Float32


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What an executor answers to a Batch, in the order of `sample_index`.

    token_ids   [N, k] int32; num_tokens [N] int32: how many of the k are valid (0..k)
    row_errors  [N] bool: the row's logits were not finite, its token means nothing
    hidden      [P, hidden_size] float32: hidden states behind the final norm, of Pools.rows
    swap_s      seconds that Batch.swaps took
    """

    token_ids: Int32
    num_tokens: Int32
    row_errors: NDArray[np.bool_]
    logprobs: SampledLogprobs | None = None
    hidden: Float32 | None = None
    swap_s: float = 0.0
