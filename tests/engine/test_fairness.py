"""Whose turn it is: urgency that ages within a tenant, tokens served between tenants."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from shadow_traffic import CONFIG, WatchedExecutor, make_request

from hal.engine.request import Output
from hal.engine.scheduler import Scheduler, SchedulerConfig
from hal.engine.sequence import urgency

ONE_SLOT = replace(CONFIG, max_num_seqs=1, priority_wait_s=100.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed:
    """A scheduler with a clock, and the executor that runs its steps."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.clock = Clock()
        self.scheduler = Scheduler(config, self.clock)
        self._executor = WatchedExecutor(config)

    def add(self, request_id: str, priority: int = 0, tenant: str = "", **params: object) -> None:
        wanted = {"max_tokens": 1} | params
        request = make_request(request_id, (1, 2, 3), priority, tenant, None, **wanted)
        self.scheduler.add(request, seed=0)

    def step(self) -> list[Output]:
        batch = self.scheduler.schedule()
        if batch is None:
            return []
        return self.scheduler.update(batch, self._executor.submit(batch).wait()).outputs()

    def ids(self, num_steps: int) -> list[str]:
        """Whose tokens come in the next steps."""
        return [output.request_id for _ in range(num_steps) for output in self.step()]


def test_priorities_are_strictly_ordered_and_all_within_the_wait() -> None:
    priorities = [-(2**31) + 1, -7, -1, 0, 1, 2, 50, 2**31 - 1]
    turns = [urgency(0.0, priority, 100.0) for priority in priorities]
    assert turns == sorted(set(turns))
    assert turns[-1] - turns[0] <= 100.0


def test_an_urgent_request_overtakes_until_the_other_has_waited_long_enough() -> None:
    timed = Timed(ONE_SLOT)
    timed.add("patient", priority=2**31 - 1)
    for number in range(3):
        timed.clock.now += 40.0
        timed.add(str(number), priority=-(2**31) + 1)
    assert timed.ids(4) == ["0", "1", "patient", "2"]


def test_who_has_waited_long_enough_is_not_preempted_by_a_newcomer() -> None:
    timed = Timed(ONE_SLOT)
    timed.add("patient", priority=9, max_tokens=8, ignore_eos=True)
    timed.clock.now = 99.0
    timed.step()
    timed.add("late", priority=-9)
    assert timed.ids(1) == ["patient"]
    assert timed.scheduler.num_preemptions == 0


def test_a_clock_set_back_or_far_ahead_changes_no_order() -> None:
    timed = Timed(ONE_SLOT)
    timed.clock.now = 1e6
    timed.add("a")
    timed.clock.now = -1e6
    timed.add("b")
    timed.clock.now = 1e9
    timed.add("c")
    assert timed.ids(3) == ["a", "b", "c"]


def test_tenants_are_served_in_turn_however_much_one_of_them_asks_for() -> None:
    timed = Timed(ONE_SLOT)
    for number in range(20):
        timed.add(f"greedy {number}", tenant="a", max_tokens=4, ignore_eos=True)
    for number in range(3):
        timed.add(f"modest {number}", tenant="b", max_tokens=4, ignore_eos=True)
    order = list(dict.fromkeys(timed.ids(24)))
    assert order == ["greedy 0", "modest 0", "greedy 1", "modest 1", "greedy 2", "modest 2"]


def test_priority_is_no_way_past_another_tenant() -> None:
    timed = Timed(ONE_SLOT)
    timed.add("a0", tenant="a", max_tokens=3, ignore_eos=True)
    timed.step()
    timed.add("urgent", priority=-9, tenant="b")
    timed.add("a1", tenant="a")
    assert timed.ids(4) == ["a0", "a0", "urgent", "a1"], "nobody of another tenant is preempted"


def test_a_tenant_that_was_away_gets_no_credit_for_it() -> None:
    timed = Timed(ONE_SLOT)
    for number in range(10):
        timed.add(f"early {number}", tenant="a")
    timed.ids(10)
    for number in range(6):
        timed.add(f"a {number}", tenant="a")
        timed.add(f"b {number}", tenant="b")
    first = Counter(request_id[0] for request_id in timed.ids(6))
    assert first["a"] >= 2 and first["b"] >= 2


@pytest.mark.parametrize("num_tenants", [1, 200])
def test_tenants_that_are_gone_are_forgotten(num_tenants: int) -> None:
    timed = Timed(replace(CONFIG, max_num_seqs=4))
    for number in range(400):
        timed.add(str(number), tenant=str(number % num_tenants) + str(number))
        timed.ids(2)
    assert len(timed.scheduler._waiting._tenants) < 20
