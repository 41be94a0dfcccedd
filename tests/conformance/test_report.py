"""What a run adds up to: the worst case is kept, and what did not run is never a pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from hal.conform import run as conform_run
from hal.conform.run import ConformRequest, check_names, conform_device, model_run
from hal.conformance.case import Case, Check
from hal.conformance.cases import cases_by_op
from hal.conformance.model_checks import GRAPHS, ModelRecord
from hal.conformance.report import ModelRun, summarise
from hal.conformance.run import Record, conform
from hal.conformance.stage import Stage
from hal.devices.cpu import CpuDevice
from hal.devices.null import NullDevice
from hal.dtypes import DType
from hal.engine.batch import Batch, Int32
from hal.engine.step_inputs import DecodeInputs
from hal.errors import ConfigError, UnsupportedError
from hal.kernels import register_all
from hal.kernels.cpu import native
from hal.select import OPS, Kernel, Level, Traits

register_all()


def record(case: str, *checks: Check, skipped: str = "", raised: str = "") -> Record:
    return Record(
        op="add", kernel="x", case=case, skipped=skipped, raised=raised, checks=tuple(checks)
    )


def test_the_worst_case_is_the_one_nearest_to_its_own_limit() -> None:
    summary = summarise(
        "op",
        "add",
        "x",
        (
            record("large error, larger limit", Check("out", 5e-3, 1e-2)),
            record("small error, small limit", Check("out", 9e-6, 1e-5), Check("ids", 0.0, 0.0)),
            record("not for it", skipped="no float16"),
        ),
    )
    assert summary.has_passed
    assert (summary.num_passed, summary.num_skipped) == (2, 1)
    assert summary.worst is not None
    assert summary.worst.case == "small error, small limit"
    assert summary.worst_ratio == pytest.approx(0.9)
    assert summary.reasons == ("no float16",)


@pytest.mark.parametrize(
    ("check", "ratio"),
    [
        (Check("out", 2e-5, 1e-5), 2.0),
        (Check("ids", 1.0, 0.0), math.inf),
        (Check("out", math.nan, 1e-5), math.inf),
        (Check("out", math.inf, 1e-5), math.inf),
    ],
)
def test_a_check_beyond_its_limit_fails_and_is_the_worst(check: Check, ratio: float) -> None:
    good = Check("other", 0.0, 1e-5)
    outcome = record("case", good, check)
    assert outcome.verdict == "failed"
    assert outcome.worst == check and check.ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    "outcomes",
    [
        (),
        (record("a", skipped="no"),),
        (record("a"),),
        (record("a", Check("out", 0.0, 1.0)), record("b", raised="raised X: y")),
    ],
)
def test_nothing_run_no_check_made_or_an_error_is_no_pass(outcomes: tuple[Record, ...]) -> None:
    assert not summarise("op", "add", "x", outcomes).has_passed


def test_a_kernel_that_raises_keeps_the_checks_before_it() -> None:
    def broken(x: object, y: object, out: object) -> None:
        raise RuntimeError("bad launch")

    kernel = Kernel("add", "broken", Traits(preference=1), lambda _p, _b: broken, broken)
    outcome = conform(kernel, cases_by_op()["add"][0], NullDevice())
    assert outcome.has_failed
    assert outcome.detail == "raised RuntimeError: bad launch"


def test_every_kernel_of_an_op_has_a_row_with_its_worst_case() -> None:
    found = conform_device(NullDevice(), ConformRequest(ops=("add",)))
    assert [run.kernel.name for run in found.kernels] == list(OPS["add"].kernels)
    by_name = {run.kernel.name: run.summary for run in found.kernels}
    assert by_name["reference"].num_passed == len(cases_by_op()["add"])
    assert by_name["reference"].worst is not None
    assert by_name["torch"].num_run == 0 and not by_name["torch"].has_passed
    assert found.has_passed and not found.is_whole


def test_a_case_that_no_kernel_runs_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    picky = Traits(preference=0, level=Level.REFERENCE, rejects=lambda _c, p: f"no {p.dtype}")
    reference = replace(OPS["add"].kernels["reference"], traits=picky)
    monkeypatch.setattr(OPS["add"], "kernels", {"reference": reference})
    found = conform_device(NullDevice(), ConformRequest(ops=("add",)))
    (gap,) = found.gaps
    assert not found.has_passed
    assert gap.what == "add: 6 cases, such as W64-float32"
    assert gap.reason == "no kernel runs them: reference: no float32"


def test_an_op_without_cases_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    left = {op: cases for op, cases in cases_by_op().items() if op != "add"}
    monkeypatch.setattr(conform_run, "cases_by_op", lambda: left)
    found = conform_device(NullDevice(), ConformRequest(ops=("add", "store")))
    assert [str(gap) for gap in found.gaps] == ["add: this op has no conformance case"]
    assert not found.has_passed


def test_a_kernel_that_was_asked_for_and_ran_nothing_is_a_gap() -> None:
    found = conform_device(NullDevice(), ConformRequest(kernels=("sdpa",)))
    assert [gap.what for gap in found.gaps] == ["attention sdpa"]
    assert "runs reference kernels only" in found.gaps[0].reason
    assert not found.has_passed


def graph_record(run: ModelRun) -> ModelRecord:
    (record,) = (r for r in run.records if r.case == GRAPHS)
    return record


def test_graphs_are_not_applicable_where_the_engine_replays_none() -> None:
    record = graph_record(model_run("llama", DType.FLOAT32, NullDevice(), is_quick=True))
    assert record.skipped.startswith("not applicable: graphs are off: null device")


needs_native = pytest.mark.skipif(
    native.unavailable() is not None, reason=f"no native kernels: {native.unavailable()}"
)


@needs_native
def test_replays_are_compared_with_eager_steps_to_the_bit() -> None:
    record = graph_record(model_run("llama", DType.BFLOAT16, CpuDevice(), is_quick=True))
    assert record.has_passed and not record.skipped
    bits = [check for check in record.checks if "the bits of eager steps" in check.quantity]
    assert len(bits) == 2


@needs_native
def test_a_replay_with_old_positions_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fill = DecodeInputs.fill

    def fill_late(self: DecodeInputs, batch: Batch, tables: Int32) -> None:
        fill(self, replace(batch, positions=np.maximum(batch.positions - 1, 0)), tables)

    monkeypatch.setattr(DecodeInputs, "fill", fill_late)
    record = graph_record(model_run("llama", DType.BFLOAT16, CpuDevice(), is_quick=True))
    assert not record.has_passed


@needs_native
def test_a_device_that_promises_graphs_and_captures_none_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: CpuDevice, run: object) -> None:
        raise UnsupportedError("not today")

    monkeypatch.setattr(CpuDevice, "capture", refuse)
    record = graph_record(model_run("llama", DType.BFLOAT16, CpuDevice(), is_quick=True))
    assert not record.has_passed
    assert "no step was captured" in record.detail


class OneCase(Case):
    """Checks nothing."""

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        yield from ()


def test_a_case_without_a_check_is_no_pass() -> None:
    first = cases_by_op()["add"][0]
    case = OneCase(op="add", name="empty", problem=first.problem, dtype=first.dtype)
    assert conform(OPS["add"].kernels["reference"], case, NullDevice()).verdict == "failed"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (ConformRequest(ops=("rmsnorm",)), "did you mean rms_norm?"),
        (ConformRequest(kernels=("refrence",)), "did you mean reference?"),
        (ConformRequest(kernels=("linear=sdpa",)), "no such kernel"),
        (
            ConformRequest(ops=("linear",), kernels=("sdpa",)),
            "linear has no kernel called sdpa; linear has reference, ",
        ),
    ],
)
def test_unknown_names_are_refused(request_: ConformRequest, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_names(request_)
    assert said in caught.value.message
