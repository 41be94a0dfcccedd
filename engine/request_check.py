"""Refuses, with the numbers, a request that could never finish however long it waited."""

from __future__ import annotations

from collections.abc import Iterable

from hal.engine.block_manager import BlockManager
from hal.engine.pins import PinOutcome
from hal.engine.request import Request
from hal.engine.scheduler_config import SchedulerConfig
from hal.errors import PINS_FULL, ContextLengthError, RequestError


def check_request(request: Request, config: SchedulerConfig, blocks: BlockManager) -> None:
    """Raise RequestError or ContextLengthError unless an empty engine can finish the request."""
    num_prompt, params = len(request.prompt_token_ids), request.params
    assert request.pooling is None or params.n == params.max_tokens == 1, "nothing is generated"
    if num_prompt == 0:
        raise RequestError("the prompt is empty; send at least one token", param="prompt")
    if params.n > config.max_num_seqs:
        raise RequestError(
            f"n {params.n} is above max_num_seqs {config.max_num_seqs}: all choices of a request "
            "run at once. Ask for fewer choices or start the engine with a larger max_num_seqs",
            param="n",
        )
    if num_prompt >= config.max_model_len:
        raise ContextLengthError(
            f"the prompt has {num_prompt} tokens, but max_model_len is {config.max_model_len} and "
            f"one token must be left to sample. Shorten it to {config.max_model_len - 1} tokens",
            param="prompt",
        )
    _check_blocks(request, config, blocks)


def needed_blocks(request: Request, config: SchedulerConfig, blocks: BlockManager) -> int:
    """The most blocks that one choice of the request holds at once."""
    num_tokens = _num_kept(request, config)
    return blocks.peak_blocks(num_tokens, min(num_tokens, config.max_num_batched_tokens))


def _num_kept(request: Request, config: SchedulerConfig) -> int:
    """Tokens in the cache at the end: the last sampled one is never fed back."""
    num_prompt, max_tokens = len(request.prompt_token_ids), request.params.max_tokens
    assert max_tokens is not None, "Request.params.max_tokens is resolved by the caller"
    return min(num_prompt + max_tokens, config.max_model_len) - 1


def _check_blocks(request: Request, config: SchedulerConfig, blocks: BlockManager) -> None:
    needed, num_usable = needed_blocks(request, config, blocks), blocks.num_usable
    num_free = num_usable - blocks.num_pinned
    if needed <= num_free:
        return
    num_prompt, max_tokens = len(request.prompt_token_ids), request.params.max_tokens
    capacity = num_free * config.block_size
    pinned = f", {blocks.num_pinned} of them pinned" if blocks.num_pinned else ""
    raise ContextLengthError(
        f"the request needs {_num_kept(request, config)} tokens of KV cache ({num_prompt} prompt + "
        f"{max_tokens} output, the last one not kept) = {needed} blocks of {config.block_size}, "
        f"but the whole pool has {num_usable} blocks{pinned} ({capacity} tokens). "
        + _remedy(num_prompt, capacity)
        + f" or give the engine memory for {needed + blocks.num_pinned} blocks",
        param="max_tokens" if num_prompt <= capacity else "prompt",
    )


def _remedy(num_prompt: int, capacity: int) -> str:
    if num_prompt <= capacity:
        return f"Lower max_tokens to {capacity - num_prompt + 1}"
    return f"Shorten the prompt to {capacity} tokens"


def pin_limit(live: Iterable[Request], config: SchedulerConfig, blocks: BlockManager) -> int:
    """The most blocks that may be pinned: a share, and no request that was taken may starve."""
    needed = max((needed_blocks(request, config, blocks) for request in live), default=0)
    return min(_share_limit(config, blocks), blocks.num_usable - needed)


def check_pin(
    outcome: PinOutcome, limit: int, num_tokens: int, config: SchedulerConfig, blocks: BlockManager
) -> None:
    """Raise RequestError for a prefix that was not pinned."""
    if not blocks.has_prefix_cache:
        raise RequestError("nothing can be pinned: prefix caching is off", param="prompt")
    if not outcome.num_blocks:
        raise RequestError(
            f"{num_tokens} tokens fill no block of {config.block_size}, and only full blocks are "
            "shared; there is nothing to pin",
            param="prompt",
        )
    if not outcome.is_whole:
        raise RequestError(
            f"only the first {outcome.num_found} of {outcome.num_blocks} blocks are cached; "
            "run the prompt, then pin it",
            param="prompt",
        )
    if blocks.num_pinned + outcome.num_new > limit:
        raise RequestError(
            _pins_full(outcome, limit, config, blocks), param="prompt", code=PINS_FULL
        )


def _pins_full(
    outcome: PinOutcome, limit: int, config: SchedulerConfig, blocks: BlockManager
) -> str:
    num_wanted = blocks.num_pinned + outcome.num_new
    left, share = max(limit - blocks.num_pinned, 0), _share_limit(config, blocks)
    reason = f"max_pinned_share {config.max_pinned_share:g} of {blocks.num_usable}"
    if limit < share:
        reason = (
            f"{blocks.num_usable - limit} of {blocks.num_usable} are for a request in the queue"
        )
    return (
        f"the prefix has {outcome.num_blocks} blocks, {outcome.num_new} of them not pinned yet, "
        f"and {blocks.num_pinned} are pinned: that makes {num_wanted}, but the most is {limit} "
        f"({reason}). Pin at most {left * config.block_size} more tokens, or unpin "
        f"{num_wanted - limit} blocks first"
    )


def _share_limit(config: SchedulerConfig, blocks: BlockManager) -> int:
    return int(config.max_pinned_share * blocks.num_usable)
