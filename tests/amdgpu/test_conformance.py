"""Triton kernels as machine code for AMD cards, run by the emulator against the float64 oracle.

A part of the conformance table (hal.conform.emulated.quick_cases); `make amdgpu` runs all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from evidence import emulated_rows

import hal
from hal.cli.info.command import main
from hal.cli.info.verify import render_emulated
from hal.conform import emulated
from hal.conform.emulated import (
    COMPILED_WITH,
    EMULATED_ARCHS,
    EmulatedCase,
    EmulatedRecord,
    EmulationRequest,
    emulated_cases,
    quick_cases,
    run_cases,
)
from hal.conformance.case import Check
from hal.conformance.run import Record
from hal.errors import ConfigError, UnsupportedError
from hal.evidence.rows import Level
from hal.kernels.triton.program import is_installed
from hal.select import OPS

needs_triton = pytest.mark.skipif(not is_installed(), reason="triton is not installed")
CASES = emulated_cases(EmulationRequest())
# A few in the form that users run, whose buffer instructions reach memory by other ways.
DEFAULT_FORM = [
    EmulatedCase(arch, op, case, has_buffer_ops=True)
    for arch in EMULATED_ARCHS
    for op, case in (
        ("add", "W33-in-place-bfloat16"),
        ("adjust_logits", "penalties-bias-float32"),
        ("attention", "decode-bfloat16"),
        ("attention", "window-16-chunks-bfloat16"),
        ("linear", "int8-K33-N17-bias-float16"),
        ("linear", "fp8-K131-N130-bias-bfloat16"),
        ("rms_norm", "H100-bfloat16"),
        ("sample", "mixed-smooth-V7-float32"),
    )
]
Records = dict[EmulatedCase, Record]


def name_of(wanted: EmulatedCase) -> str:
    form = "-default-form" if wanted.has_buffer_ops else ""
    return f"{wanted.arch}-{wanted.op}-{wanted.case}{form}"


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest) -> Iterator[Records]:
    """All cases that this session selected, run in other processes."""
    items = [item for item in request.session.items if hasattr(item, "callspec")]
    wanted = [i.callspec.params["wanted"] for i in items if "wanted" in i.callspec.params]
    found = run_cases(wanted)
    yield {case: made.record for case, made in zip(wanted, found, strict=True)}


@needs_triton
@pytest.mark.parametrize("wanted", [*CASES, *DEFAULT_FORM], ids=name_of)
def test_machine_code_computes_what_its_op_says(wanted: EmulatedCase, records: Records) -> None:
    record = records[wanted]
    if record.skipped:
        pytest.skip(f"{wanted.op} on {wanted.arch}: {record.skipped}")
    assert record.has_passed, str(record)


def test_every_kernel_is_emulated_on_every_arch() -> None:
    ops = {op.name for op in OPS.values() if "triton" in op.kernels}
    assert {(c.arch, c.op) for c in CASES} == {(a, op) for a in EMULATED_ARCHS for op in ops}


def test_each_pattern_of_the_part_names_cases() -> None:
    """A pattern that a renamed case left without meaning would shrink the part silently."""
    for op, patterns in emulated._QUICK.items():
        labels = [case.label for case in quick_cases()[op]]
        for pattern in patterns:
            assert any(fnmatchcase(label, pattern) for label in labels), (op, pattern)


def test_other_archs_and_ops_are_refused() -> None:
    with pytest.raises(ConfigError, match="sm_90 is only compiled for"):
        emulated_cases(EmulationRequest(archs=("gfx942", "sm_90")))
    with pytest.raises(ConfigError, match="store"):
        emulated_cases(EmulationRequest(ops=("store",)))


def test_an_installed_package_has_no_emulator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hal, "__file__", str(tmp_path / "site-packages" / "hal" / "__init__.py"))
    with pytest.raises(UnsupportedError, match="checkout"):
        emulated.emulator_folder()
    assert main(["verify", "--targets", "gfx942", "--execute"]) == 2
    assert "checkout" in capsys.readouterr().err


def test_the_report_says_emulated_and_how_it_was_compiled() -> None:
    passed = Record(op="add", kernel="triton", case="a", checks=(Check("out", 0.5, 1.0),))
    failed = Record(op="add", kernel="triton", case="b", raised="LdsRaceError: line 7")
    text = render_emulated([EmulatedRecord("gfx950", r) for r in (passed, failed)])
    assert "gfx950" in text and "failed: b: LdsRaceError: line 7" in text
    assert "Emulated, not run on a card" in text and COMPILED_WITH in text
    assert render_emulated([]) == ""


@needs_triton
def test_the_command_executes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--targets", "gfx942", "--execute", "--op", "keep_tokens", "--json"]
    assert main(["verify", *arguments]) == 0
    said = json.loads(capsys.readouterr().out)
    (found,) = said["emulated"]
    assert said["compiled_with"] == COMPILED_WITH and said["cells"]
    assert (found["arch"], found["op"], found["verdict"]) == ("gfx942", "keep_tokens", "passed")


def test_every_case_is_asked_for_with_execute_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--all-cases"]) == 2
    assert "--execute" in capsys.readouterr().err


@needs_triton
def test_evidence_is_of_ops_without_a_failed_or_missing_case() -> None:
    passed = Record(op="add", kernel="triton", case="a", checks=(Check("out", 0.0, 1.0),))
    failed = Record(op="rms_norm", kernel="triton", case="a", raised="raised")
    missing = Record(op="sample", kernel="triton", case="a", missing="no first kernel")
    skipped = Record(op="linear", kernel="triton", case="a", skipped="stores codes")
    records = [EmulatedRecord("gfx942", r) for r in (passed, passed, failed, missing, skipped)]
    good = Record(op="sample", kernel="triton", case="b", checks=(Check("out", 0.0, 1.0),))
    (row,) = emulated_rows([*records, EmulatedRecord("gfx942", good)])
    assert (row.arch, row.op, row.level, row.num_cases) == ("gfx942", "add", Level.EMULATED, 2)
    assert not row.missing_proof() and COMPILED_WITH in row.proof
