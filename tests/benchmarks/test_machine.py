"""Load is refused with its numbers; what was not measured says so."""

from __future__ import annotations

import os

import pytest
from peers import machine


def test_a_load_above_the_limit_is_a_problem() -> None:
    assert machine.load_problem(1.0, 1.0) is None
    problem = machine.load_problem(1.5, 1.0)
    assert problem is not None and "1.50" in problem and "--force" in problem


def test_busy_time_leaves_out_idle_and_waiting() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = f"cpu  {1 * ticks} {2 * ticks} {3 * ticks} 900 900 {4 * ticks} {5 * ticks} {6 * ticks} 0"
    assert machine.busy_seconds(stat + "\ncpu0 1 2 3") == 21.0


def test_busy_time_of_this_machine_is_more_than_our_own() -> None:
    own = os.times()
    assert machine.busy_seconds() > own.user


def test_ceilings_of_a_cpu_without_the_instructions() -> None:
    ceilings = machine.parse_ceilings(
        '{"read_gb_s": 31.25,"vnni_tops": null,"bf16_tflops": 0.2079}\n'
    )
    assert str(ceilings) == "reads 31.2 GB/s, VNNI absent, BF16 0.208 TFLOP/s"


def test_without_a_compiler_the_reason_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with machine.Machine(1) as here:
        assert str(here.ceilings()) == "ceilings not measured: no g++ here"
        assert here.read_gb_s() is None
