"""Whatever the scheduler does, each sequence must get the tokens that it would get alone.

The shadow executor reads every sequence's history back through its block table, so the plain
generation below differs from the engine's as soon as one block, copy or share is wrong.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from shadow_traffic import (
    CONFIG,
    MAX_MODEL_LEN,
    POISON,
    expect_all,
    generate_alone,
    make_engine,
    make_request,
    run_all,
)

from hal.engine.batch import TOKEN_ON_DEVICE
from hal.engine.request import FinishReason, Output, Request
from hal.engine.scheduler import Scheduler, SchedulerConfig
from hal.errors import ConfigError, ContextLengthError, RequestError

CONFIGS = {
    "roomy": CONFIG,
    "unchunked": replace(CONFIG, chunked_prefill=False, max_num_batched_tokens=MAX_MODEL_LEN),
    "uncached": replace(CONFIG, prefix_caching=False),
    "tiny pool": replace(CONFIG, num_blocks=11),
    "tiny pool, uncached": replace(CONFIG, num_blocks=11, prefix_caching=False),
    "window": replace(CONFIG, window=7, num_blocks=11),
    "window 1": replace(CONFIG, window=1, num_blocks=8),
    "block size 1": replace(CONFIG, block_size=1, num_blocks=44),
    "one slot": replace(CONFIG, max_num_seqs=1, max_num_batched_tokens=1),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_sequence_gets_the_tokens_it_would_get_alone(config: SchedulerConfig) -> None:
    rng = random.Random(1)
    requests = [
        make_request(
            str(number),
            tuple([5, 6, 7, 8, 9] * 4)[: rng.randint(1, 20)] + (rng.randint(1, 3),),
            priority=rng.randint(0, 1),
            max_tokens=rng.randint(1, 18),
            n=rng.randint(1, min(3, config.max_num_seqs)),
            seed=number,
            temperature=rng.choice([0.0, 1.0]),
        )
        for number in range(30)
    ]
    engine, _ = make_engine(config)
    for request in requests:
        engine.add(request)
    assert run_all(engine) == expect_all(requests, config)
    if config.num_blocks == 11 and config.window is None:
        assert engine.stats().num_preemptions > 0
    if config.prefix_caching:
        assert engine.stats().num_prefix_hits > 0


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, go and are aborted at any time; what is left must be as if alone."""

    @initialize(
        num_blocks=st.sampled_from([11, 14, 60]),
        window=st.sampled_from([None, None, 6]),
        budget=st.sampled_from([4, 7, MAX_MODEL_LEN]),
        prefix_caching=st.booleans(),
    )
    def start(self, num_blocks: int, window: int | None, budget: int, prefix_caching: bool) -> None:
        self.config = replace(
            CONFIG,
            num_blocks=num_blocks,
            window=window,
            max_num_batched_tokens=budget,
            chunked_prefill=budget < MAX_MODEL_LEN,
            prefix_caching=prefix_caching,
        )
        self.engine, _ = make_engine(self.config)
        self.alive: dict[str, Request] = {}
        self.tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.finished: dict[tuple[str, int], FinishReason] = {}
        self.num_added = 0

    @rule(
        shared=st.integers(0, 16),
        own=st.lists(st.integers(1, 3), min_size=1, max_size=6),
        n=st.integers(1, 4),
        max_tokens=st.integers(1, 20),
        priority=st.integers(-1, 1),
        temperature=st.sampled_from([0.0, 1.0]),
        min_tokens=st.integers(0, 2),
    )
    def add(
        self,
        shared: int,
        own: list[int],
        n: int,
        max_tokens: int,
        priority: int,
        temperature: float,
        min_tokens: int,
    ) -> None:
        request = make_request(
            str(self.num_added),
            (*range(10, 10 + shared), *own),
            priority,
            n=n,
            max_tokens=max_tokens,
            temperature=temperature,
            min_tokens=min(min_tokens, max_tokens),
            seed=self.num_added,
        )
        self.num_added += 1
        self.engine.add(request)
        self.alive[request.request_id] = request

    @rule(num_steps=st.integers(1, 8))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            for output in self.engine.step():
                self.take(output)

    def take(self, output: Output) -> None:
        key = output.request_id, output.index
        assert key not in self.finished, "output after the end"
        assert output.request_id in self.alive, "output of an aborted request"
        self.tokens[key].extend(output.token_ids)
        if output.finish_reason is not None:
            self.finished[key] = output.finish_reason

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.num_added == 0:
            return
        request_id = str(data.draw(st.integers(0, self.num_added - 1)))
        outputs = self.engine.abort(request_id)
        assert all(output.finish_reason is FinishReason.ABORT for output in outputs)
        assert not any((request_id, output.index) in self.finished for output in outputs)
        assert self.engine.abort(request_id) == []
        if outputs:
            del self.alive[request_id]

    @invariant()
    def blocks_are_consistent(self) -> None:
        self.engine.scheduler.blocks.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(5000):
            if not self.engine.has_work:
                break
            self.step(1)
        stats = self.engine.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)
        for request in self.alive.values():
            for index in range(request.params.n):
                expected = generate_alone(request, index, self.config)
                assert self.tokens[request.request_id, index] == expected


