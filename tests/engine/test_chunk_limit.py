"""--inter-token-target-ms: chunks are as large as the steps that they slow down allow."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from shadow_traffic import WatchedExecutor, make_request

from hal.config import EngineConfig
from hal.engine.batch import Batch
from hal.engine.engine import Engine
from hal.engine.scheduler import Scheduler, SchedulerConfig
from hal.engine.shadow_executor import ShadowStep
from hal.engine.step_costs import StepCosts
from hal.errors import ConfigError

TARGET_S = 0.02
CONFIG = SchedulerConfig(
    max_num_seqs=4,
    max_num_batched_tokens=1024,
    max_model_len=20_000,
    block_size=16,
    num_blocks=3000,
    prefix_caching=False,
    inter_token_target_s=TARGET_S,
)

Cost = Callable[[Batch], float]


@dataclass(frozen=True, slots=True)
class Mixed:
    """A step of decodes with prefilled tokens beside them."""

    num_prefilled: int
    seconds: float


class TimedExecutor(WatchedExecutor):
    """Every step takes what `cost` says, on `now`."""

    def __init__(self, config: SchedulerConfig, cost: Cost) -> None:
        super().__init__(config)
        self.cost = cost
        self.now = 0.0
        self.mixed: list[Mixed] = []

    def submit(self, batch: Batch) -> ShadowStep:
        seconds = self.cost(batch)
        self.now += seconds
        num_prefilled = prefilled(batch)
        if 0 < num_prefilled < batch.num_tokens:
            self.mixed.append(Mixed(num_prefilled, seconds))
        self.batches.clear()
        return super().submit(batch)


def prefilled(batch: Batch) -> int:
    return int((batch.token_ids >= 0).sum())


def linear(batch: Batch) -> float:
    """5 ms, 0.1 ms for a decode, 0.05 ms for a prefilled token."""
    num_prefilled = prefilled(batch)
    return 0.005 + 1e-4 * (batch.num_tokens - num_prefilled) + 5e-5 * num_prefilled


def run(cost: Cost, config: SchedulerConfig = CONFIG, num_prompts: int = 2) -> TimedExecutor:
    """One that decodes, and prompts of 9000 tokens that arrive while it does."""
    executor = TimedExecutor(config, cost)
    scheduler = Scheduler(config, lambda: executor.now)
    engine = Engine(config, executor, random.Random(0), scheduler=scheduler)
    engine.add(make_request("decodes", (1, 2), max_tokens=5000, ignore_eos=True))
    for _ in range(4):
        engine.step()
    for number in range(num_prompts):
        engine.add(make_request(str(number), tuple(n % 30 for n in range(9000)), max_tokens=1))
    open_requests = set(map(str, range(num_prompts)))
    while open_requests:
        for output in engine.step():
            if output.finish_reason is not None:
                open_requests.discard(output.request_id)
    return executor


def test_chunks_grow_to_what_the_target_allows_and_stay_there() -> None:
    mixed = run(linear).mixed
    assert all(step.seconds <= TARGET_S for step in mixed)
    settled = [step for step in mixed[10:] if step.num_prefilled > 16]
    assert min(step.seconds for step in settled[:-1]) > 0.75 * TARGET_S
    assert len({step.num_prefilled for step in settled[:-1]}) <= 3


def test_without_a_target_a_chunk_is_as_large_as_the_budget() -> None:
    mixed = run(linear, replace(CONFIG, inter_token_target_s=None)).mixed
    assert max(step.num_prefilled for step in mixed) == 1023
    assert max(step.seconds for step in mixed) > 2 * TARGET_S


def test_a_device_that_becomes_slower_gets_smaller_chunks() -> None:
    num_steps = 0

    def slower(batch: Batch) -> float:
        nonlocal num_steps
        num_steps += 1
        return linear(batch) * (2 if num_steps > 40 else 1)

    mixed = run(slower, num_prompts=3).mixed
    late = [step.seconds > TARGET_S for step in mixed]
    assert not any(late[:30])
    assert any(late[30:50])
    assert not any(late[70:])


def test_noise_is_not_followed() -> None:
    rng = random.Random(3)
    mixed = run(lambda batch: linear(batch) * rng.uniform(0.9, 1.1), num_prompts=4).mixed[15:]
    sizes = [step.num_prefilled for step in mixed]
    changes = sum(a != b for a, b in zip(sizes, sizes[1:], strict=False))
    assert len(sizes) > 100
    assert changes < len(sizes) / 10
    assert sum(step.seconds > TARGET_S for step in mixed) < len(mixed) / 20


def test_one_step_that_the_machine_interrupts_changes_little() -> None:
    num_steps = 0

    def interrupted(batch: Batch) -> float:
        nonlocal num_steps
        num_steps += 1
        return linear(batch) + (3.0 if num_steps == 30 else 0.0)

    sizes = [step.num_prefilled for step in run(interrupted, num_prompts=3).mixed[15:-2]]
    assert min(size for size in sizes if size > 16) > max(sizes) / 2


def test_a_target_that_decodes_alone_miss_leaves_a_block_for_prefills() -> None:
    config = replace(CONFIG, inter_token_target_s=0.001)
    mixed = run(linear, config, num_prompts=1).mixed
    assert {step.num_prefilled for step in mixed[:-1]} == {16}


def test_costs_are_those_of_a_line() -> None:
    costs = StepCosts()
    assert (costs.token_s, costs.fixed_s) == (None, 0.0)
    costs.record(0, 2.0)
    assert (costs.token_s, costs.fixed_s) == (None, 2.0)
    costs.record(10, 12.0)
    assert costs.token_s == pytest.approx(1.0)
    costs.record(30, 32.0)
    assert costs.token_s == pytest.approx(1.0)
    assert costs.fixed_s == pytest.approx(2.0)
    for _ in range(100):  # all alike: nothing new about a token, but about the rest
        costs.record(20, 24.0)
    assert costs.token_s == pytest.approx(1.0, rel=0.2)
    assert costs.fixed_s + 20 * (costs.token_s or 0) == pytest.approx(24.0, rel=0.01)


def test_a_target_needs_chunks() -> None:
    with pytest.raises(ConfigError, match="chunked prefill is off"):
        EngineConfig(inter_token_target_ms=20, chunked_prefill=False)
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="must be above 0"):
            EngineConfig(inter_token_target_ms=wrong)
