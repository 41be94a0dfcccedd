"""Weights of codes on a GPU, and products with them: activations in their dtype or as codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from hal.binding import Binder
from hal.device import Capabilities, Device
from hal.dtypes import DType
from hal.kernels.reference.quantized_rows import QuantizedMatrix
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import HasWeights, needs_quantized
from hal.kernels.triton.packed_int4 import PackedInt4
from hal.kernels.triton.predicates import FLOATS, needs_float
from hal.kernels.triton.program import Program, next_power_of_2
from hal.kernels.triton.tuning import launch_options
from hal.select import Regime
from hal.weights import ACTIVATION_GROUP, LogicalWeight, WeightFormat

_ROUND_TOKENS = Program("rounding", "round_tokens")
_ROUND_GROUPS = Program("rounding", "round_groups")
_MULTIPLY_GROUPS = Program("linear", "multiply_groups")
_MULTIPLY_ROWS = Program("linear", "multiply_rows")
# Tokens up to which the small tile is launched: its height.
_FEW_TOKENS = 16
_MOST_COLUMNS = 2**31 // 127**2


def rejects(caps: Capabilities, problem: HasWeights) -> str | None:
    """Of formats and dtypes, for every op with a weight of codes."""
    if reason := needs_quantized(caps, problem):
        return reason
    assert problem.weights is not None
    if problem.weights.keeps_activations and problem.dtype is DType.FLOAT32:
        sixteen = ", ".join(str(dtype) for dtype in FLOATS if dtype.bits == 16)
        return f"decodes weights to {sixteen}; activations of {problem.weights} are in float32"
    return needs_float(caps, problem)


def rejects_columns(problem: HasWeights, columns: int) -> str | None:
    """Why a sum over so many columns does not fit. int4 sums few before it scales them."""
    weights = problem.weights
    is_summed = (
        weights is not None and weights.codes is DType.INT8 and not weights.keeps_activations
    )
    if not is_summed or columns <= _MOST_COLUMNS:
        return None
    return f"sums up to {_MOST_COLUMNS} products of codes in 32 bits; the weight has {columns}"


def regimes(_problem: object) -> tuple[Regime, ...]:
    return (
        Regime(1, _FEW_TOKENS, "low tiles, one over all tokens: the weight is read once"),
        Regime(_FEW_TOKENS + 1, None, "high tiles"),
    )


class Rounding(ABC):
    """x as int8 codes with their scales, in the step arena; a row of codes is `width` long."""

    width: int

    def __init__(self, width: int, num_scales: int, binder: Binder) -> None:
        self.width = width
        self._codes = binder.arena.buffer("x_codes", width, DType.INT8)
        self._scales = binder.arena.buffer("x_scales", num_scales, DType.FLOAT32)
        self._options: dict[str, Any] = {
            **launch_options(binder.selector.caps, "rounding"),
            "enable_fp_fusion": False,  # src/rounding.py
        }

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scales = as_torch(self._codes.rows(len(x))), as_torch(self._scales.rows(len(x)))
        self._launch(x, codes, scales)
        return codes, scales

    @abstractmethod
    def _launch(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None: ...


class TokenRounding(Rounding):
    """A scale for each token."""

    def __init__(self, columns: int, binder: Binder) -> None:
        super().__init__(columns, 1, binder)
        block = min(self._options["BLOCK"], next_power_of_2(columns))
        self._options |= {"WIDTH": columns, "BLOCK": block}

    def _launch(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        _ROUND_TOKENS.launch((len(x),), x, codes, scales, **self._options)


class GroupRounding(Rounding):
    """A scale for each ACTIVATION_GROUP columns, zeros up to `padded_columns`."""

    def __init__(self, columns: int, padded_columns: int, binder: Binder) -> None:
        super().__init__(padded_columns, padded_columns // ACTIVATION_GROUP, binder)
        block = min(self._options["BLOCK"], next_power_of_2(padded_columns))
        self._num_pieces = -(-padded_columns // block)
        self._options |= {
            "WIDTH": columns,
            "PADDED": padded_columns,
            "GROUP": ACTIVATION_GROUP,
            "BLOCK": block,
        }

    def _launch(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        _ROUND_GROUPS.launch((len(x), self._num_pieces), x, codes, scales, **self._options)


class _Launches:
    """The tile and options of each shape class of one product."""

    def __init__(self, binder: Binder, op: str, out: int, constants: dict[str, int]) -> None:
        self._out = out
        # Unfused, so that scaling and bias round alike in every tile.
        shared = {**constants, "OUT": out, "enable_fp_fusion": False}
        self._options: dict[str, dict[str, int]] = {
            name: {**launch_options(binder.selector.caps, op, name), **shared}
            for name in ("small", "large")
        }

    def __call__(self, program: Program, x: torch.Tensor, *arguments: Any) -> None:
        """arguments: all others of the program but the number of tokens."""
        assert x.is_contiguous(), f"x has strides {x.stride()}"
        options = self._options["small" if len(x) <= _FEW_TOKENS else "large"]
        grid = (-(-len(x) // options["ROWS"]), -(-self._out // options["COLUMNS"]))
        program.launch(grid, x, *arguments, len(x), **options)


class Int4Matrix:
    """PackedInt4 and products with it."""

    def __init__(self, rows: int, columns: int, format: WeightFormat, binder: Binder) -> None:
        self._packed = packed = PackedInt4(rows, columns, format)
        self._rounding: Rounding | None = None
        if not format.keeps_activations:
            self._rounding = GroupRounding(columns, packed.padded_columns, binder)
        constants = {
            "IN": columns,
            "PADDED": packed.padded_columns,
            "GROUP": packed.group_size,
            "NUM_GROUPS": packed.num_groups,
        }
        self._launch = _Launches(binder, "linear_int4", rows, constants)

    @property
    def num_bytes(self) -> int:
        return self._packed.num_bytes

    def allocate(self, device: Device) -> None:
        self._packed.allocate(device)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self._packed.load(first_row, weight)

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """x, out: contiguous."""
        scales = None
        if self._rounding is not None:
            x, scales = self._rounding(x)
        weight = (self._packed.codes, self._packed.scales, self._packed.zeros)
        self._launch(_MULTIPLY_GROUPS, x, scales, *weight, bias, out)


class RowScaledMatrix:
    """int8 or e4m3 codes [rows, columns] as the reference stores them, a scale for each row."""

    def __init__(self, rows: int, columns: int, format: WeightFormat, binder: Binder) -> None:
        self._matrix = QuantizedMatrix(rows, columns, format)
        self._rounding = None if format.keeps_activations else TokenRounding(columns, binder)
        constants = {"IN": columns, "IS_FP8": format.codes is DType.FLOAT8_E4M3FN}
        self._launch = _Launches(binder, "linear_8bit", rows, constants)

    @property
    def num_bytes(self) -> int:
        return self._matrix.num_bytes

    def allocate(self, device: Device) -> None:
        self._matrix.allocate(device)
        codes = self._matrix.stored.codes
        # Not every arch that multiplies what e4m3 decodes to lets a kernel name it.
        self._codes = codes if codes.dtype is torch.int8 else codes.view(torch.uint8)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self._matrix.load(first_row, weight)

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """[ids, columns] in float32."""
        return self._matrix.look_up(ids)

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """x, out: contiguous."""
        scales = None
        if self._rounding is not None:
            x, scales = self._rounding(x)
        weight = (self._codes, self._matrix.stored.scales)
        self._launch(_MULTIPLY_ROWS, x, scales, *weight, bias, out)


def stored_matrix(
    rows: int, columns: int, format: WeightFormat, binder: Binder
) -> Int4Matrix | RowScaledMatrix:
    """The layout of a format; memory comes with `allocate`."""
    if format.codes is DType.INT4:
        return Int4Matrix(rows, columns, format, binder)
    return RowScaledMatrix(rows, columns, format, binder)