TestAnyTraffic = SchedulerMachine.TestCase
# `--hypothesis-profile long` searches deeper, see conftest.py.
TestAnyTraffic.settings = (
    settings()
    if settings.get_current_profile_name() == "long"
    else settings(deadline=None, max_examples=40, stateful_step_count=30)
)


def test_decodes_run_before_prefills_and_the_budget_is_filled() -> None:
    engine, executor = make_engine(CONFIG)
    engine.add(make_request("short", (1,), ignore_eos=True, max_tokens=20))
    engine.step()
    engine.add(make_request("long", tuple(range(1, 31)), ignore_eos=True))
    for _ in range(4):
        engine.step()
    assert [batch.q_lens.tolist() for batch in executor.batches] == [
        [1],
        [1, 11],
        [1, 11],
        [1, 8],
        [1, 1],
    ]
    assert executor.batches[4].token_ids.tolist() == [TOKEN_ON_DEVICE, TOKEN_ON_DEVICE]
    assert [batch.num_samples for batch in executor.batches] == [1, 1, 1, 2, 2]


def test_an_unchunked_prompt_waits_for_the_whole_budget() -> None:
    config = replace(CONFIG, chunked_prefill=False, max_num_batched_tokens=MAX_MODEL_LEN)
    engine, executor = make_engine(config)
    for number in range(3):
        prompt = (number + 1,) * 18
        engine.add(make_request(str(number), prompt, ignore_eos=True, max_tokens=3))
    run_all(engine)
    assert [batch.q_lens.tolist() for batch in executor.batches] == [
        [18, 18],
        [1, 1, 18],
        [1, 1, 1],
        [1],
    ]


def test_a_static_batch_takes_nobody_in_before_all_of_it_are_done() -> None:
    config = replace(CONFIG, static_batching=True, max_num_seqs=3)
    engine, _ = make_engine(config)
    for request_id, max_tokens in (("a", 1), ("b", 3), ("c", 2), ("d", 1), ("e", 1)):
        engine.add(make_request(request_id, max_tokens=max_tokens, ignore_eos=True))
    steps = [[output.request_id for output in engine.step()] for _ in range(4)]
    assert steps == [["a", "b", "c"], ["b", "c"], ["b"], ["d", "e"]]


def test_a_static_batch_fills_over_several_steps_of_prefill() -> None:
    config = replace(CONFIG, static_batching=True, max_num_batched_tokens=6)
    engine, executor = make_engine(config)
    for number in range(4):
        request = make_request(str(number), (number + 1,) * 5, max_tokens=9, ignore_eos=True)
        engine.add(request)
    run_all(engine)
    assert max(batch.num_seqs for batch in executor.batches) == 4


def test_lower_priority_numbers_run_first_then_first_come() -> None:
    config = replace(CONFIG, max_num_seqs=1)
    engine, _ = make_engine(config)
    for request_id, priority in (("a", 1), ("b", 0), ("c", 1), ("d", 0)):
        engine.add(make_request(request_id, priority=priority, max_tokens=1))
    order = [output.request_id for _ in range(4) for output in engine.step()]
    assert order == ["b", "d", "a", "c"]


def test_a_prompt_longer_than_the_pool_runs_behind_a_window() -> None:
    config = replace(CONFIG, num_blocks=8, window=6)
    engine, executor = make_engine(config)
    request = make_request("long", tuple(range(1, 34)), max_tokens=4, ignore_eos=True)
    engine.add(request)
    assert run_all(engine) == expect_all([request], config)
    assert executor.batches[0].q_lens.tolist() == [12]


