"""Runs the engine on a shadow executor through a plan of events, and checks every step of it.

    make simulate SEEDS=100000

A seed that fails is reduced to the events that it needs and printed as a plan.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pprint import pformat
from typing import TypeVar

import numpy as np
from shadow_traffic import WatchedExecutor, generate_alone
from simulation_plan import (
    POISON,
    STEP_S,
    TOKEN_S,
    VOCAB_SIZE,
    Abort,
    Add,
    Event,
    FailAllocations,
    FailDevice,
    FailSwaps,
    JumpClock,
    Pin,
    Plan,
    draw_plan,
)

from hal.engine.batch import Batch, Index, Int32
from hal.engine.block_manager import BlockManager
from hal.engine.engine import Engine
from hal.engine.prefix_hash import PrefixKeys
from hal.engine.request import FinishReason, Output, Request
from hal.engine.scheduler import Scheduler, SchedulerConfig
from hal.engine.shadow_executor import ShadowStep
from hal.engine.swap_space import SwapCosts, SwapSpace
from hal.errors import NOT_FINITE, TOO_LATE, ContextLengthError, EngineError, RequestError

SECRET = bytes(32)
NUM_STEPS = 500
GARBAGE = -7
T = TypeVar("T")


class Violation(AssertionError):
    """Something that must hold in every step did not."""


def require(holds: bool, text: str) -> None:
    if not holds:
        raise Violation(text)


class FaultySwapSpace(SwapSpace):
    """Has no room where the plan says so."""

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config.num_swap_blocks, SwapCosts(config.block_size))
        self.is_full = False

    def _new_place(self) -> int | None:
        return None if self.is_full else super()._new_place()


class FaultyBlocks(BlockManager):
    """Finds no block where the plan says so."""

    def __init__(self, config: SchedulerConfig, clock: SimulatedClock) -> None:
        super().__init__(
            config.num_blocks,
            config.block_size,
            config.max_num_seqs,
            -(-config.max_model_len // config.block_size),
            window=config.window,
            cache=config.cache if config.prefix_caching else None,
            clock=clock,
            secret=SECRET,
            swap=FaultySwapSpace(config) if config.num_swap_blocks else None,
        )
        self.fault: FailAllocations | None = None
        self._num_calls = 0

    def begin_step(self, fault: FailAllocations | None) -> None:
        self.fault, self._num_calls = fault, 0

    def attach(
        self, row: int, prefix: PrefixKeys, matched: list[int], num_tokens: int, priority: int = 0
    ) -> bool:
        if self._fails():
            return False
        return super().attach(row, prefix, matched, num_tokens, priority)

    def allocate(self, row: int, num_computed: int, num_new: int) -> bool:
        return not self._fails() and super().allocate(row, num_computed, num_new)

    def append(self, rows: Index) -> bool:
        return not self._fails() and super().append(rows)

    def _fails(self) -> bool:
        self._num_calls += 1
        if self.fault is None:
            return False
        number = self._num_calls - 1
        return number == self.fault.after or (
            self.fault.all_from_there and number > self.fault.after
        )


class SimulatedClock:
    """A step comes every STEP_S, or as soon as the last one is done; sometimes it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SimulatedExecutor(WatchedExecutor):
    """Loses a step where the plan says so, and sees that no block has two writers."""

    def __init__(self, plan: Plan, blocks: BlockManager, clock: SimulatedClock) -> None:
        super().__init__(plan.config, POISON, VOCAB_SIZE, plan.swap_block_s)
        self._blocks = blocks
        self._clock = clock
        self.run_s = 0.0  # of the last step
        self.fault: FailDevice | None = None
        self.loses_swaps = False  # in the next step that has some
        self.digest = blake2b(digest_size=16)

    def submit(self, batch: Batch) -> ShadowStep:
        self.batches.clear()
        for array in (batch.slots, batch.q_lens, batch.token_ids, batch.block_updates):
            self.digest.update(array.tobytes())
        if batch.swaps is not None:
            self.digest.update(batch.swaps.outs.tobytes() + batch.swaps.ins.tobytes())
        if self.loses_swaps and batch.swaps is not None and len(batch.swaps.outs):
            self.loses_swaps = False
            self._swap_space[batch.swaps.outs[:, 1]] = GARBAGE
            raise RuntimeError("the device was lost while it copied")
        if self.fault is not None and not self.fault.has_run:
            raise RuntimeError("the device was lost before the step")
        step = super().submit(batch)
        self._check_writers(batch)
        self.run_s = TOKEN_S * batch.num_tokens + step.result.swap_s
        self._clock.now += self.run_s
        self.digest.update(step.result.token_ids.tobytes())
        if self.fault is not None:
            raise RuntimeError("the device was lost after the step")
        return step

    def _check_writers(self, batch: Batch) -> None:
        slots = np.repeat(batch.slots, batch.q_lens)
        blocks = self._tables[slots, batch.positions // self._block_size]
        places: Int32 = blocks * self._block_size + batch.positions % self._block_size
        require(len(np.unique(places)) == len(places), "a place in the cache with two writers")
        is_shared = self._blocks._ref_counts[blocks] != 1
        require(not is_shared.any(), "a write into a shared block")


class Simulation:
    """One engine and what is known of its requests from outside."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock = SimulatedClock()
        self.blocks = FaultyBlocks(plan.config, self.clock)
        self.executor = SimulatedExecutor(plan, self.blocks, self.clock)
        scheduler = Scheduler(plan.config, self.clock, self.blocks)
        self.engine = Engine(plan.config, self.executor, random.Random(0), scheduler=scheduler)
        self.requests: dict[str, Request] = {}
        self.arrived_at: dict[str, float] = {}  # on a clock that never goes back
        self.queued: set[str] = set()  # never ran so far
        self.time = self.clock.now
        self.longest_s = 0.0  # of what steps ran
        self.open: set[tuple[str, int]] = set()  # choices without a last output
        self.tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.num_delivered = 0
        self.pins: dict[str, list[int]] = {}  # the blocks of each
        self.num_pins = 0
        self.num_lost = 0  # in this step

    @property
    def unseen_s(self) -> float:
        """A clock set back in a step hides that step's time from the engine."""
        return 1.01 * max(STEP_S, self.longest_s)

    def run(self) -> bytes:
        """To the end of the plan and until nothing is left; returns the trace's digest."""
        for events in self.plan.steps:
            self._step(events)
        # Alone, and prefilled anew in chunks of one token after each of its own, none needs more.
        bound = 100 + len(self.open) * self.plan.config.max_model_len * 4
        for _ in range(bound):
            if not self.engine.has_work:
                break
            self._step(())
        require(not self.engine.has_work, f"work was left after {bound} more steps")
        require(not self.open, f"choices that never ended: {sorted(self.open)}")
        stats = self.engine.stats()
        for name in self.pins:
            self.engine.unpin(name)
        require(self.engine.stats().num_blocks_pinned == 0, "blocks that nobody can unpin")
        held = stats.num_running, stats.num_waiting, stats.num_blocks_used
        require(held == (0, 0, 0), f"an idle engine holds {held}")
        return self.executor.digest.digest()

    def _step(self, events: tuple[Event, ...]) -> None:
        self.clock.now += max(0.0, STEP_S - self.executor.run_s)
        self.executor.run_s = 0.0
        self.time = max(self.time, self.clock.now)
        for event in events:
            self._apply(event)
        self.blocks.begin_step(_only(FailAllocations, events))
        self.executor.fault = _only(FailDevice, events)
        self._break_swaps(_only(FailSwaps, events))
        is_faulty = self.blocks.fault is not None or self.executor.fault is not None
        is_faulty |= self.executor.loses_swaps
        self.num_lost = int(self.executor.fault is not None)
        has_work, before = self.engine.scheduler.has_work, self.engine.scheduler.num_steps
        is_delivering = bool(self.engine._undelivered)
        try:
            for output in self.engine.step():
                self._take(output)
        except EngineError as error:
            require(is_faulty, f"a step failed: {error}")
            self.num_lost = 1
        self.longest_s = max(self.longest_s, self.executor.run_s)
        self.time = max(self.time, self.clock.now)
        has_run = self.engine.scheduler.num_steps > before
        if has_work and not is_delivering and not is_faulty:
            is_idle = not self.engine.scheduler.has_work  # all that waited was too late
            require(has_run or is_idle, "work was waiting and nothing ran")
        self._check()

    def _break_swaps(self, event: FailSwaps | None) -> None:
        swap = self.blocks.swap
        if isinstance(swap, FaultySwapSpace):
            swap.is_full = event is not None and event.is_full
            self.executor.loses_swaps |= event is not None and not event.is_full

    def _apply(self, event: Event) -> None:
        if isinstance(event, Add):
            request = event.request
            try:
                self.engine.add(request)
            except ContextLengthError as error:
                require(bool(self.pins), f"refused by an engine without a pin: {error}")
                return
            self.requests[request.request_id] = request
            self.arrived_at[request.request_id] = self.time
            self.queued.add(request.request_id)
            self.open |= {(request.request_id, index) for index in range(request.params.n)}
        elif isinstance(event, Abort):
            self._abort(event)
        elif isinstance(event, Pin):
            self._pin(event)
        elif isinstance(event, JumpClock):
            self.clock.now += event.seconds
            self.time = max(self.time, self.clock.now)

    def _pin(self, event: Pin) -> None:
        name = event.request_id
        if event.ends and name in self.pins:
            self.engine.unpin(name)
            del self.pins[name]
        elif name in self.requests and name not in self.pins:
            tenant = self.requests[name].tenant
            tokens = self.requests[name].prompt_token_ids
            try:
                self.engine.pin(name, tokens, tenant)
            except RequestError:
                return
            self.pins[name] = self._pinned(name)
            self.num_pins += 1

    def _pinned(self, name: str) -> list[int]:
        """The blocks that the whole of a pinned prompt is found in."""
        request = self.requests[name]
        tokens = np.array([*request.prompt_token_ids, 0], np.int32)
        return self.blocks.match(self.blocks.prefix_keys(tokens, request.tenant.encode()))

    def _check_pins(self) -> None:
        """No pressure ends a pin: only a lost step or row of the request that computed it does."""
        for name in list(self.pins):
            if not self.blocks.is_pinned(name):
                require(self.num_lost > 0, f"the pin {name} is gone")
                del self.pins[name]
            else:
                require(self._pinned(name) == self.pins[name], f"the pin {name} is not found")
        limit = self.plan.config.max_pinned_share * self.blocks.num_usable
        require(self.blocks.num_pinned <= limit, "more blocks are pinned than may be")

    def _abort(self, event: Abort) -> None:
        key = event.request_id, event.index or 0
        if event.index is not None and not self.tokens[key]:
            return  # only a choice that has had a token may be ended alone
        for output in self.engine.abort(event.request_id, event.index):
            require(output.finish_reason is FinishReason.ABORT, "an abort that is none")
            self._take(output)
        require(self.engine.abort(event.request_id, event.index) == [], "aborted twice")

    def _take(self, output: Output) -> None:
        key = output.request_id, output.index
        require(key in self.open, f"an output after the last one: {output}")
        self.tokens[key].extend(output.token_ids)
        self.num_delivered += len(output.token_ids)
        self.num_lost += output.error_code == NOT_FINITE
        if output.finish_reason is not None:
            self.open.remove(key)
            self.queued.discard(output.request_id)
            self._check_tokens(output, self.tokens.pop(key))
        line = f"{key} {output.token_ids} {output.finish_reason} {output.num_cached_tokens}"
        self.executor.digest.update(line.encode())

    def _check_tokens(self, last: Output, tokens: list[int]) -> None:
        request = self.requests[last.request_id]
        expected = generate_alone(request, last.index, self.plan.config, VOCAB_SIZE, POISON)
        if last.error_code == TOO_LATE:
            waited_s = self.time - self.arrived_at[last.request_id]
            config = self.plan.config
            num_steps = config.max_model_len // config.max_num_batched_tokens + 1
            prefill_s = num_steps * self.longest_s  # which the engine sees coming
            least_s = (request.timeout_s or 0.0) - self.unseen_s - prefill_s
            require(waited_s >= least_s, f"dropped after {waited_s} s: {last}")
        is_whole = last.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        is_whole |= last.error_code == NOT_FINITE
        wanted = expected if is_whole else expected[: len(tokens)]
        require(tokens == wanted, f"{last} ends {tokens}; alone it would be {wanted}")

    def _check_order(self) -> None:
        """Nobody who waits was overtaken by one of its tenant that arrived too much later."""
        seqs = [seq for seq in self.engine.scheduler.slots.seqs if seq is not None]
        started = {seq.request.request_id for seq in seqs} & self.queued
        self.queued -= started
        for winner in started:
            latest = self.arrived_at[winner] - self.plan.config.priority_wait_s - self.unseen_s
            tenant = self.requests[winner].tenant
            overtaken = [
                waiting
                for waiting in self.queued
                if self.arrived_at[waiting] < latest and self.requests[waiting].tenant == tenant
            ]
            require(not overtaken, f"{winner} overtook {overtaken}, who waited for too long")

    def _check(self) -> None:
        self.blocks.check()
        self._check_pins()
        self._check_order()
        scheduler = self.engine.scheduler
        require(
            scheduler.num_generated_tokens >= self.num_delivered, "tokens that nobody generated"
        )
        slots = scheduler.slots
        running = np.flatnonzero(slots.is_running)
        require(len(running) == scheduler.num_running, "the number of running sequences")
        computed, known = slots.num_computed[running], slots.num_tokens[running]
        require(bool((computed < known).all()), "a sequence with nothing left to compute")
        held = self.blocks.num_table_blocks[running]
        needed = -(-computed // self.plan.config.block_size)
        require(bool((held >= needed).all()), "a sequence without blocks for its tokens")


def _only(kind: type[T], events: tuple[Event, ...]) -> T | None:
    return next((event for event in events if isinstance(event, kind)), None)


def failure_of(plan: Plan) -> str | None:
    """What a run of the plan violates, or None."""
    try:
        Simulation(plan).run()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        return f"{type(error).__name__}: {error}"
    return None


def reduced(plan: Plan) -> Plan:
    """The plan without what it does not need to fail: steps from its end, then events."""
    for length in _halvings(len(plan.steps)):
        shorter = replace(plan, steps=plan.steps[:length])
        if failure_of(shorter):
            plan = shorter
            break
    events = [(step, event) for step, found in enumerate(plan.steps) for event in found]
    size = len(events)
    while size >= 1:
        events = _without_needless(plan, events, size)
        size //= 2
    return _with_events(plan, events)


def _halvings(length: int) -> Iterator[int]:
    """Lengths to try, short ones first."""
    sizes = []
    while length:
        sizes.append(length)
        length //= 2
    yield from reversed(sizes)


Timed = tuple[int, Event]


def _without_needless(plan: Plan, events: list[Timed], size: int) -> list[Timed]:
    """Drop every run of `size` events that is not needed."""
    first = 0
    while first < len(events):
        fewer = events[:first] + events[first + size :]
        if failure_of(_with_events(plan, fewer)):
            events = fewer
        else:
            first += size
    return events


def _with_events(plan: Plan, events: list[Timed]) -> Plan:
    steps: list[list[Event]] = [[] for _ in plan.steps]
    for step, event in events:
        steps[step].append(event)
    return replace(plan, steps=tuple(map(tuple, steps)))


def report(seed: int, plan: Plan) -> str:
    small = reduced(plan)
    events = {step: list(found) for step, found in enumerate(small.steps) if found}
    return (
        f"seed {seed} fails: {failure_of(plan)}\nreduced to {len(small.steps)} steps: "
        f"{failure_of(small)}\n{small.config}\n{pformat(events, width=100)}\n"
    )


def run_seeds(first: int, seeds: int, stride: int, steps: int) -> int:
    """Print what fails; returns the number of seeds that do."""
    num_failed = 0
    for seed in range(first, seeds, stride):
        plan = draw_plan(seed, steps)
        if failure_of(plan) is not None:
            num_failed += 1
            sys.stdout.write(report(seed, plan))
            sys.stdout.flush()
    return num_failed


def run_processes(seeds: int, steps: int, processes: int) -> int:
    """The same, shared out to processes; returns how many of them met a failing seed."""
    command = [sys.executable, __file__, "--seeds", str(seeds), "--steps", str(steps)]
    shares = [["--first", str(first), "--stride", str(processes)] for first in range(processes)]
    children = [subprocess.Popen([*command, *share]) for share in shares]
    return sum(child.wait() != 0 for child in children)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--stride", type=int, default=1, help="every how many, for many processes")
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    if options.processes > 1:
        return min(run_processes(options.seeds, options.steps, options.processes), 1)
    return min(run_seeds(options.first, options.seeds, options.stride, options.steps), 1)


if __name__ == "__main__":
    raise SystemExit(main())
