"""Weights of codes on a GPU, and products with them: activations in their dtype or as codes."""

from __future__ import annotations

from typing import Any

import torch

from hal.binding import Binder
from hal.device import Capabilities, Device
from hal.dtypes import DType
from hal.kernels.reference.quantized_rows import QuantizedMatrix
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import HasWeights, needs_quantized
from hal.kernels.triton.predicates import FLOATS, needs_float
from hal.kernels.triton.program import Program, next_power_of_2
from hal.kernels.triton.tuning import launch_options
from hal.select import Regime
from hal.weights import LogicalWeight, WeightFormat

_ROUND_TOKENS = Program("rounding", "round_tokens")
_MULTIPLY_ROWS = Program("linear", "multiply_rows")
# Tokens up to which the small tile is launched: its height.
_FEW_TOKENS = 16
_MOST_COLUMNS = 2**31 // 127**2


def rejects(caps: Capabilities, problem: HasWeights) -> str | None:
    """Of formats and dtypes, for every op with a weight of codes."""
    if reason := needs_quantized(caps, problem):
        return reason
    assert problem.weights is not None
    if problem.weights.codes is DType.INT4:
        return f"reads codes of 8 bits; {problem.weights} stores 4"
    if problem.weights.keeps_activations and problem.dtype is DType.FLOAT32:
        sixteen = ", ".join(str(dtype) for dtype in FLOATS if dtype.bits == 16)
        return f"decodes weights to {sixteen}; activations of {problem.weights} are in float32"
    return needs_float(caps, problem)


def rejects_columns(problem: HasWeights, columns: int) -> str | None:
    """Why sums over so many columns do not fit."""
    weights = problem.weights
    if weights is None or weights.keeps_activations or columns <= _MOST_COLUMNS:
        return None
    return f"sums up to {_MOST_COLUMNS} products of codes in 32 bits; the weight has {columns}"


def sums_integers(problem: HasWeights) -> bool:
    """Whether one sum of whole numbers is scaled once: no tile shows in the result."""
    weights = problem.weights
    return weights is not None and weights.codes is DType.INT8 and not weights.keeps_activations


def regimes(_problem: object) -> tuple[Regime, ...]:
    return (
        Regime(1, _FEW_TOKENS, "low tiles, one over all tokens: the weight is read once"),
        Regime(_FEW_TOKENS + 1, None, "high tiles"),
    )


class TokenRounding:
    """x as int8 codes with a scale for each token, in the step arena."""

    def __init__(self, columns: int, binder: Binder) -> None:
        self._codes = binder.arena.buffer("x_codes", columns, DType.INT8)
        self._scales = binder.arena.buffer("x_scales", 1, DType.FLOAT32)
        options = launch_options(binder.selector.caps, "rounding")
        block = min(options["BLOCK"], next_power_of_2(columns))
        self._options: dict[str, Any] = {**options, "WIDTH": columns, "BLOCK": block}

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scales = as_torch(self._codes.rows(len(x))), as_torch(self._scales.rows(len(x)))
        _ROUND_TOKENS.launch((len(x),), x, codes, scales, enable_fp_fusion=False, **self._options)
        return codes, scales


class RowScaledMatrix:
    """int8 or e4m3 codes [rows, columns] as the reference stores them, a scale for each row."""

    def __init__(self, rows: int, columns: int, format: WeightFormat, binder: Binder) -> None:
        self._stored = QuantizedMatrix(rows, columns, format)
        self.num_bytes = self._stored.num_bytes
        self._rows = rows
        self._rounding = None if format.keeps_activations else TokenRounding(columns, binder)
        self._options = {
            shape_class: {
                **launch_options(binder.selector.caps, "linear_8bit", shape_class),
                "IN": columns,
                "OUT": rows,
                "IS_FP8": format.codes is DType.FLOAT8_E4M3FN,
            }
            for shape_class in ("small", "large")
        }

    def allocate(self, device: Device) -> None:
        self._stored.allocate(device)
        codes = self._stored.stored.codes
        # Not every arch that multiplies what e4m3 decodes to lets a kernel name it.
        self._codes = codes if codes.dtype is torch.int8 else codes.view(torch.uint8)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self._stored.load(first_row, weight)

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """x, out: contiguous."""
        num_tokens = len(x)
        options = self._options["small" if num_tokens <= _FEW_TOKENS else "large"]
        scales = None
        if self._rounding is not None:
            x, scales = self._rounding(x)
        grid = (-(-num_tokens // options["ROWS"]), -(-self._rows // options["COLUMNS"]))
        weight = (self._codes, self._stored.stored.scales)
        # Unfused, so that scaling and bias round alike in every tile.
        _MULTIPLY_ROWS.launch(
            grid, x, scales, *weight, bias, out, num_tokens, enable_fp_fusion=False, **options
        )