def test_n_choices_share_one_prefill_and_copy_only_what_they_write() -> None:
    engine, executor = make_engine(CONFIG)
    request = make_request(prompt=(1, 2, 3, 4, 5, 6), n=3, temperature=1.0, seed=7, max_tokens=2)
    engine.add(request)
    assert run_all(engine) == expect_all([request], CONFIG)
    prefill, decode = executor.batches
    assert prefill.q_lens.tolist() == [6]
    assert prefill.sample_index.tolist() == [5, 5, 5]
    assert len(set(prefill.sampling.settings.seeds.tolist())) == 3
    assert len(decode.block_copies) == 2, "the last of three writes in place"


def test_n_choices_wait_until_all_have_a_slot() -> None:
    engine, _ = make_engine(CONFIG)
    engine.add(make_request("a", max_tokens=4, n=2, ignore_eos=True))
    engine.add(make_request("b", max_tokens=2, n=3, ignore_eos=True))
    engine.add(make_request("c", max_tokens=1, ignore_eos=True))
    steps = [[output.request_id for output in engine.step()] for _ in range(7)]
    assert steps == [["a"] * 2] * 4 + [["b"] * 3 + ["c"], ["b"] * 3, []]


def test_a_shared_prefix_is_computed_once_and_only_when_it_is_there() -> None:
    engine, executor = make_engine(replace(CONFIG, max_num_batched_tokens=40))
    prompt = tuple(range(1, 10))
    engine.add(make_request("a", (*prompt, 11), max_tokens=2, ignore_eos=True))
    engine.add(make_request("b", (*prompt, 12), max_tokens=2, ignore_eos=True))
    engine.step()
    assert executor.batches[0].q_lens.tolist() == [10, 10], "not shareable before it is computed"
    engine.add(make_request("c", (*prompt, 13), max_tokens=2, ignore_eos=True))
    outputs = engine.step()
    assert executor.batches[1].q_lens.tolist() == [1, 1, 2]
    assert [output.num_cached_tokens for output in outputs] == [0, 0, 8]
    stats = engine.stats()
    assert (stats.num_prefix_queries, stats.num_prefix_hits) == (30, 8)


def test_aborting_keeps_the_computed_blocks_findable() -> None:
    engine, executor = make_engine(CONFIG)
    engine.add(make_request("a", tuple(range(1, 10))))
    engine.step()
    assert [output.finish_reason for output in engine.abort("a")] == [FinishReason.ABORT]
    assert engine.stats().num_blocks_used == 0
    engine.add(make_request("b", tuple(range(1, 10))))
    engine.step()
    assert executor.batches[1].q_lens.tolist() == [1]


def test_ids_of_aborted_choices_are_reported_before_they_are_forked() -> None:
    engine, _ = make_engine(CONFIG)
    engine.add(make_request("a", tuple(range(1, 30)), n=3))
    engine.step()
    assert [output.index for output in engine.abort("a")] == [0, 1, 2]
    assert engine.abort("a") == []
    assert engine.abort("never seen") == []
    assert not engine.has_work
    engine.add(make_request("b", n=4, max_tokens=1))
    assert len(engine.step()) == 4, "all slots are free again"


def test_aborting_one_choice_leaves_its_siblings_as_they_were() -> None:
    request = make_request("a", tuple(range(1, 30)), n=3, max_tokens=6, ignore_eos=True)
    engine, _ = make_engine(CONFIG)
    engine.add(request)
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    aborted: list[Output] = []
    while engine.has_work:
        for output in engine.step():
            tokens[output.index].extend(output.token_ids)
        if len(tokens[0]) == 2:
            aborted += engine.abort("a", 0)
        engine.scheduler.blocks.check()
    assert [(output.index, output.finish_reason) for output in aborted] == [(0, FinishReason.ABORT)]
    assert len(tokens[0]) == 2
    assert [tokens[i] for i in (1, 2)] == [generate_alone(request, i, CONFIG) for i in (1, 2)]
    assert engine.stats().num_blocks_used == 0


