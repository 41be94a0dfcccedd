"""What happens in a simulated engine: settings and events, all drawn from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from shadow_traffic import MAX_MODEL_LEN, make_request

from hal.cache_policy import POLICY_NAMES, parse_policy
from hal.engine.request import Request
from hal.engine.scheduler import SchedulerConfig

VOCAB_SIZE = 400
POISON = VOCAB_SIZE - 1
STEP_S = 0.05
"""Seconds of the simulated clock from one step to the next."""

TOKEN_S = 0.0002
"""Of them, for each token that the step runs."""


@dataclass(frozen=True, slots=True)
class Add:
    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """A request that may wait, run, be over, or never have been accepted; or one of its choices."""

    request_id: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class JumpClock:
    """The machine slept, or somebody set its clock back."""

    seconds: float


@dataclass(frozen=True, slots=True)
class FailAllocations:
    """Of the allocations in the step, the one after `after` finds no block, or all from it on."""

    after: int
    all_from_there: bool


@dataclass(frozen=True, slots=True)
class FailDevice:
    """The step is lost: before the device began, or after it wrote everything."""

    has_run: bool


@dataclass(frozen=True, slots=True)
class FailSwaps:
    """The next step that copies to the swap space is lost, and what it holds there is anything; or
    no evicted block finds room there in this step."""

    is_full: bool


@dataclass(frozen=True, slots=True)
class Pin:
    """Pin what the prompt of a request starts with, if it is cached; or end that pin again."""

    request_id: str
    ends: bool = False


Event = Pin | Add | Abort | JumpClock | FailAllocations | FailDevice | FailSwaps


@dataclass(frozen=True, slots=True)
class Plan:
    """steps[i]: what happens just before step i. After the last one everything runs to its end.

    swap_block_s: what a copy of a block takes; a computed token takes TOKEN_S
    """

    config: SchedulerConfig
    steps: tuple[tuple[Event, ...], ...]
    swap_block_s: float = 0.0


def draw_config(rng: random.Random) -> SchedulerConfig:
    """Small pools, so that they are full much of the time."""
    block_size = rng.choice([1, 2, 4, 4, 8])
    max_num_seqs = rng.choice([1, 2, 4, 6])
    is_chunked = rng.random() < 0.8
    budget = rng.choice([max_num_seqs, 8, 12, 30]) if is_chunked else MAX_MODEL_LEN
    window = rng.choice([None, None, None, 6])
    least = -(-MAX_MODEL_LEN // block_size) + 2
    return SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(budget, max_num_seqs),
        max_model_len=MAX_MODEL_LEN,
        block_size=block_size,
        num_blocks=least + rng.choice([0, 0, 1, 4, least, 4 * least]),
        window=window,
        prefix_caching=rng.random() < 0.8,
        chunked_prefill=is_chunked,
        cache=parse_policy(rng.choice(POLICY_NAMES), rng.choice([0.5, 5.0, 3600.0])),
        static_batching=rng.random() < 0.1,
        spare_tokens=rng.choice([0, 4, 32]),
        priority_wait_s=rng.choice([0.5, 5.0, 100.0]),
    )


def draw_plan(seed: int, num_steps: int) -> Plan:
    rng = random.Random(seed)
    pins = random.Random(f"pins {seed}")
    pin_rate = pins.choice([0.0, 0.02, 0.2])
    swaps = random.Random(f"swaps {seed}")
    config = _with_target(seed, _with_swap(swaps, draw_config(rng)))
    # Requests take about a dozen steps: from an idle engine to a queue that never empties.
    rate = rng.choice([0.01, 0.03, 0.06]) * config.max_num_seqs
    fault_rate = rng.choice([0.0, 0.01, 0.05])
    num_tenants = rng.choice([1, 1, 3])
    steps: list[tuple[Event, ...]] = []
    num_added = 0
    for _ in range(num_steps):
        events: list[Event] = []
        for _ in range(_count(rng, rate)):
            events.append(Add(_draw_request(rng, config, str(num_added), num_tenants)))
            num_added += 1
        if rng.random() < 0.02 and num_added:
            events.append(_draw_abort(rng, num_added))
        if rng.random() < fault_rate:
            events.append(_draw_fault(rng))
        if pins.random() < pin_rate and num_added:
            number = max(0, num_added - 1 - pins.randrange(8))
            events.append(Pin(str(number), pins.random() < 0.4))
        if config.num_swap_blocks and swaps.random() < fault_rate:
            events.append(FailSwaps(swaps.random() < 0.5))
        steps.append(tuple(events))
    return Plan(config, tuple(steps), swaps.choice([0.0, 0.1, 1.0]) * TOKEN_S)


def _with_swap(rng: random.Random, config: SchedulerConfig) -> SchedulerConfig:
    """Most of those that can have a swap space have one, often a small one."""
    if config.window is not None or not config.prefix_caching or rng.random() < 0.3:
        return config
    return replace(config, num_swap_blocks=rng.choice([2, 4, 12, 100]))


def _with_target(seed: int, config: SchedulerConfig) -> SchedulerConfig:
    """A time between two tokens that some chunks keep."""
    target_s = random.Random(f"target {seed}").choice([None, 4 * TOKEN_S, 20 * TOKEN_S])
    return replace(config, inter_token_target_s=target_s if config.chunked_prefill else None)


def _count(rng: random.Random, rate: float) -> int:
    """Mostly none or one, sometimes a burst."""
    if rng.random() >= rate:
        return 0
    return rng.choice([1, 1, 1, 4])


def _draw_request(
    rng: random.Random, config: SchedulerConfig, request_id: str, num_tenants: int
) -> Request:
    shared = [5, 6, 7, 8] * 6
    prompt = shared[: rng.randint(0, 24)] + [rng.randint(1, 3) for _ in range(rng.randint(1, 5))]
    if rng.random() < 0.02:
        prompt[rng.randrange(len(prompt))] = POISON
    return make_request(
        request_id,
        tuple(prompt),
        rng.choice([0, 0, 0, -1, 3]),
        tenant=str(rng.randrange(num_tenants)),
        timeout_s=rng.choice([None, None, None, None, 0.2, 2.0]),
        n=rng.choice([1, 1, 1, 2, 4]) if config.max_num_seqs >= 4 else 1,
        max_tokens=rng.choice([1, 4, 8, 16]),
        min_tokens=rng.choice([0, 0, 1]),
        temperature=rng.choice([0.0, 1.0]),
        seed=rng.randrange(100),
        ignore_eos=rng.random() < 0.5,
    )


def _draw_abort(rng: random.Random, num_added: int) -> Abort:
    number = max(0, num_added - 1 - rng.randrange(8))
    return Abort(str(number), rng.choice([None, None, 0, 1]))


def _draw_fault(rng: random.Random) -> Event:
    kind = rng.randrange(4)
    if kind == 0:
        return JumpClock(rng.choice([-1e6, -1.0, 10.0, 1e6]))
    if kind == 1:
        return FailDevice(rng.random() < 0.5)
    return FailAllocations(rng.randrange(4), rng.random() < 0.3)
