"""From logits to tokens: adjust, sample, and log probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from hal.select import declare
from hal.tensor import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleProblem:
    """Rows of `vocab_size` float32 logits."""

    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingInputs:
    """Device copies of a step's sampling settings, N rows; host flags say what can be skipped.

    temperature, top_p, min_p, presence, frequency, repetition  [N] float32
    top_k [N] int32 (0 = off); seeds [N] int64 (the bits of the unsigned key)
    token_index [N] int32: position in the output, the Philox counter
    bias_rows, bias_ids [B] int32, bias_values [B] float32
    penalty_rows, penalty_ids, penalty_counts [P] int32
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    token_index: Tensor
    bias_rows: Tensor
    bias_ids: Tensor
    bias_values: Tensor
    penalty_rows: Tensor
    penalty_ids: Tensor
    penalty_counts: Tensor
    presence: Tensor
    frequency: Tensor
    repetition: Tensor
    is_all_greedy: bool
    has_filters: bool
    has_bias: bool
    has_penalties: bool


@declare(SampleProblem)
def adjust_logits(logits: Tensor, inputs: SamplingInputs, out: Tensor) -> None:
    """out = logits with penalties, then bias; both [N, vocab_size] float32, `out` may be `logits`.

    For each (row, id, count) seen: positive logits are divided by repetition, others multiplied;
    then minus frequency * count, minus presence where count > 0. Bias is added last.
    """


@declare(SampleProblem)
def mask_logits(logits: Tensor, rows: Tensor, mask: Tensor, out: Tensor) -> None:
    """out = logits, -inf where a masked row's bit is 0; other rows as they are.

    logits, out [N, vocab_size] float32, `out` may be `logits`; rows [M] int32, distinct
    mask [M, ceil(vocab_size / 32)] int32: bit id % 32 of word id // 32 allows the id in rows[m]
    """


@declare(SampleProblem)
def sample(logits: Tensor, inputs: SamplingInputs, tokens: Tensor) -> None:
    """tokens[n] = a token of row n, or -1 where the row has a NaN or no finite maximum.

    logits [N, vocab_size] float32 (unchanged), tokens [N] int32
    temperature 0: argmax, ties to the lowest id. Otherwise: (logit - max) / temperature, keep the
    top_k largest (ties at the edge stay), then tokens with p >= min_p * max p, then the smallest
    set with mass >= top_p (of the distribution after top_k), then argmax of logit + Gumbel noise.
    Noise of (seed, token_index, id): Philox4x32-10 with key (seed low, seed high) and counter
    (id // 4, token_index, 0, 0); word id % 4 as w; u = (w + 0.5) / 2^32; noise = -log(-log(u)).

    Source: Philox (Salmon et al. 2011); Gumbel-max (Gumbel 1954; Maddison et al. 2014).
    """


@declare(SampleProblem)
def logprobs(
    logits: Tensor, tokens: Tensor, chosen: Tensor, rank: Tensor, top_ids: Tensor, top: Tensor
) -> None:
    """Log softmax of each row at its token, the token's rank (0 = most likely), and the top K.

    logits [N, vocab_size] float32, tokens [N] int32; chosen [N] float32, rank [N] int32,
    top_ids [N, K] int32, top [N, K] float32 (K may be 0). Equal values: the lower id first.
    """