def test_length_stop_and_ids_end_a_sequence() -> None:
    request = make_request(prompt=(1,), max_tokens=30, ignore_eos=True)
    plain = generate_alone(request, 0, CONFIG)
    engine, _ = make_engine(CONFIG)
    engine.add(replace(request, request_id="length", params=replace(request.params, max_tokens=3)))
    stops = replace(request.params, stop_token_ids=[plain[1]])
    engine.add(replace(request, request_id="stop", params=stops))
    engine.add(replace(request, request_id="model", prompt_token_ids=(1,) * (MAX_MODEL_LEN - 2)))
    eos = replace(request.params, ignore_eos=False)
    engine.add(replace(request, request_id="eos", params=eos, eos_token_ids=frozenset({plain[2]})))
    ends: dict[str, Output] = {}
    lengths: dict[str, int] = defaultdict(int)
    while engine.has_work:
        for output in engine.step():
            lengths[output.request_id] += 1
            ends[output.request_id] = output
    assert lengths == {"length": 3, "stop": 2, "model": 2, "eos": 3}
    assert {name: (end.finish_reason, end.stop_reason) for name, end in ends.items()} == {
        "length": (FinishReason.LENGTH, None),
        "stop": (FinishReason.STOP, plain[1]),
        "model": (FinishReason.LENGTH, None),
        "eos": (FinishReason.STOP, None),
    }


def test_ignored_eos_is_a_token_like_any_other() -> None:
    request = make_request(max_tokens=6, ignore_eos=True)
    plain = generate_alone(request, 0, CONFIG)
    engine, _ = make_engine(CONFIG)
    engine.add(replace(request, eos_token_ids=frozenset(plain)))
    assert run_all(engine) == {("r", 0): plain}


def test_a_row_that_is_not_finite_ends_alone_and_publishes_nothing() -> None:
    engine, executor = make_engine(CONFIG, poison=POISON)
    sick, well = (1, 2, 3, 4, POISON, 6, 7, 8, 9), (9, 2, 3, 4, 10, 6, 7, 8, 9)
    engine.add(make_request("sick", sick))
    engine.add(make_request("well", well, max_tokens=4, ignore_eos=True))
    outputs = [output for _ in range(3) for output in engine.step()]
    (end,) = (output for output in outputs if output.request_id == "sick")
    assert end.finish_reason is FinishReason.ERROR
    assert end.token_ids == ()
    assert end.error is not None and "not finite" in end.error
    assert run_all(engine).keys() == {("well", 0)}
    assert engine.stats().num_generated_tokens == 4
    engine.add(make_request("again", sick))
    engine.step()
    assert executor.batches[-1].q_lens[-1] == len(sick), "nothing of it may be reused"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_num_batched_tokens": 3}, "max_num_batched_tokens 3 is below max_num_seqs 4"),
        ({"chunked_prefill": False}, "12 is below max_model_len 40"),
        ({"num_blocks": 1}, "num_blocks must be at least 2; got 1"),
        ({"window": 0}, "window must be at least 1; got 0"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(CONFIG, **change)  # type: ignore[arg-type]


def test_a_request_that_never_fits_the_pool_is_refused_with_the_numbers() -> None:
    scheduler = Scheduler(replace(CONFIG, num_blocks=6))
    scheduler.add(make_request("fits", (1,) * 13, max_tokens=8), seed=0)
    with pytest.raises(ContextLengthError) as caught:
        scheduler.add(make_request("large", (1,) * 13, max_tokens=9), seed=0)
    for words in ("21 tokens", "6 blocks of 4", "5 blocks (20 tokens)", "Lower max_tokens to 8"):
        assert words in str(caught.value)
    with pytest.raises(ContextLengthError, match="Shorten the prompt to 20 tokens"):
        scheduler.add(make_request("huge", (1,) * 21, max_tokens=1), seed=0)
    assert scheduler.num_waiting == 1


def test_requests_that_can_never_run_are_refused() -> None:
    scheduler = Scheduler(CONFIG)
    with pytest.raises(RequestError, match="n 5 is above max_num_seqs 4"):
        scheduler.add(make_request(n=5), seed=0)
    with pytest.raises(ContextLengthError, match="40 tokens, but max_model_len is 40"):
        scheduler.add(make_request(prompt=(1,) * 40), seed=0)
    with pytest.raises(RequestError, match="prompt is empty"):
        scheduler.add(make_request(prompt=()), seed=0)
    scheduler.add(make_request("twice"), seed=0)
    with pytest.raises(RequestError, match="'twice' is already running"):
        scheduler.add(make_request("twice"), seed=0)
