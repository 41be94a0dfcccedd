"""Requests that can no longer be in time leave the queue before they cost a prefill."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shadow_traffic import CONFIG, WatchedExecutor, make_request

from hal.engine.request import FinishReason, Output
from hal.engine.scheduler import Scheduler, SchedulerConfig
from hal.errors import TOO_LATE

ONE_SLOT = replace(CONFIG, max_num_seqs=1)


class Timed:
    """A scheduler whose steps take `step_s` on its clock."""

    def __init__(self, config: SchedulerConfig, step_s: float) -> None:
        self.now = 100.0
        self.step_s = step_s
        self.scheduler = Scheduler(config, lambda: self.now)
        self.executor = WatchedExecutor(config)

    def add(self, request_id: str, num_prompt: int = 3, **wanted: object) -> None:
        request = make_request(request_id, (1,) * num_prompt, **wanted)  # type: ignore[arg-type]
        self.scheduler.add(request, seed=0)

    def step(self) -> list[Output]:
        batch = self.scheduler.schedule()
        outputs = self.scheduler.take_late()
        if batch is None:
            return outputs
        result = self.executor.submit(batch).wait()
        self.now += self.step_s
        outputs += self.scheduler.update(batch, result).outputs()
        self.scheduler.blocks.check()
        return outputs


def test_a_request_whose_time_passes_in_the_queue_is_dropped_and_never_runs() -> None:
    timed = Timed(ONE_SLOT, step_s=1.0)
    timed.add("first", max_tokens=9, ignore_eos=True)
    timed.add("late", timeout_s=3.5)
    timed.add("patient", max_tokens=1)
    outputs = [output for _ in range(10) for output in timed.step()]
    (dropped,) = (output for output in outputs if output.request_id == "late")
    assert (dropped.finish_reason, dropped.error_code) == (FinishReason.ERROR, TOO_LATE)
    assert dropped.error is not None and "waited 3 s and cannot" in dropped.error
    assert outputs.index(dropped) == 3, "before its time is over: a step takes a second"
    assert outputs[-1].request_id == "patient"
    assert timed.scheduler.num_late == 1
    assert not timed.scheduler.has_work


def test_behind_others_a_request_is_dropped_when_its_time_is_over() -> None:
    timed = Timed(ONE_SLOT, step_s=1.0)
    for name in ("first", "second"):
        timed.add(name, max_tokens=9, ignore_eos=True)
    timed.add("late", timeout_s=3.5)
    outputs = [output for _ in range(6) for output in timed.step()]
    assert [output.request_id for output in outputs] == ["first"] * 4 + ["late"] + ["first"] * 2


def test_what_runs_is_not_cut_off() -> None:
    timed = Timed(ONE_SLOT, step_s=1.0)
    timed.add("slow", max_tokens=9, ignore_eos=True, timeout_s=2.5)
    assert len([output for _ in range(9) for output in timed.step()]) == 9


@pytest.mark.parametrize(("timeout_s", "is_dropped"), [(1.9, True), (2.1, False)])
def test_a_prompt_of_two_steps_is_dropped_when_there_is_time_for_one(
    timeout_s: float, is_dropped: bool
) -> None:
    """At one second a step, 20 tokens at a budget of 12 take two."""
    timed = Timed(ONE_SLOT, step_s=1.0)
    timed.add("first", max_tokens=1)
    timed.step()
    timed.add("long", num_prompt=20, max_tokens=1, timeout_s=timeout_s)
    outputs = timed.step() + timed.step()
    assert [output.error_code for output in outputs] == [TOO_LATE if is_dropped else None]


def test_one_slow_step_makes_nobody_hopeless() -> None:
    timed = Timed(ONE_SLOT, step_s=1.0)
    timed.add("first", max_tokens=3, ignore_eos=True)
    timed.step()
    timed.step_s = 1000.0
    timed.step()
    timed.step_s = 1.0
    timed.step()
    timed.add("next", max_tokens=1, timeout_s=2.0)
    assert [output.error_code for output in timed.step()] == [None]


def test_all_choices_are_dropped_together() -> None:
    timed = Timed(CONFIG, step_s=1.0)
    timed.add("first", max_tokens=9, ignore_eos=True)
    timed.step()
    timed.add("many", n=4, timeout_s=0.5)
    timed.now += 1.0
    outputs = timed.step()
    assert [output.index for output in outputs if output.error_code == TOO_LATE] == [0, 1, 2, 3]
    assert timed.scheduler.num_late == 4


def test_outputs_say_how_long_their_request_waited() -> None:
    timed = Timed(replace(CONFIG, max_num_seqs=2), step_s=1.0)
    timed.add("first", n=2, max_tokens=3, ignore_eos=True)
    timed.step()
    timed.add("second", max_tokens=2, ignore_eos=True)
    outputs = [output for _ in range(9) for output in timed.step()]
    assert {output.queued_s for output in outputs if output.request_id == "first"} == {0.0}
    assert [output.queued_s for output in outputs if output.request_id == "second"] == [2.0, 2.0]


def test_requests_that_are_over_are_not_kept_until_their_time_is() -> None:
    timed = Timed(CONFIG, step_s=1.0)
    for number in range(1000):
        timed.add(str(number), max_tokens=1, timeout_s=86_400.0)
        timed.step()
    assert len(timed.scheduler._deadlines._heap) <= 64


def test_aborted_requests_are_forgotten() -> None:
    timed = Timed(ONE_SLOT, step_s=1.0)
    timed.add("first", max_tokens=9, ignore_eos=True)
    timed.add("gone", timeout_s=1.5)
    timed.scheduler.abort("gone")
    for _ in range(4):
        assert all(output.request_id == "first" for output in timed.step())
