"""What --trace writes: a line for each step, also for one that was lost."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from shadow_traffic import CONFIG, WatchedExecutor, make_request

from hal.engine.batch import Batch
from hal.engine.engine import Engine
from hal.engine.shadow_executor import ShadowStep
from hal.engine.step_trace import StepTrace, open_trace
from hal.errors import ConfigError, EngineError


class SlowExecutor(WatchedExecutor):
    """A step takes a quarter of a second on `now`; the second one is lost."""

    now = 10.0

    def submit(self, batch: Batch) -> ShadowStep:
        self.now += 0.25
        if batch.step == 2:
            raise RuntimeError("lost")
        return super().submit(batch)


def test_a_line_says_who_ran_and_how_full_the_pool_was() -> None:
    executor, stream = SlowExecutor(CONFIG), io.StringIO()
    trace = StepTrace(stream, lambda: executor.now)
    engine = Engine(CONFIG, executor, random.Random(0), trace=trace)
    engine.add(make_request("a", (1, 2, 3, 4, 5), n=2, ignore_eos=True))
    engine.step()
    with pytest.raises(EngineError):
        engine.step()
    engine.step()
    engine.add(make_request("b", max_tokens=1))
    engine.step()
    first, lost, last = map(json.loads, stream.getvalue().splitlines())
    assert first == {
        "step": 1,
        "start_s": 0.0,
        "seconds": 0.25,
        "ran": [["a", 0, 5]],
        "num_waiting": 0,
        "num_preemptions": 0,
        "blocks": {"used": 2, "cached": 0, "total": 39},
    }
    assert (lost["step"], lost["failed"], lost["ran"]) == (2, True, [["a", 0, 1], ["a", 1, 1]])
    assert (last["step"], last["start_s"], last["ran"]) == (3, 0.5, [["b", 0, 3]])


def test_a_line_says_what_was_swapped() -> None:
    config = replace(CONFIG, num_blocks=11, num_swap_blocks=8)
    stream = io.StringIO()
    engine = Engine(config, WatchedExecutor(config), random.Random(0), trace=StepTrace(stream))
    for number in (1, 2, 3, 1):
        engine.add(make_request("r", (number,) * 20, max_tokens=1))
        while engine.has_work:
            engine.step()
    swaps = [json.loads(line)["swaps"] for line in stream.getvalue().splitlines()]
    assert swaps[0] == {"out": 0, "in": 0, "held": 0}
    assert swaps[-1]["in"] == engine.stats().num_swapped_in > 0
    assert sum(step["out"] for step in swaps) == engine.stats().num_swapped_out > 0
    assert engine.stats().num_swap_blocks_used == swaps[-1]["held"]


def test_lines_are_in_the_file_at_once_and_a_wrong_path_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    trace = open_trace(path)
    engine = Engine(CONFIG, WatchedExecutor(CONFIG), random.Random(0), trace=trace)
    engine.add(make_request(max_tokens=1))
    engine.step()
    assert len(path.read_text().splitlines()) == 1
    with pytest.raises(ConfigError, match="--trace .* cannot be written: No such file"):
        open_trace(tmp_path / "missing" / "steps.jsonl")
