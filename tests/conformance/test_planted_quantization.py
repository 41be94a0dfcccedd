"""Kernels that round to other codes than the format says: the oracle must tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hal.conformance.cases import cases_by_op
from hal.conformance.run import Record, conform
from hal.devices.null import NullDevice
from hal.kernels import register_all
from hal.kernels.reference import quantized_rows
from hal.kernels.reference.quantized_rows import (
    QuantizedRows,
    quantize_activations,
    quantize_weight,
)
from hal.select import OPS
from hal.weights import WEIGHT_FORMATS, WeightFormat

register_all()

Quantize = Callable[[torch.Tensor, WeightFormat], QuantizedRows]


def run(op: str, label: str) -> Record:
    case = next(case for case in cases_by_op()[op] if case.label == label)
    return conform(OPS[op].kernels["reference_quantized"], case, NullDevice())


def one_scale_for_a_token(x: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    """int8's rule where int4 has a scale for each group."""
    return quantize_activations(x, replace(format, group_size=None))


def one_code_less(x: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    """Never the highest magnitude, as with a scale of max / 128."""
    rows = quantize_activations(x, format)
    return replace(rows, codes=rows.codes.clamp(-126, 126))


def towards_zero(x: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    rows = quantize_activations(x, format)
    is_up = (
        rows.codes.float() * rows.scales.repeat_interleave(rows.group_size, 1)[:, : x.shape[1]]
        > x.float()
    )
    return replace(rows, codes=rows.codes - (is_up & (rows.codes > 0)).to(torch.int8))


def seven_for_minus_eight(values: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    """Leaves the sixteenth code of int4 unused."""
    rows = quantize_weight(values, format)
    return replace(rows, codes=rows.codes.clamp(min=-7))


def scales_in_float32(values: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    """Forgets that scales of int4 are rounded to bfloat16."""
    rows = quantize_weight(values, format)
    return replace(rows, scales=rows.scales * 1.001)


def first_group_for_all(values: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    rows = quantize_weight(values, format)
    return replace(rows, scales=rows.scales[:, :1].expand_as(rows.scales))


def fp8_cut_off(values: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    """Mantissas cut off instead of rounded."""
    rows = quantize_weight(values, format)
    exact = values.float() / rows.scales
    is_up = rows.codes.float().abs() > exact.abs()
    bits = rows.codes.view(torch.uint8) - is_up.to(torch.uint8)
    return replace(rows, codes=bits.view(torch.float8_e4m3fn))


def zero_point_off_by_one(values: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    rows = quantize_weight(values, format)
    return replace(rows, codes=rows.codes + 1)


def zero_point_in_the_middle(values: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    """Symmetric codes where the format asks for a zero point."""
    return quantize_weight(values, replace(format, has_zeros=False))


@pytest.mark.parametrize(
    ("function", "plant", "op", "label"),
    [
        ("quantize_weight", fp8_cut_off, "linear", "fp8-K64-N48-bias-float32"),
        ("quantize_weight", zero_point_off_by_one, "linear", "int4-asym-K64-N48-bias-float32"),
        (
            "quantize_weight",
            zero_point_in_the_middle,
            "linear",
            "int4-g64-asym-a16-K64-N48-bias-float32",
        ),
        ("quantize_weight", first_group_for_all, "linear", "int4-a16-K131-N130-bias-float32"),
        ("quantize_weight", scales_in_float32, "vocab", "int8-a16-V203-H40-tied-float32"),
        ("quantize_activations", one_scale_for_a_token, "linear", "int4-K131-N130-bias-float32"),
        ("quantize_activations", one_code_less, "linear", "int8-K64-N48-bias-float32"),
        ("quantize_activations", towards_zero, "linear", "int8-K64-N48-bias-float32"),
        ("quantize_activations", towards_zero, "linear", "int4-K64-N48-bias-float32"),
        ("quantize_weight", seven_for_minus_eight, "linear", "int4-K64-N48-bias-float32"),
        ("quantize_weight", scales_in_float32, "linear", "int4-K64-N48-bias-float32"),
        ("quantize_weight", first_group_for_all, "linear", "int4-g64-K131-N130-bias-float32"),
        ("quantize_weight", first_group_for_all, "vocab", "int4-V203-H40-tied-float32"),
    ],
)
def test_planted_rounding_is_caught(
    monkeypatch: pytest.MonkeyPatch, function: str, plant: Quantize, op: str, label: str
) -> None:
    assert run(op, label).has_passed
    monkeypatch.setattr(quantized_rows, function, plant)
    failures = run(op, label).failures
    assert {c.quantity.split(",")[0] for c in failures} & {"out", "logits", "embed"}, failures


def test_activations_that_should_be_kept_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that takes the way of the other formats."""

    def rounds(matrix: quantized_rows.QuantizedMatrix, x: torch.Tensor) -> torch.Tensor:
        codes = quantize_activations(x, WEIGHT_FORMATS["int8"])
        return original(matrix, codes.codes.float() * codes.scales)

    original = quantized_rows.QuantizedMatrix._multiply_floats
    monkeypatch.setattr(quantized_rows.QuantizedMatrix, "_multiply_floats", rounds)
    for name in ("int8-a16", "fp8", "int4-asym-a16"):
        assert not run("linear", f"{name}-K64-N48-bias-float32").has_passed
