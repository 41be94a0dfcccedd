"""The engine loop under faults: what the shadow executor reads back is what each request is owed.

`make simulate SEEDS=100000` runs more seeds; a failing one prints the events that it needs.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulation
from shadow_traffic import CONFIG, expect_all, make_engine, make_request, run_all
from simulation import FaultySwapSpace, Simulation, failure_of, reduced
from simulation_plan import Plan, draw_plan

from hal.engine.batch import Swaps
from hal.engine.block_manager import BlockManager
from hal.engine.pins import Pins
from hal.engine.scheduler import Scheduler
from hal.engine.slots import Slots
from hal.engine.swap_space import SwapSpace
from hal.engine.waiting import WaitingQueue

NUM_SEEDS = 1000
NUM_STEPS = 500


@pytest.mark.slow
def test_a_thousand_seeds_keep_every_promise_in_every_step() -> None:
    script = simulation.__file__
    command = [sys.executable, script, "--seeds", str(NUM_SEEDS), "--steps", str(NUM_STEPS)]
    path = os.pathsep.join([*sys.path, str(Path(script).parent)])
    done = subprocess.run(
        [*command, "--processes", "2"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_ten_thousand_requests_on_a_tiny_pool_all_get_their_tokens() -> None:
    rng = random.Random(0)
    requests = [
        make_request(
            str(number),
            tuple([5, 6, 7, 8] * 4)[: rng.randint(0, 16)] + (rng.randint(1, 3),),
            rng.randint(0, 2),
            str(rng.randrange(3)),
            max_tokens=rng.randint(1, 16),
        )
        for number in range(10_000)
    ]
    config = replace(CONFIG, num_blocks=11)
    engine, _ = make_engine(config)
    for request in requests:
        engine.add(request)
    assert run_all(engine, max_steps=100_000) == expect_all(requests, config)
    assert engine.stats().num_preemptions > 100


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    digests = {Simulation(draw_plan(seed, 200)).run() for _ in range(2)}
    assert len(digests) == 1


def test_seeds_differ_and_meet_what_they_are_for() -> None:
    """Pools that overflow, caches that evict and expire, aborts, lost steps, rows of NaN."""
    runs = [Simulation(draw_plan(seed, 200)) for seed in range(30)]
    digests = {run.run() for run in runs}
    assert len(digests) == len(runs)
    stats = [run.engine.stats() for run in runs]
    assert sum(run.num_pins > 0 for run in runs) >= 3
    for name in (
        *("num_preemptions", "num_evicted", "num_expired", "num_prefix_hits", "num_late"),
        *("num_swapped_out", "num_swapped_in"),
    ):
        assert sum(getattr(found, name) > 0 for found in stats) >= 3, name


Change = Callable[[pytest.MonkeyPatch], None]


def _copies_are_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockManager, "take_copies", lambda self: np.empty((0, 2), np.int32))


def _shared_blocks_are_written(patch: pytest.MonkeyPatch) -> None:
    fork = Slots.fork

    def forget(self: Slots, *arguments: object) -> None:
        fork(self, *arguments)  # type: ignore[arg-type]
        self.may_share[:] = False

    patch.setattr(Slots, "fork", forget)


def _keys_collide(patch: pytest.MonkeyPatch) -> None:
    for module in ("block_manager", "prefix_hash"):
        patch.setattr(
            f"hal.engine.{module}.keys_of",
            lambda states: [int(state[0] >> 60).to_bytes(16) for state in states],
        )


def _a_last_block_is_shared_too_soon(patch: pytest.MonkeyPatch) -> None:
    """The whole prompt is looked up, so that its last token is never run."""
    patch.setattr(
        BlockManager,
        "prefix_keys",
        lambda self, tokens, salt: self._hasher.prefix(tokens, salt),
    )


def _blocks_leak(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockManager, "_push_free", lambda self, blocks: None)


def _nobody_is_admitted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_admit", lambda self, budget: None)


def _the_newest_comes_first(patch: pytest.MonkeyPatch) -> None:
    def last(self: WaitingQueue) -> object:
        return next(t for t in self._tenants.values() if t.waiting).waiting[-1]

    patch.setattr(WaitingQueue, "first", last)


def _pins_hold_nothing(patch: pytest.MonkeyPatch) -> None:
    """A pinned block stays in the queue of those that can be evicted."""

    def add(self: Pins, name: str, blocks: np.ndarray) -> None:
        self._blocks[name] = blocks

    patch.setattr(Pins, "add", add)


def _pins_are_not_bounded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("hal.engine.scheduler.pin_limit", lambda live, config, blocks: 10**9)


def _swap_blocks_are_reused_before_they_are_read(patch: pytest.MonkeyPatch) -> None:
    def oldest(self: SwapSpace) -> int:
        if not self._free:
            self._empty(self._place_of.pop(next(iter(self._place_of))))
        return self._free.pop()

    patch.setattr(FaultySwapSpace, "_new_place", oldest)


def _nothing_is_swapped_out(patch: pytest.MonkeyPatch) -> None:
    take = SwapSpace.take

    def only_in(self: SwapSpace) -> Swaps | None:
        swaps = take(self)
        return None if swaps is None else replace(swaps, outs=swaps.outs[:0])

    patch.setattr(SwapSpace, "take", only_in)


def _copies_of_a_lost_step_are_trusted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SwapSpace, "lose", lambda self: None)


def _swapped_blocks_are_not_copied_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SwapSpace, "restore", lambda self, places, blocks, now: None)


PLANTED: dict[str, Change] = {
    "swap blocks are reused before they are read": _swap_blocks_are_reused_before_they_are_read,
    "nothing is swapped out": _nothing_is_swapped_out,
    "copies of a lost step are trusted": _copies_of_a_lost_step_are_trusted,
    "swapped blocks are not copied back": _swapped_blocks_are_not_copied_back,
    "copies are lost": _copies_are_lost,
    "shared blocks are written": _shared_blocks_are_written,
    "keys collide": _keys_collide,
    "a last block is shared too soon": _a_last_block_is_shared_too_soon,
    "blocks leak": _blocks_leak,
    "pins hold nothing": _pins_hold_nothing,
    "pins are not bounded": _pins_are_not_bounded,
    "nobody is admitted": _nobody_is_admitted,
    "the newest comes first": _the_newest_comes_first,
}


def _first_failing(num_steps: int) -> Plan | None:
    plans = (draw_plan(seed, num_steps) for seed in range(40))
    return next((plan for plan in plans if failure_of(plan)), None)


@pytest.mark.parametrize("change", PLANTED.values(), ids=PLANTED)
def test_a_planted_error_is_found(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch)
    assert _first_failing(150) is not None


def test_a_failing_plan_is_reduced_to_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    _copies_are_lost(monkeypatch)
    plan = _first_failing(150)
    assert plan is not None
    small = reduced(plan)
    assert failure_of(small) is not None
    assert sum(map(len, small.steps)) <= 3
