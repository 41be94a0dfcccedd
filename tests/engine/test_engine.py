"""The step loop: requests in, outputs out, and what a failing executor leaves behind."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from shadow_traffic import (
    CONFIG,
    VOCAB_SIZE,
    WatchedExecutor,
    expect_all,
    make_engine,
    make_request,
    run_all,
)

from hal.engine.batch import Batch, SampledLogprobs
from hal.engine.engine import Engine
from hal.engine.request import FinishReason
from hal.engine.shadow_executor import ShadowStep
from hal.errors import ConfigError, EngineError, RequestError


class FaultyExecutor(WatchedExecutor):
    """Raises `fault` once, in step `at`; before it answers, so nothing of the step is known."""

    def __init__(self, fault: BaseException, at: int) -> None:
        super().__init__(CONFIG)
        self.fault = fault
        self.at = at

    def submit(self, batch: Batch) -> ShadowStep:
        if batch.step == self.at:
            raise self.fault
        return super().submit(batch)


class AnsweringExecutor(WatchedExecutor):
    """Answers every batch with what `change` makes of the shadow's result."""

    def __init__(self, **change: object) -> None:
        super().__init__(CONFIG)
        self.change = change

    def submit(self, batch: Batch) -> ShadowStep:
        result = super().submit(batch).wait()
        return ShadowStep(replace(result, **self.change))  # type: ignore[arg-type]


def test_a_step_without_work_does_nothing() -> None:
    engine, executor = make_engine(CONFIG)
    assert not engine.has_work
    assert engine.step() == []
    assert executor.batches == []
    assert engine.stats().num_steps == 0


def test_a_request_runs_to_its_end() -> None:
    engine, _ = make_engine(CONFIG)
    request = make_request(max_tokens=3, ignore_eos=True)
    engine.add(request)
    outputs = [output for _ in range(3) for output in engine.step()]
    assert [len(output.token_ids) for output in outputs] == [1, 1, 1]
    assert [output.finish_reason for output in outputs] == [None, None, FinishReason.LENGTH]
    assert [output.token_ids[0] for output in outputs] == expect_all([request], CONFIG)["r", 0]
    assert not engine.has_work


def test_stats_count_what_happened() -> None:
    engine, _ = make_engine(CONFIG)
    engine.add(make_request("a", (1,) * 6, max_tokens=3, ignore_eos=True))
    engine.add(make_request("b", (1,) * 6, n=4, max_tokens=3, ignore_eos=True))
    engine.step()
    stats = engine.stats()
    assert (stats.num_steps, stats.num_running, stats.num_waiting) == (1, 1, 1)
    assert (stats.num_blocks_total, stats.num_blocks_used) == (39, 2)
    run_all(engine)
    stats = engine.stats()
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (12, 3 + 4 * 3)
    assert (stats.num_prefix_queries, stats.num_prefix_hits) == (12, 4)
    assert (stats.num_blocks_used, stats.num_blocks_cached) == (0, 2)


@pytest.mark.parametrize("fault", [ValueError("lost the device"), MemoryError()])
def test_a_failing_step_ends_only_its_sequences_and_frees_their_blocks(fault: Exception) -> None:
    executor = FaultyExecutor(fault, at=2)
    engine = Engine(CONFIG, executor, random.Random(0))
    engine.add(make_request("a", ignore_eos=True))
    engine.add(make_request("b", tuple(range(1, 30)), n=2))
    waiting = make_request("c", (1, 2, 3), max_tokens=4, n=2)
    engine.add(waiting)
    engine.step()
    with pytest.raises(EngineError, match=f"step 2 failed: {type(fault).__name__}") as caught:
        engine.step()
    assert caught.value.__cause__ is fault
    engine.scheduler.blocks.check()
    assert engine.stats().num_blocks_used == 0
    assert engine.has_work
    ended = engine.step()
    assert [(output.request_id, output.index) for output in ended] == [("a", 0), ("b", 0), ("b", 1)]
    assert {output.finish_reason for output in ended} == {FinishReason.ERROR}
    assert all(output.error is not None and "step 2" in output.error for output in ended)
    assert run_all(engine) == expect_all([waiting], CONFIG)


def test_a_failed_step_leaves_nothing_to_share() -> None:
    executor = FaultyExecutor(ValueError("lost"), at=2)
    engine = Engine(CONFIG, executor, random.Random(0))
    engine.add(make_request("a", tuple(range(1, 10))))
    engine.step()
    with pytest.raises(EngineError):
        engine.step()
    assert engine.stats().num_blocks_cached == 0


