"""Weights on a GPU in every format, and products with them: activations as they are or as codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hal.binding import Binder
from hal.device import Capabilities, Device
from hal.dtypes import DType
from hal.kernels.reference.quantized_rows import QuantizedMatrix
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import HasWeights, needs_quantized, store_rows
from hal.kernels.triton.packed_int4 import PackedInt4
from hal.kernels.triton.predicates import FLOATS, needs_float
from hal.kernels.triton.program import Program, next_power_of_2
from hal.kernels.triton.rounding import GroupRounding, Rounding, TokenRounding
from hal.kernels.triton.tuning import launch_options
from hal.opset.moe import GroupedLinearProblem
from hal.select import Regime
from hal.weights import LogicalWeight, WeightFormat

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


def expert_regimes(problem: GroupedLinearProblem) -> tuple[Regime, ...]:
    if problem.weights is None and problem.dtype is DType.FLOAT32:
        return (Regime(1, None, "one launch for all experts, low tiles"),)
    few = _FEW_TOKENS * problem.num_experts // problem.top_k
    return (
        Regime(1, few, "one launch for all experts, low tiles: most weights are read once"),
        Regime(few + 1, None, "one launch for all experts, high tiles"),
    )


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """[num_experts * rows, columns]: one weight, or those of all experts behind each other.

    top_k: rows of x for each token of a step
    """

    rows: int
    columns: int
    num_experts: int = 1
    top_k: int = 1

    @property
    def all_rows(self) -> int:
        return self.num_experts * self.rows


class _Launches:
    """The tile and options of each shape class of one product."""

    def __init__(
        self, binder: Binder, op: str, shape: MatrixShape, constants: dict[str, int]
    ) -> None:
        self._shape = shape
        shared = {
            **constants,
            "OUT": shape.rows,
            "EXPERTS": shape.num_experts,
            "EXPERTS_BLOCK": next_power_of_2(shape.num_experts),
            "enable_fp_fusion": False,  # so that scaling and bias round alike in every tile
        }
        self._options: dict[str, dict[str, int]] = {
            name: {**launch_options(binder.selector.caps, op, name), **shared}
            for name in ("small", "large")
        }

    def __call__(self, program: Program, x: torch.Tensor, *arguments: Any) -> None:
        """arguments: all others of the program but the number of tokens."""
        assert x.is_contiguous(), f"x has strides {x.stride()}"
        # Products of floats in float32 are no matrix instruction's: high tiles would spill.
        is_small = len(x) <= _FEW_TOKENS * self._shape.num_experts or x.dtype is torch.float32
        options = self._options["small" if is_small else "large"]
        num_tiles = self._most_tiles(len(x), options["ROWS"])
        grid = (num_tiles, -(-self._shape.rows // options["COLUMNS"]))
        program.launch(grid, x, *arguments, len(x), **options)

    def _most_tiles(self, num_rows: int, rows: int) -> int:
        """Of so many rows, however they fall to the experts: each may end in a tile of few."""
        num_ends = min(num_rows, self._shape.num_experts)
        return num_ends + (num_rows - num_ends) // rows


class Int4Matrix:
    """PackedInt4 and products with it."""

    def __init__(self, shape: MatrixShape, format: WeightFormat, binder: Binder) -> None:
        columns = shape.columns
        self._packed = packed = PackedInt4(shape.all_rows, columns, format)
        self._rounding: Rounding | None = None
        if not format.keeps_activations:
            self._rounding = GroupRounding(columns, packed.padded_columns, binder, shape.top_k)
        constants = {
            "IN": columns,
            "PADDED": packed.padded_columns,
            "GROUP": packed.group_size,
            "NUM_GROUPS": packed.num_groups,
        }
        self._launch = _Launches(binder, "linear_int4", shape, constants)

    @property
    def num_bytes(self) -> int:
        return self._packed.num_bytes

    def allocate(self, device: Device) -> None:
        self._packed.allocate(device)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self._packed.load(first_row, weight)

    def multiply(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        bias: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
    ) -> None:
        """x, out: contiguous; offsets: as of GroupedLinearFamily, where there are experts."""
        scales = None
        if self._rounding is not None:
            x, scales = self._rounding(x)
        weight = (self._packed.codes, self._packed.scales, self._packed.zeros)
        self._launch(_MULTIPLY_GROUPS, x, scales, *weight, bias, offsets, out)


class RowScaledMatrix:
    """int8 or e4m3 codes [rows, columns] as the reference stores them, a scale for each row."""

    def __init__(self, shape: MatrixShape, format: WeightFormat, binder: Binder) -> None:
        columns = shape.columns
        self._matrix = QuantizedMatrix(shape.all_rows, columns, format)
        self._rounding: Rounding | None = None
        if not format.keeps_activations:
            self._rounding = TokenRounding(columns, binder, shape.top_k)
        constants = {"IN": columns, "IS_FP8": format.codes is DType.FLOAT8_E4M3FN}
        self._launch = _Launches(binder, "linear_8bit", shape, constants)

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

    def multiply(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        bias: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
    ) -> None:
        """As of Int4Matrix."""
        scales = None
        if self._rounding is not None:
            x, scales = self._rounding(x)
        weight = (self._codes, self._matrix.stored.scales)
        self._launch(_MULTIPLY_ROWS, x, scales, *weight, bias, offsets, out)


class PlainMatrix:
    """A weight as the checkpoint has it, in x's dtype."""

    def __init__(self, shape: MatrixShape, dtype: DType, binder: Binder) -> None:
        self._shape, self._dtype = (shape.all_rows, shape.columns), dtype
        constants = {"IN": shape.columns, "IS_FP8": False}
        self._launch = _Launches(binder, "linear_16bit", shape, constants)

    @property
    def num_bytes(self) -> int:
        return self._dtype.num_bytes(self._shape[0] * self._shape[1])

    def allocate(self, device: Device) -> None:
        self._weight = as_torch(device.empty(self._shape, self._dtype))

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        store_rows(self._weight, first_row, weight)

    def multiply(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        bias: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
    ) -> None:
        """As of Int4Matrix."""
        self._launch(_MULTIPLY_ROWS, x, None, self._weight, None, bias, offsets, out)


def stored_matrix(
    shape: MatrixShape, format: WeightFormat, binder: Binder
) -> Int4Matrix | RowScaledMatrix:
    """The layout of a format; memory comes with `allocate`."""
    if format.codes is DType.INT4:
        return Int4Matrix(shape, format, binder)
    return RowScaledMatrix(shape, format, binder)
