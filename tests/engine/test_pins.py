"""Pinned prefixes: kept under any pressure, bounded, and never at the cost of a request."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from shadow_traffic import CONFIG, POISON, expect_all, make_engine, make_request, run_all

from hal import LLM, AsyncLLM, SamplingParams
from hal.engine.engine import Engine
from hal.errors import PINS_FULL, ConfigError, ContextLengthError, EngineError, RequestError

PREFIX = tuple(range(1, 13))
"""3 blocks of 4."""
SMALL = replace(CONFIG, num_blocks=13)


def engine_with(prompt: tuple[int, ...], *, name: str = "p") -> Engine:
    """12 usable blocks, and `prompt` pinned after it ran."""
    engine, _ = make_engine(SMALL)
    engine.add(make_request("warm", prompt, max_tokens=1))
    run_all(engine)
    assert engine.pin(name, prompt) == len(prompt) // 4 * 4
    return engine


def test_a_pinned_prefix_outlives_what_evicts_all_others() -> None:
    engine = engine_with(PREFIX)
    others = [make_request(f"o{n}", (n + 20,) * 16, max_tokens=20) for n in range(8)]
    for request in others:
        engine.add(request)
    assert run_all(engine) == expect_all(others, SMALL)
    stats = engine.stats()
    assert stats.num_evicted > 0
    assert stats.num_preemptions > 0
    assert (stats.num_blocks_pinned, stats.num_pins) == (3, 1)
    hits = stats.num_prefix_hits
    again = make_request("again", (*PREFIX, 30))
    engine.add(again)
    assert run_all(engine) == expect_all([again], SMALL)
    assert engine.stats().num_prefix_hits == hits + 12


def test_an_unpinned_prefix_is_evicted_like_any_other() -> None:
    engine = engine_with(PREFIX)
    engine.unpin("p")
    stats = engine.stats()
    assert (stats.num_blocks_pinned, stats.num_pins, stats.num_blocks_cached) == (0, 0, 3)
    for number in range(8):
        engine.add(make_request(f"o{number}", (number + 20,) * 16, max_tokens=20))
    run_all(engine)
    hits = engine.stats().num_prefix_hits
    engine.add(make_request("again", (*PREFIX, 30)))
    run_all(engine)
    assert engine.stats().num_prefix_hits == hits
    with pytest.raises(RequestError, match="no pin named 'p'"):
        engine.unpin("p")


def test_pins_that_overlap_count_their_blocks_once_and_end_one_by_one() -> None:
    engine = engine_with(PREFIX)
    assert engine.pin("start", PREFIX[:8]) == 8
    assert engine.stats().num_blocks_pinned == 3
    engine.unpin("p")
    assert (engine.stats().num_blocks_pinned, engine.stats().num_blocks_cached) == (2, 1)
    engine.scheduler.blocks.check()


def test_too_many_pinned_blocks_are_refused_with_the_numbers() -> None:
    engine = engine_with(PREFIX)
    other = tuple(range(20, 36))
    engine.add(make_request("warm 2", other, max_tokens=1))
    run_all(engine)
    with pytest.raises(
        RequestError, match="4 blocks, 4 .* 3 are pinned.* makes 7, .* 6 "
    ) as caught:
        engine.pin("q", other)
    assert caught.value.code == PINS_FULL
    assert "Pin at most 12 more tokens, or unpin 1 blocks" in caught.value.message
    assert engine.stats().num_pins == 1
    assert engine.pin("q", other[:12]) == 12


def test_no_pin_takes_the_blocks_that_a_queued_request_will_need() -> None:
    engine, _ = make_engine(SMALL)
    engine.add(make_request("warm", PREFIX, max_tokens=1))
    run_all(engine)
    large = make_request("large", (30,) * 20, max_tokens=20)
    engine.add(large)  # 39 tokens, 10 of 12 blocks
    with pytest.raises(RequestError, match="the most is 2 .10 of 12 are for a request") as caught:
        engine.pin("p", PREFIX)
    assert caught.value.code == PINS_FULL
    assert run_all(engine) == expect_all([large], SMALL)
    engine.add(make_request("warm again", PREFIX, max_tokens=1))
    run_all(engine)
    engine.pin("p", PREFIX)
    with pytest.raises(ContextLengthError, match="12 blocks, 3 of them pinned .36 tokens."):
        engine.add(large)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [((1, 2, 3), "3 tokens fill no block of 4"), ((*PREFIX, 7, 7, 7, 7), "first 3 of 4 blocks")],
)
def test_what_is_not_cached_is_not_pinned(tokens: tuple[int, ...], message: str) -> None:
    engine = engine_with(PREFIX)
    with pytest.raises(RequestError, match=message):
        engine.pin("q", tokens)
    with pytest.raises(RequestError, match="a pin named 'p'"):
        engine.pin("p", PREFIX)
    with pytest.raises(RequestError, match="0 of 3 blocks"):
        engine.pin("q", PREFIX, "another tenant")


def test_nothing_is_pinned_without_a_cache_and_a_share_is_one() -> None:
    engine, _ = make_engine(replace(SMALL, prefix_caching=False))
    with pytest.raises(RequestError, match="prefix caching is off"):
        engine.pin("p", PREFIX)
    with pytest.raises(ConfigError, match="max_pinned_share"):
        replace(SMALL, max_pinned_share=1.5)


def test_a_request_that_fails_behind_a_pinned_prefix_does_not_end_the_pin() -> None:
    engine, _ = make_engine(SMALL, POISON)
    engine.add(make_request("warm", PREFIX, max_tokens=1))
    run_all(engine)
    engine.pin("p", PREFIX)
    engine.add(make_request("bad", (*PREFIX, POISON)))
    run_all(engine)
    assert engine.stats().num_pins == 1
    hits = engine.stats().num_prefix_hits
    engine.add(make_request("good", (*PREFIX, 1)))
    run_all(engine)
    assert engine.stats().num_prefix_hits == hits + 12


async def _pin_and_unpin() -> None:
    prompt, greedy = list(range(3, 40)), SamplingParams(temperature=0, max_tokens=8)
    async with AsyncLLM("hal-tiny", device="cpu", block_size=16, max_pinned_share=0.5) as llm:
        plain = (await llm.generate([prompt], greedy))[0].outputs[0].token_ids
        name = await llm.pin(prompt)
        again = await asyncio.gather(llm.generate([prompt], greedy), llm.pin(prompt[::-1]))
        assert again[0][0].outputs[0].token_ids == plain
        await llm.unpin(name)
        with pytest.raises(RequestError, match="no pin"):
            await llm.unpin(name)
        with pytest.raises(RequestError, match="fill no block"):
            await llm.pin([1, 2, 3])
    with pytest.raises(EngineError, match="closed"):
        await llm.unpin(name)


def test_async_llm_pins_between_its_steps() -> None:
    asyncio.run(_pin_and_unpin())


def test_llm_computes_what_it_pins() -> None:
    prompt, greedy = list(range(3, 40)), SamplingParams(temperature=0, max_tokens=8)
    with LLM("hal-tiny", device="cpu", block_size=16) as llm:
        plain = llm.generate([prompt], greedy)[0].outputs[0].token_ids
        name = llm.pin(prompt)
        assert llm.generate([prompt], greedy)[0].outputs[0].token_ids == plain
        llm.unpin(name)
        with pytest.raises(RequestError, match="no pin"):
            llm.unpin(name)
