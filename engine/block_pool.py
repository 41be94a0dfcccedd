"""The block manager that a scheduler's config asks for."""

from __future__ import annotations

from hal.engine.block_manager import BlockManager
from hal.engine.prefix_cache import Clock
from hal.engine.scheduler_config import SchedulerConfig
from hal.engine.swap_space import SwapCosts, SwapSpace


def make_blocks(config: SchedulerConfig, clock: Clock) -> BlockManager:
    return BlockManager(
        config.num_blocks,
        config.block_size,
        config.max_num_seqs,
        -(-config.max_model_len // config.block_size),
        window=config.window,
        cache=config.cache if config.prefix_caching else None,
        clock=clock,
        swap=make_swap(config),
    )


def make_swap(config: SchedulerConfig) -> SwapSpace | None:
    if not config.num_swap_blocks:
        return None
    return SwapSpace(config.num_swap_blocks, SwapCosts(config.block_size))
