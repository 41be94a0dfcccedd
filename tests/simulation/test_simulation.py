"""The engine loop under faults: what the shadow executor reads back is what each request is owed.

`make simulate SEEDS=100000` runs more seeds; a failing one prints the events that it needs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simulation
from simulation import Simulation, failure_of, reduced
from simulation_plan import Plan, draw_plan

from hal.engine.block_manager import BlockManager
from hal.engine.scheduler import Scheduler
from hal.engine.slots import Slots
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
    for name in ("num_preemptions", "num_evicted", "num_expired", "num_prefix_hits"):
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


PLANTED: dict[str, Change] = {
    "copies are lost": _copies_are_lost,
    "shared blocks are written": _shared_blocks_are_written,
    "keys collide": _keys_collide,
    "a last block is shared too soon": _a_last_block_is_shared_too_soon,
    "blocks leak": _blocks_leak,
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
