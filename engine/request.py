"""What goes into the engine and what comes out: token ids only, text stays outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hal.sampling_params import SamplingParams


class FinishReason(StrEnum):
    """Why a sequence ended; the values are the ones the OpenAI API uses, and two of our own."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Pooling(StrEnum):
    """What of a prompt's final hidden states, after the last norm, is its embedding."""

    LAST = "last"
    MEAN = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, sampled `params.n` times; lower `priority` runs earlier among its tenant's.

    `params.max_tokens` is resolved (never None) and `eos_token_ids` come from the model.
    timeout_s: seconds from its arrival after which no answer is wanted: it leaves the queue as soon
    as it cannot start in time. What runs is not cut off.
    tenant: who is served in turn with others, and shares cached prefixes with nobody else.
    pooling: the prompt's embedding is wanted and no text; n and max_tokens are 1 then.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    eos_token_ids: frozenset[int] = frozenset()
    priority: int = 0
    tenant: str = ""
    timeout_s: float | None = None
    pooling: Pooling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log probabilities at one position: the chosen token and the most likely ones.

    `top_ids` is sorted from most to least likely and has the k that the request asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """New tokens of one sequence (choice `index` of a request) after one step.

    error, error_code: why it ended, where finish_reason is ERROR; the code as in hal.errors
    embedding: [hidden_size] float32, little-endian, where the request has `pooling`
    queued_s: how long its request waited until it ran for the first time; 0.0 if it never did;
        a measurement: outputs are equal without it
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    error: str | None = None
    error_code: str | None = None
    num_cached_tokens: int = 0
    queued_s: float = field(default=0.0, compare=False)
    embedding: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot for /metrics and the status line.

    num_late: sequences that left the queue because of their timeout_s
    num_blocks_pinned: blocks that only pins hold; num_pins: prefixes that are pinned
    num_evicted, num_expired: cached blocks given up for room, and because nobody asked for them
    num_swap_blocks_total, _used: of the swap space; num_swapped_out, _in: blocks copied so far
    """

    num_steps: int
    num_running: int
    num_waiting: int
    num_blocks_total: int
    num_blocks_used: int
    num_blocks_cached: int
    num_blocks_pinned: int
    num_pins: int
    num_evicted: int
    num_expired: int
    num_preemptions: int
    num_prompt_tokens: int
    num_generated_tokens: int
    num_prefix_queries: int
    num_prefix_hits: int
    num_late: int
    num_swap_blocks_total: int = 0
    num_swap_blocks_used: int = 0
    num_swapped_out: int = 0
    num_swapped_in: int = 0
