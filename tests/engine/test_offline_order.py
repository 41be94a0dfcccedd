"""Many prompts at once: shared prefixes meet, long requests start early, nothing else changes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from shadow_traffic import CONFIG, expect_all, make_engine, make_request, run_all

from hal.engine.offline_order import offline_order
from hal.engine.request import EngineStats, Request

BLOCK_SIZE = CONFIG.block_size
TIGHT = replace(CONFIG, num_blocks=25, max_num_batched_tokens=24)


def families_of_prompts() -> list[Request]:
    """6 prefixes of 5 blocks, 6 prompts each, dealt out like cards."""
    return [
        make_request(f"{turn}-{family}", (*[family + 1] * 20, 10 + turn), max_tokens=4)
        for turn in range(6)
        for family in range(6)
    ]


def run_in(order: Sequence[int], requests: list[Request]) -> EngineStats:
    engine, _ = make_engine(TIGHT)
    for index in order:
        engine.add(requests[index])
    assert run_all(engine) == expect_all(requests, TIGHT)
    return engine.stats()


def test_shared_prefixes_meet_while_they_are_cached() -> None:
    requests = families_of_prompts()
    plain = run_in(range(len(requests)), requests)
    ordered = run_in(offline_order(requests, BLOCK_SIZE), requests)
    assert ordered.num_prefix_hits >= plain.num_prefix_hits + 400
    assert ordered.num_steps < plain.num_steps


def test_the_longest_does_not_run_on_alone_at_the_end() -> None:
    lengths = [2] * 8 + [16] * 2
    requests = [
        make_request(str(n), (n + 1, 2, 3), max_tokens=length, ignore_eos=True)
        for n, length in enumerate(lengths)
    ]
    order = offline_order(requests, BLOCK_SIZE)
    assert order == [8, 9, *range(8)]
    plain, ordered = run_in(range(10), requests), run_in(order, requests)
    assert ordered.num_steps < plain.num_steps


def test_every_request_has_one_place_and_equals_keep_theirs() -> None:
    rng = random.Random(0)
    requests = [
        make_request(str(n), tuple(rng.choices(range(1, 3), k=rng.randint(1, 9))))
        for n in range(200)
    ]
    order = offline_order(requests, BLOCK_SIZE)
    assert sorted(order) == list(range(200))
    assert offline_order([requests[0]] * 3, BLOCK_SIZE) == [0, 1, 2]
    assert offline_order([], BLOCK_SIZE) == []
