"""Rates, ratios of the same round, bytes, and the tables they are printed in."""

from __future__ import annotations

import math

import pytest
import record
from peers import report
from peers.cases import CASES, Case, Kind, Length
from peers.child import Run
from peers.environments import OURS
from peers.protocol import Facts

DECODE = Case("decode-2", Kind.DECODE, (Length(10, 5),) * 2)
READING = report.Reading(
    weight_bytes=1000, kv_bytes_per_context_token=4, ceilings_gb_s=(4e-6, 2e-6, 4e-6)
)


def run(total_s: float, first_s: float = 1.0, *, first: int = 7, other_cpu: float = 0.0) -> Run:
    return Run(first_s, total_s, 8, [[first], [first]], other_cpu)


def test_each_kind_counts_its_own_part() -> None:
    half = Run(first_s=0.5, total_s=2.5, decode_tokens=8, first_tokens=[], other_cpu=0.0)
    assert report.rate_of(DECODE, half) == 8 / 2.0
    assert report.rate_of(CASES["prefill-1024"], half) == 1024 / 0.5
    assert report.rate_of(CASES["mixed-64"], half) == 4619 / 2.5


def test_ratios_are_of_the_same_round() -> None:
    ours, theirs = [run(2.0), run(3.0)], [run(3.0), run(5.0), run(9.0)]
    assert report.pair_ratios(DECODE, ours, theirs) == [2.0, 2.0]


def test_a_row_has_medians_bytes_and_its_share_of_the_ceiling() -> None:
    runs = {OURS: [run(2.0), run(2.0), run(2.0)], "peer": [run(3.0), run(5.0), run(9.0, first=1)]}
    row = report.measured_row(DECODE, "bf16", "peer", runs, READING)
    assert row.tokens_per_s == record.Spread(2.0, 1.0, 4.0, 3)
    assert row.ratio == record.Spread(4.0, 2.0, 8.0, 3)
    assert row.bytes_per_token == 1000 / 2 + 4 * 12.5
    assert row.gb_s == pytest.approx(550 * 2.0 / 1e9)
    assert row.read_share == pytest.approx(0.55)
    assert row.same_tokens == 1.0


def test_our_own_row_is_compared_with_nothing() -> None:
    row = report.measured_row(DECODE, "bf16", OURS, {OURS: [run(2.0)]}, READING)
    assert row.ratio is None and row.same_tokens is None


def test_without_ours_a_peer_still_has_its_rate() -> None:
    row = report.measured_row(DECODE, "int4", "peer", {"peer": [run(2.0)]}, READING)
    assert row.ratio is None and row.tokens_per_s is not None


def test_bytes_are_of_decoding_only() -> None:
    assert READING.bytes_per_token(CASES["prefill-1024"]) is None
    assert READING.bytes_per_token(CASES["decode-8"]) == 1000 / 8 + 4 * 64.5


def test_agreement_is_the_share_of_requests() -> None:
    ours = Run(1, 2, 8, [[1, 2], [3, 4]], 0.0)
    theirs = Run(1, 2, 8, [[1, 2], [3, 5]], 0.0)
    assert report.agreement([ours], [theirs]) == 0.5
    assert report.agreement([], [theirs]) is None


def test_perplexity() -> None:
    assert report.perplexity(-10 * math.log(3), 10) == pytest.approx(3.0)


def test_a_missing_arm_is_a_line_with_its_reason() -> None:
    row = report.Row("decode-1", "int4", "openvino", reason="not installed")
    assert report.case_table([row])[1].split(None, 3)[3] == "missing: not installed"
    arm = report.ArmRow("int4", "openvino", reason="not installed")
    assert report.arm_table([arm])[1].endswith("missing: not installed")


def test_the_case_table_marks_what_ran_beside_others() -> None:
    quiet = report.measured_row(DECODE, "bf16", OURS, {OURS: [run(2.0)]}, READING)
    loud = report.measured_row(DECODE, "bf16", OURS, {OURS: [run(2.0, other_cpu=0.5)]}, READING)
    lines = report.case_table([quiet, loud])
    assert lines[1].endswith("0.00") and lines[2].endswith("0.50!")


def test_columns_stand_under_their_names() -> None:
    runs = {OURS: [run(2.0)], "peer": [run(3.0)]}
    head, line = report.case_table(
        [report.measured_row(DECODE, "bf16", "peer", runs, READING)],
    )
    for name in ("tok/s", "(low - high)", "ours/arm", "MB/token", "GB/s", "of read", "same"):
        assert line[head.index(name) + len(name) - 1] not in " ", name
        assert line[head.index(name) + len(name)] == " ", name
    assert len(line) == len(head)


def test_the_arm_table_says_what_was_not_measured() -> None:
    facts = Facts("engine 1", 2_500_000, math.nan, 16, "a note")
    row = report.ArmRow("int8", "peer", facts=facts, perplexity_problem="load: too old")
    line = report.arm_table([row])[1]
    assert line.split() == [
        *("int8", "peer", "2.5", "?", "16", "not", "measured"),
        *("engine", "1;", "a", "note;", "load:", "too", "old"),
    ]


def test_json_has_no_nan() -> None:
    row = report.ArmRow("int8", "peer", facts=Facts("engine 1", 1, math.nan, 16))
    (values,) = report.as_json([row])
    assert isinstance(values["facts"], dict)
    assert values["facts"]["logits_bits"] is None and values["facts"]["kv_bits"] == 16
