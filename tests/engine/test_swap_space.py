"""Blocks that leave the device for the host: what is kept, what is found, when copying pays."""

from __future__ import annotations

import math

import pytest
from shadow_traffic import CONFIG

from hal.engine.batch import Swaps
from hal.engine.scheduler_config import SchedulerConfig
from hal.engine.swap_space import SwapCosts, SwapSpace
from hal.errors import ConfigError, UnsupportedError

A, B, C, D = (bytes([n]) * 16 for n in range(4))


def make_swap(num_blocks: int = 2) -> SwapSpace:
    return SwapSpace(num_blocks, SwapCosts(4))


def taken(swap: SwapSpace) -> tuple[list[list[int]], list[list[int]]]:
    swaps = swap.take()
    assert isinstance(swaps, Swaps)
    swap.settle(swaps.num_blocks, 0.0, None)
    return swaps.outs.tolist(), swaps.ins.tolist()


def keep(swap: SwapSpace, *keys: bytes, used_at: float = 1.0) -> None:
    """Each evicted from the block 10 + its number."""
    swap.keep(keys, [10 + key[0] for key in keys], [used_at] * len(keys))
    swap.check()


def found(swap: SwapSpace, *keys: bytes, oldest: float = 0.0) -> int:
    return len(swap.find(keys, oldest))


def test_what_was_evicted_is_found_by_its_key_and_copied_once() -> None:
    swap = make_swap()
    assert swap.take() is None
    keep(swap, A, B)
    assert (found(swap, A, B, C), found(swap, C, A), swap.num_used) == (2, 0, 2)
    assert taken(swap) == ([[10, 0], [11, 1]], [])
    keep(swap, A)
    assert swap.take() is None
    assert (swap.num_outs, swap.num_ins) == (2, 0)


def test_the_least_recently_used_goes_first_and_what_comes_back_stays() -> None:
    swap = make_swap()
    keep(swap, A, B)
    taken(swap)
    places = swap.find([A], 0.0)
    swap.hold(places)
    swap.restore(places, [30], 2.0)
    keep(swap, C)  # B is older now
    assert (found(swap, A), found(swap, B), found(swap, C)) == (1, 0, 1)
    assert taken(swap) == ([[12, 1]], [[0, 30]])


def test_a_block_that_the_next_step_reads_keeps_its_place() -> None:
    swap = make_swap(1)
    keep(swap, A)
    taken(swap)
    places = swap.find([A], 0.0)
    swap.hold(places)
    keep(swap, B)
    assert (found(swap, A), found(swap, B)) == (1, 0)
    swap.restore(places, [30], 2.0)
    taken(swap)
    keep(swap, B)
    assert (found(swap, A), found(swap, B)) == (0, 1)


def test_of_two_blocks_that_get_one_place_in_a_step_the_last_is_copied() -> None:
    swap = make_swap(1)
    keep(swap, A, B)
    assert taken(swap) == ([[11, 0]], [])


def test_what_nobody_used_for_too_long_is_not_found() -> None:
    swap = make_swap()
    keep(swap, A, used_at=5.0)
    assert (found(swap, A, oldest=4.9), found(swap, A, oldest=5.0)) == (1, 0)
    assert found(swap, A, oldest=-math.inf) == 1


def test_a_lost_step_and_wrong_contents_are_forgotten() -> None:
    swap = make_swap(3)
    keep(swap, A, B)
    taken(swap)
    keep(swap, C)
    assert swap.take() is not None
    swap.lose()
    assert (found(swap, A), found(swap, B), found(swap, C)) == (1, 1, 0)
    swap.forget([A, D])
    assert (found(swap, A), found(swap, B), swap.num_used) == (0, 1, 1)
    swap.check()


def test_copies_are_made_while_they_take_less_than_computing() -> None:
    costs = SwapCosts(block_size=4)
    assert costs.is_cheaper(2)  # nothing is known
    costs.record(10, 20.0, None)
    assert costs.is_cheaper(2)
    costs.record(0, 0.0, token_s=0.7)  # a block: 2.8 s computed, 2 s copied
    assert (costs.is_cheaper(1), costs.is_cheaper(2)) == (True, False)
    costs.record(10, 5.0, token_s=0.7)
    assert costs.is_cheaper(2)


def test_a_cost_is_measured_again_after_many_refusals() -> None:
    costs = SwapCosts(block_size=4)
    costs.record(1, 4.0, token_s=0.5)  # twice what computing takes
    assert [costs.is_cheaper(1) for _ in range(40)].index(True) == 36


def test_the_swap_space_asks_what_pays() -> None:
    swap = make_swap()
    keep(swap, A)
    assert swap.take() is not None
    swap.settle(1, 3.0, token_s=1.0)  # 4 s for a block: once is cheaper, there and back is not
    keep(swap, B)
    assert (found(swap, A), found(swap, B), swap.num_used) == (1, 0, 1)
    swap.settle(1, 3.0, token_s=0.1)
    assert found(swap, A) == 0


def config(**settings: object) -> SchedulerConfig:
    fields = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    return SchedulerConfig(**{**fields, "num_swap_blocks": 4, **settings})


def test_a_swap_space_needs_a_cache_and_no_window() -> None:
    assert config().num_swap_blocks == 4
    with pytest.raises(ConfigError, match="prefix cache, which is off"):
        config(prefix_caching=False)
    with pytest.raises(UnsupportedError, match=r"sliding window \(6 tokens\)"):
        config(window=6)
