"""The limits of one engine, checked against each other before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from hal.cache_policy import CachePolicy
from hal.config import check_pinned_share, check_token_target
from hal.errors import ConfigError, UnsupportedError

DEFAULT_SPARE_TOKENS = 32  # measured: benchmarks/host.py, throughput at overcommit
DEFAULT_PRIORITY_WAIT_S = 120.0
DEFAULT_PINNED_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one engine. num_blocks counts NULL_BLOCK, which no sequence gets.

    window: sliding attention window in tokens, or None; max_model_len: prompt and output tokens.
    static_batching: a baseline to compare with: who is there together starts together, and nobody
    else starts before all of them are done.
    spare_tokens: room that a newcomer leaves each running sequence to grow into, so that it is not
    preempted soon after it was prefilled.
    max_pinned_share: the most of the blocks that pinned prefixes may keep from all others, 0 to 1.
    num_swap_blocks: blocks that evicted contents are copied to; without a window, with a cache.
    inter_token_target_s: what a step with decodes should take at most; their prefilled tokens are
    limited to what keeps it, but never below a block. None: no limit but max_num_batched_tokens.
    priority_wait_s: a request never overtakes one that arrived this much earlier, whatever their
    priorities.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int
    window: int | None = None
    prefix_caching: bool = True
    chunked_prefill: bool = True
    static_batching: bool = False
    cache: CachePolicy = field(default_factory=CachePolicy)
    spare_tokens: int = DEFAULT_SPARE_TOKENS
    priority_wait_s: float = DEFAULT_PRIORITY_WAIT_S
    max_pinned_share: float = DEFAULT_PINNED_SHARE
    num_swap_blocks: int = 0
    inter_token_target_s: float | None = None

    def __post_init__(self) -> None:
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_least("max_model_len", self.max_model_len, 2)
        _at_least("block_size", self.block_size, 1)
        _at_least("num_blocks", self.num_blocks, 2)
        _at_least("spare_tokens", self.spare_tokens, 0)
        _at_least("num_swap_blocks", self.num_swap_blocks, 0)
        if self.inter_token_target_s is not None:
            check_token_target(self.inter_token_target_s, self.chunked_prefill)
        if self.num_swap_blocks:
            check_swap(self.window, self.prefix_caching)
        check_pinned_share(self.max_pinned_share)
        if self.window is not None:
            _at_least("window", self.window, 1)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs "
                f"{self.max_num_seqs}: every sequence decodes one token a step. Raise it to "
                f"{self.max_num_seqs} or lower max_num_seqs"
            )
        if not self.chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ConfigError(
                f"without chunked prefill a whole prompt runs in one step, but "
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_model_len "
                f"{self.max_model_len}. Raise it to {self.max_model_len} or enable chunked prefill"
            )


def check_swap(window: int | None, prefix_caching: bool) -> None:
    """Raise unless evicted blocks can be kept in a swap space."""
    if window is not None:
        raise UnsupportedError(
            f"not supported yet: swap space for a model with a sliding window ({window} tokens), "
            "whose blocks are given back anyway; leave --swap-space at 0"
        )
    if not prefix_caching:
        raise ConfigError(
            "swap space holds evicted blocks of the prefix cache, which is off: leave it on, or "
            "leave --swap-space at 0"
        )


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"{name} must be at least {low}; got {value}")
