"""Refuses, with the numbers, a request that could never finish however long it waited."""

from __future__ import annotations

from hal.engine.block_manager import BlockManager
from hal.engine.request import Request
from hal.engine.scheduler_config import SchedulerConfig
from hal.errors import ContextLengthError, RequestError


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


def _check_blocks(request: Request, config: SchedulerConfig, blocks: BlockManager) -> None:
    num_prompt, max_tokens = len(request.prompt_token_ids), request.params.max_tokens
    assert max_tokens is not None, "Request.params.max_tokens is resolved by the caller"
    # The last sampled token is never fed back, so it needs no place in the cache.
    num_tokens = min(num_prompt + max_tokens, config.max_model_len) - 1
    chunk = min(num_tokens, config.max_num_batched_tokens)
    needed = blocks.peak_blocks(num_tokens, chunk)
    if needed <= blocks.num_usable:
        return
    capacity = blocks.num_usable * config.block_size
    raise ContextLengthError(
        f"the request needs {num_tokens} tokens of KV cache ({num_prompt} prompt + {max_tokens} "
        f"output, the last one not kept) = {needed} blocks of {config.block_size}, but the whole "
        f"pool has {blocks.num_usable} blocks ({capacity} tokens). "
        + _remedy(num_prompt, capacity)
        + f" or give the engine memory for {needed} blocks",
        param="max_tokens" if num_prompt <= capacity else "prompt",
    )


def _remedy(num_prompt: int, capacity: int) -> str:
    if num_prompt <= capacity:
        return f"Lower max_tokens to {capacity - num_prompt + 1}"
    return f"Shorten the prompt to {capacity} tokens"