def test_an_interrupt_passes_unchanged_and_the_engine_goes_on() -> None:
    executor = FaultyExecutor(KeyboardInterrupt(), at=1)
    engine = Engine(CONFIG, executor, random.Random(0))
    engine.add(make_request("a"))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert engine.has_work, "its end has not been delivered"
    assert [output.finish_reason for output in engine.step()] == [FinishReason.ERROR]
    request = make_request("b")
    engine.add(request)
    assert run_all(engine) == expect_all([request], CONFIG)


def test_an_interrupt_while_a_step_is_chosen_can_be_cleaned_up_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(CONFIG, FaultyExecutor(ValueError("unused"), at=99), random.Random(0))
    engine.add(make_request("a"))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hal.engine.scheduler.build_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    (ended,) = engine.abort("a")
    assert ended.finish_reason is FinishReason.ABORT
    assert engine.stats().num_blocks_used == 0
    request = make_request("b")
    engine.add(request)
    assert run_all(engine) == expect_all([request], CONFIG)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_ids": np.zeros((2, 1), np.int32)}, r"tokens \(2, 1\)"),
        ({"row_errors": np.zeros(3, np.bool_)}, r"row errors \(3,\) to 1 sampled"),
        ({"num_tokens": np.zeros(1, np.int32)}, "not supported yet"),
    ],
)
def test_a_malformed_answer_is_an_engine_error(change: dict[str, object], words: str) -> None:
    engine = Engine(CONFIG, AnsweringExecutor(**change), random.Random(0))
    engine.add(make_request())
    with pytest.raises(EngineError, match=words):
        engine.step()
    assert [output.finish_reason for output in engine.step()] == [FinishReason.ERROR]
    assert engine.stats().num_blocks_used == 0


def test_logprobs_reach_the_output() -> None:
    logprobs = SampledLogprobs(
        chosen=np.array([-0.5], np.float32),
        rank=np.array([2], np.int32),
        top_ids=np.array([[7, 8]], np.int32),
        top_logprobs=np.array([[-0.25, -0.5]], np.float32),
    )
    engine = Engine(CONFIG, AnsweringExecutor(logprobs=logprobs), random.Random(0))
    engine.add(make_request(logprobs=2))
    (output,) = engine.step()
    (found,) = output.logprobs
    assert found.token_id == output.token_ids[0]
    assert (found.logprob, found.rank) == (-0.5, 2)
    assert (found.top_ids, found.top_logprobs) == ((7, 8), (-0.25, -0.5))


def test_requests_without_a_seed_take_one_from_the_injected_rng() -> None:
    def run(rng_seed: int, seed: int | None) -> list[list[int]]:
        executor = WatchedExecutor(CONFIG)
        engine = Engine(CONFIG, executor, random.Random(rng_seed))
        for name in ("a", "b"):
            engine.add(make_request(name, temperature=1.0, seed=seed))
        return list(run_all(engine).values())

    assert run(1, None) == run(1, None) != run(2, None)
    assert run(1, None)[0] != run(1, None)[1]
    assert run(1, 5)[0] == run(1, 5)[1] == run(2, 5)[0]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": (1, VOCAB_SIZE)}, "prompt"),
        ({"prompt": (-1,)}, "prompt"),
        ({"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias"),
        ({"stop_token_ids": [3, VOCAB_SIZE]}, "stop_token_ids"),
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused(
    change: dict[str, object], param: str
) -> None:
    engine, _ = make_engine(CONFIG)
    with pytest.raises(RequestError, match="this model's ids are 0 to 39") as caught:
        engine.add(make_request(**change))  # type: ignore[arg-type]
    assert caught.value.param == param
    assert not engine.has_work


def test_an_engine_larger_than_its_executor_is_refused() -> None:
    executor = WatchedExecutor(CONFIG)
    for change in ({"max_num_seqs": 5}, {"num_blocks": 41}):
        with pytest.raises(ConfigError, match=r"is above the executor's (4|40); lower it"):
            Engine(replace(CONFIG, **change), executor, random.Random(0))  # type: ignore[arg-type]


def test_an_error_inside_update_leaves_no_block_either(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = make_engine(CONFIG)
    engine.add(make_request(n=3))

    def broken(*_: object) -> None:
        raise IndexError("half done")

    monkeypatch.setattr(engine.scheduler, "_append_tokens", broken)
    with pytest.raises(EngineError, match="half done"):
        engine.step()
    assert [output.index for output in engine.step()] == [0, 1, 2]
    assert engine.stats().num_blocks_used == 0
    engine.scheduler.blocks.check()
