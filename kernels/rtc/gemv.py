"""linear for up to four tokens on a weight in 16 bits; more go to torch's matrix library."""

from __future__ import annotations

from functools import cache

import torch

from hal.binding import Binder
from hal.device import Capabilities, Device
from hal.dtypes import DType
from hal.errors import UnsupportedError
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import needs_unquantized
from hal.kernels.rtc.arch import Target, needs_arch, target_of
from hal.kernels.rtc.predicates import (
    needs_sixteen_bits,
    needs_wide_rows,
    no_runtime,
)
from hal.kernels.rtc.program import THREADS, Source, load_functions
from hal.kernels.rtc.smoke import relative_error, smoke_failure
from hal.kernels.torch_native.linear import TorchLinear
from hal.opset import linear
from hal.opset.linear import LinearProblem
from hal.select import Regime, on_accelerators
from hal.tensor import Tensor

# Less than torch's until a card has shown which is faster.
_PREFERENCE = 45
_MOST_TOKENS = 4
_FUNCTIONS = tuple(f"multiply_{n}" for n in range(1, _MOST_TOKENS + 1))
_WARP_ROWS = 2


def rejects(caps: Capabilities, problem: LinearProblem) -> str | None:
    """Of formats, archs, dtypes and alignment."""
    return (
        needs_unquantized(caps, problem)
        or needs_arch(caps, problem)
        or needs_sixteen_bits(caps, problem)
        or needs_wide_rows(problem.in_features)
    )


def source(problem: LinearProblem, target: Target) -> Source:
    """What is compiled: the shape is no part of it."""
    constants = {"BFLOAT16": int(problem.dtype is DType.BFLOAT16), "ROWS": _WARP_ROWS}
    return Source("gemv.cpp", target, frozenset(constants.items()))


def regimes(_problem: LinearProblem) -> tuple[Regime, ...]:
    return (
        Regime(1, _MOST_TOKENS, "two rows of the weight a warp, read once"),
        Regime(_MOST_TOKENS + 1, None, "torch's matrix library"),
    )


class Gemv:
    """Products of a few tokens on one device, compiled when it is made."""

    def __init__(self, problem: LinearProblem, target: Target) -> None:
        self._shape = (problem.in_features, problem.out_features)
        block_rows = _WARP_ROWS * THREADS // target.order.warp
        self._grid = (-(-problem.out_features // block_rows), 1)
        self._functions = load_functions(source(problem, target), _FUNCTIONS)

    def __call__(
        self, weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        """All contiguous; x of one to four tokens."""
        assert x.is_contiguous() and out.is_contiguous(), f"{x.stride()}, {out.stride()}"
        function = self._functions[f"multiply_{len(x)}"]
        function(self._grid, THREADS, (weight, x, bias, out, *self._shape))


@linear.family(
    "gemv",
    preference=_PREFERENCE,
    capturable=on_accelerators,  # compiled and loaded when memory is taken
    rejects=rejects,
    unavailable=no_runtime,
    regimes=regimes,
)
class GemvLinear(TorchLinear):
    """torch's family and its weight, but for the fewest tokens. Sums in float32."""

    def __init__(self, problem: LinearProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._target = target_of(binder.selector.caps)

    def allocate(self, device: Device) -> None:
        super().allocate(device)
        # Not before it is chosen: every model in 16 bits is looked at with this kernel in mind.
        if reason := _wrong():
            raise UnsupportedError(f"linear=gemv: {reason}; use --kernel linear=torch")
        self._multiply = Gemv(self.problem, self._target)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        if x.shape[0] > _MOST_TOKENS:
            super().__call__(x, out)
        else:
            self._multiply(self.weight, as_torch(x), self.bias, as_torch(out))


@cache
def _wrong() -> str | None:
    return smoke_failure(_smoke_error)


def _smoke_error(dtype: DType, target: Target, device: torch.device) -> float:
    """Of products by every function, against float64."""
    rows, columns = 35, 2568  # a warp of one row; a loop that ends between two steps
    torch_dtype, generator = getattr(torch, dtype.label), torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator).to(torch_dtype)
    x = torch.randn(_MOST_TOKENS, columns, generator=generator).to(torch_dtype)
    expected = x.double() @ weight.double().T
    problem = LinearProblem(in_features=columns, out_features=rows, dtype=dtype)
    multiply, worst = Gemv(problem, target), 0.0
    for num_tokens in range(1, _MOST_TOKENS + 1):
        out = torch.full((num_tokens, rows), torch.nan, dtype=torch_dtype, device=device)
        multiply(weight.to(device), x[:num_tokens].to(device), None, out)
        worst = max(worst, relative_error(out, expected[:num_tokens]))
    return worst
