"""What a machine could do at best: operations of a case over the measured peak."""

from __future__ import annotations

from dataclasses import replace

import pytest
import record
from peers import bound, report
from peers.cases import CASES, Case, Kind, Length
from peers.checkpoint import Geometry
from peers.machine import Ceilings

TINY = Geometry(
    model_type="llama",
    vocab_size=100,
    hidden_size=8,
    intermediate_size=20,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    max_len=64,
    is_tied=True,
)
QWEN = replace(
    TINY,
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
)
CEILINGS = Ceilings(read_gb_s=30.0, vnni_tops=0.934, bf16_tflops=0.467)


def row(case: str, weights: str, seconds: float) -> report.Row:
    return report.Row(case, weights, "ours", seconds=record.spread([seconds]))


def test_matrices_of_a_layer_are_counted_one_by_one() -> None:
    q, k, v, o = 8 * 8, 8 * 4, 8 * 4, 8 * 8
    gate, up, down = 8 * 20, 8 * 20, 20 * 8
    assert TINY.layer_values == 3 * (q + k + v + o + gate + up + down)


def test_every_token_but_the_last_is_run_and_every_new_one_has_logits() -> None:
    case = Case("two", Kind.MIXED, (Length(5, 3), Length(1, 1)))
    assert bound.operations(case, TINY) == 2 * ((7 + 1) * TINY.layer_values + 4 * 800)


@pytest.mark.parametrize(
    ("weights", "seconds"), [("int4", 11.17), ("int8", 11.17), ("bf16", 22.34)]
)
def test_mixed_64_of_the_half_billion_model(weights: str, seconds: float) -> None:
    """By hand: 2 x (12826 tokens x 357.8 M of the layers + 4619 new ones x 136.1 M of logits)."""
    by_hand = 2 * (12826 * 357.83e6 + 4619 * 136.13e6)
    assert bound.operations(CASES["mixed-64"], QWEN) == pytest.approx(by_hand, rel=1e-4)
    (found,) = bound.with_bounds([row("mixed-64", weights, 2 * seconds)], QWEN, CEILINGS)
    assert found.bound_s == pytest.approx(seconds, rel=1e-3)
    assert found.bound_share == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("weights", "name"),
    [("int4", "VNNI"), ("int4-g64-asym", "VNNI"), ("int4-a16", "BF16"), ("fp8", "BF16")],
)
def test_formats_that_keep_activations_multiply_floats(weights: str, name: str) -> None:
    peak = bound.peak_of(weights, CEILINGS)
    assert peak is not None and peak.name == name


def test_decoding_absent_peaks_and_missing_arms_have_no_bound() -> None:
    rows = [row("decode-1", "int4", 1.0), report.Row("mixed-64", "int4", "peer", reason="no")]
    assert bound.with_bounds(rows, QWEN, CEILINGS) == rows
    without = [row("mixed-64", "int4", 1.0)]
    assert bound.with_bounds(without, QWEN, replace(CEILINGS, vnni_tops=None)) == without


def test_the_better_measurement_is_the_ceiling() -> None:
    slow = Ceilings(read_gb_s=None, vnni_tops=0.5, bf16_tflops=0.5)
    assert bound.best([slow, CEILINGS]) == replace(CEILINGS, bf16_tflops=0.5)


def test_table_and_json_have_the_bound() -> None:
    (found,) = bound.with_bounds([row("mixed-64", "int4", 22.34)], QWEN, CEILINGS)
    found = replace(found, tokens_per_s=record.spread([100.0]))
    head, line = report.case_table([found])
    assert len(head) == len(line)
    assert f"{found.bound_s:.2f} VNNI      50%" in line
    (values,) = report.as_json([found])
    assert values["bound_peak"] == "VNNI"
    assert values["bound_s"] == found.bound_s and values["bound_share"] == found.bound_share
