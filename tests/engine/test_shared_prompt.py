"""One system prompt before many requests: how many tokens are computed at all."""

from __future__ import annotations

import random

import pytest
from shadow_traffic import WatchedExecutor, expect_all, make_request, run_all

from hal.engine.engine import Engine
from hal.engine.request import Request
from hal.engine.scheduler import SchedulerConfig

BLOCK_SIZE = 16
SYSTEM = tuple(1 + 7 * n % 37 for n in range(512))
NUM_REQUESTS = 64


def config(**settings: object) -> SchedulerConfig:
    base: dict[str, object] = {
        "max_num_seqs": NUM_REQUESTS,
        "max_num_batched_tokens": 2048,
        "max_model_len": 600,
        "block_size": BLOCK_SIZE,
        "num_blocks": 400,
    }
    return SchedulerConfig(**{**base, **settings})  # type: ignore[arg-type]  # checked by it


def requests(name: str) -> list[Request]:
    return [
        make_request(f"{name} {n}", (*SYSTEM, *(n % 38, 3, n % 5)), max_tokens=4)
        for n in range(NUM_REQUESTS)
    ]


def num_prefilled(executor: WatchedExecutor) -> int:
    return sum(int((batch.token_ids >= 0).sum()) for batch in executor.batches)


def test_a_warm_prefix_leaves_only_the_questions_to_compute() -> None:
    settings = config()
    executor = WatchedExecutor(settings)
    engine = Engine(settings, executor, random.Random(0))
    engine.add(make_request("warm", (*SYSTEM, 1), max_tokens=1))
    run_all(engine)
    executor.batches.clear()
    asked = requests("r")
    for request in asked:
        engine.add(request)
    assert run_all(engine) == expect_all(asked, settings)
    assert num_prefilled(executor) == 3 * NUM_REQUESTS  # of 515 x 64


def test_a_cold_prefix_is_computed_by_those_of_the_first_step_only() -> None:
    settings = config()
    executor = WatchedExecutor(settings)
    engine = Engine(settings, executor, random.Random(0))
    asked = requests("r")
    for request in asked:
        engine.add(request)
    assert run_all(engine) == expect_all(asked, settings)
    first = 2048  # 3 whole prompts and most of a fourth
    assert num_prefilled(executor) == first + (4 * 515 - first) + 3 * (NUM_REQUESTS - 4)


@pytest.mark.parametrize("swap", [0, 64])
def test_a_prefix_that_was_evicted_is_computed_or_copied_as_a_whole(swap: int) -> None:
    settings = config(num_blocks=40, num_swap_blocks=swap)
    executor = WatchedExecutor(settings)
    engine = Engine(settings, executor, random.Random(0))
    for number, prompt in enumerate([SYSTEM, SYSTEM[::-1], SYSTEM]):
        executor.batches.clear()
        engine.add(make_request(str(number), (*prompt, 5), max_tokens=1))
        run_all(engine)
    stats = engine.stats()
    assert (stats.num_swapped_out > 0) == (swap > 0)
    # 39 blocks keep the first 6 of the first prompt's 32 beside another's 33.
    kept = 6 if swap == 0 else 32
    assert num_prefilled(executor) == 513 - kept * BLOCK_SIZE
    assert stats.num_swapped_in == (26 if swap else 0)
