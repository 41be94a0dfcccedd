"""linear: int4 codes and activations in 16 bits, by a C++ kernel that is compiled at run time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from hal.binding import Binder
from hal.device import Capabilities, Device
from hal.dtypes import DType
from hal.kernels.reference.linear import QuantizedLinear
from hal.kernels.reference.quantized_rows import quantize_weight
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import needs_floats
from hal.kernels.rtc.arch import Target, TileOrder, needs_arch, target_of
from hal.kernels.rtc.predicates import (
    PREFERENCE,
    needs_sixteen_bits,
    needs_wide_rows,
    no_runtime,
)
from hal.kernels.rtc.program import THREADS, Source, load_functions
from hal.kernels.rtc.smoke import relative_error, smoke_failure
from hal.kernels.rtc.tiles import TILE_ROWS, Int4Tiles
from hal.opset import linear
from hal.opset.linear import LinearProblem
from hal.select import Regime, on_accelerators
from hal.tensor import Tensor
from hal.weights import WEIGHT_FORMATS, LogicalWeight

# Tiles of tokens -> tiles of rows of one block: HAL_MULTIPLY in src/int4_linear.cpp.
_ROW_TILES = {1: (1,), 2: (1, 2), 4: (1, 2)}


def functions(order: TileOrder) -> tuple[str, ...]:
    """What is compiled for an arch."""
    fitting = {t: all_r for t, all_r in _ROW_TILES.items() if t <= order.token_tiles}
    return tuple(f"multiply_t{t}_r{r}" for t, all_r in fitting.items() for r in all_r)


def rejects(caps: Capabilities, problem: LinearProblem) -> str | None:
    """Of formats, dtypes, alignment and archs."""
    weights = problem.weights
    if weights is not None and weights.codes is not DType.INT4:
        return f"decodes int4; the problem asks for {weights}"
    if reason := needs_floats(caps, problem):
        return reason
    return (
        needs_arch(caps, problem)
        or needs_sixteen_bits(caps, problem)
        or needs_wide_rows(problem.in_features)
    )


def source(problem: LinearProblem, target: Target) -> Source:
    """What is compiled: the shape is no part of it."""
    assert problem.weights is not None and problem.weights.group_size is not None
    constants = {
        "BFLOAT16": int(problem.dtype is DType.BFLOAT16),
        "GROUP": problem.weights.group_size,
        "ZEROS": int(problem.weights.has_zeros),
    }
    return Source("int4_linear.cpp", target, frozenset(constants.items()))


class Int4Product:
    """Products with an Int4Tiles on one device, compiled when it is made."""

    def __init__(
        self, problem: LinearProblem, tiles: Int4Tiles, target: Target, compute_units: int
    ) -> None:
        self._tiles = tiles
        self._shape = (problem.in_features, problem.out_features)
        self._order = target.order
        self._compute_units = compute_units
        self._functions = load_functions(source(problem, target), functions(target.order))

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """x, out: contiguous."""
        assert x.is_contiguous() and out.is_contiguous(), f"{x.stride()}, {out.stride()}"
        tiles = -(-self._shape[1] // TILE_ROWS)
        launch = plan_launch(len(x), tiles, self._order, self._compute_units)
        weight = (self._tiles.codes, self._tiles.scales, self._tiles.zeros)
        arguments = (*weight, x, bias, out, len(x), *self._shape)
        self._functions[launch.function](launch.grid, THREADS, arguments)


@dataclass(frozen=True, slots=True)
class Launch:
    """Which function, over how many blocks of rows and of tokens."""

    function: str
    grid: tuple[int, int]


def plan_launch(num_tokens: int, num_tiles: int, order: TileOrder, compute_units: int) -> Launch:
    """The fewest tiles of tokens that hold all, of those that a block can make, and as many tiles
    of rows as leave a block for every compute unit."""
    choices = [t for t in _ROW_TILES if t <= order.token_tiles]
    token_tiles = next((t for t in choices if t * order.tokens >= num_tokens), choices[-1])
    num_blocks = -(-num_tokens // (token_tiles * order.tokens))
    fitting = [r for r in _ROW_TILES[token_tiles] if num_tiles * num_blocks >= r * compute_units]
    row_tiles = max(fitting, default=1)
    grid = (-(-num_tiles // row_tiles), num_blocks)
    return Launch(f"multiply_t{token_tiles}_r{row_tiles}", grid)


def regimes(_problem: LinearProblem) -> tuple[Regime, ...]:
    return (
        Regime(1, 16, "matrix instructions of 8 or 16 tokens, the weight is read once"),
        Regime(17, None, "the same, the weight is read for every 16 to 64 tokens"),
    )


@cache
def unavailable() -> str | None:
    """No compiler or driver, or first products that are wrong."""
    return no_runtime() or smoke_failure(_smoke_error)


@linear.family(
    "mma_int4",
    preference=PREFERENCE,
    capturable=on_accelerators,  # compiled and loaded when memory is taken
    rejects=rejects,
    unavailable=unavailable,
    regimes=regimes,
)
class MmaInt4Linear(QuantizedLinear):
    """x and out are contiguous. Sums of 32 columns are scaled in float32.

    Source: the offline order of Marlin (Frantar et al. 2024); see src/int4_linear.cpp.
    """

    matrix: Int4Tiles

    def __init__(self, problem: LinearProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        assert problem.weights is not None
        self._caps = binder.selector.caps
        shape = (problem.out_features, problem.in_features)
        self.matrix = Int4Tiles(*shape, problem.weights, target_of(self._caps).order)

    def allocate(self, device: Device) -> None:
        super().allocate(device)
        target, compute_units = target_of(self._caps), self._caps.compute_units
        self._multiply = Int4Product(self.problem, self.matrix, target, compute_units)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        self._multiply(as_torch(x), self.bias, as_torch(out))


def _smoke_error(dtype: DType, target: Target, device: torch.device) -> float:
    """Of products by every function, against the codes in float64."""
    weights = WEIGHT_FORMATS["int4-asym-a16"]
    rows, columns = 48, 1160  # several chunks for some warps, none of a whole chunk at the end
    problem = LinearProblem(in_features=columns, out_features=rows, dtype=dtype, weights=weights)
    generator, torch_dtype = torch.Generator().manual_seed(0), getattr(torch, dtype.label)
    values = torch.randn(rows, columns, generator=generator)
    x = torch.randn(130, columns, generator=generator).to(torch_dtype)
    part = quantize_weight(values, weights)
    scales = part.scales.double().repeat_interleave(part.group_size, dim=1)[:, :columns]
    expected = x.double() @ (part.codes.double() * scales).T

    def empty(shape: tuple[int, ...], kind: DType) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, kind.label), device=device)

    tiles = Int4Tiles(rows, columns, weights, target.order)
    tiles.make(empty)
    tiles.load(0, LogicalWeight(values=values, dtype=DType.FLOAT32))
    worst = 0.0
    for compute_units in (1, 1000):  # the most and the fewest tiles of rows
        product = Int4Product(problem, tiles, target, compute_units)
        for num_tokens in (130, 17, 9, 1):
            out = torch.full((num_tokens, rows), torch.nan, dtype=torch_dtype, device=device)
            product(x[:num_tokens].to(device), None, out)
            worst = max(worst, relative_error(out, expected[:num_tokens]))
    return worst
