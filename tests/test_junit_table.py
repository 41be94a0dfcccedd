"""scripts/junit_table.py counts what pytest wrote and fails on failures and on empty runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import junit_table
import pytest

CASE = '<testcase classname="tests.a" name="{name}" time="1">{inner}</testcase>'


def write_report(path: Path, *cases: str) -> None:
    path.write_text(f"<testsuites><testsuite time='6.04'>{''.join(cases)}</testsuite></testsuites>")


def test_counts(tmp_path: Path) -> None:
    write_report(
        tmp_path / "engine.xml",
        CASE.format(name="ok", inner=""),
        CASE.format(name="bad", inner="<failure/>"),
        CASE.format(name="broken", inner="<error/>"),
        CASE.format(name="skip", inner='<skipped message="no gpu"/>'),
    )
    result = junit_table.read_report(tmp_path / "engine.xml")
    assert (result.num_passed, result.num_failed, result.num_skipped) == (1, 2, 1)
    assert result.time_s == 6.0
    assert result.failures == ("tests.a::bad", "tests.a::broken")
    assert result.skip_reasons == ("no gpu",)
    assert not result.is_ok
    assert "engine" in junit_table.table([result]).splitlines()[-1]


@pytest.mark.parametrize(
    ("cases", "status"),
    [
        ([CASE.format(name="ok", inner="")], 0),
        ([CASE.format(name="bad", inner="<failure/>")], 1),
        ([], 1),
    ],
)
def test_exit_status(
    cases: list[str],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_report(tmp_path / "unit.xml", *cases)
    rows = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["junit_table", str(tmp_path), "--json", str(rows)])
    assert junit_table.main() == status
    assert json.loads(rows.read_text())[0]["suite"] == "unit"
    assert "unit" in capsys.readouterr().out


def test_no_report_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["junit_table", str(tmp_path)])
    assert junit_table.main() == 1
