"""linear on AVX512-BF16 and AVX512-VNNI: one stored layout from decode to prefill."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.device import Device
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.packed_weight import PackedWeight
from hal.kernels.cpu.quantized_weight import QuantizedWeight
from hal.kernels.reference.tensors import as_torch
from hal.opset import linear
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearFamily, LinearProblem
from hal.select import Regime
from hal.tensor import Tensor
from hal.weights import LogicalWeight


def stored_weight(
    problem: LinearProblem, binder: Binder, *, is_gated: bool = False
) -> PackedWeight | QuantizedWeight:
    """The layout for the problem's weight, with room declared for what its products need."""
    rows, columns = problem.out_features, problem.in_features
    if problem.weights is None:
        return PackedWeight(rows, columns, problem.dtype, is_gated=is_gated)
    weight = QuantizedWeight(rows, columns, problem.weights, is_gated=is_gated)
    weight.scratch = binder.arena.buffer("rounded_x", weight.scratch_bytes, DType.UINT8)
    return weight


def regimes(_problem: object) -> tuple[Regime, ...]:
    """Of products with a packed weight; src/linear_avx512.cpp has the limits."""
    return (
        Regime(1, 6, "each panel of the weight is read once and reused from registers"),
        Regime(7, None, "blocks of the weight stay in cache while tiles of 6 tokens pass"),
    )


def quantized_regimes(_problem: object) -> tuple[Regime, ...]:
    """Of products with codes; src/linear_vnni_avx512.cpp has the limits."""
    return (
        Regime(1, 1, "the weight is one linear stream"),
        Regime(2, 16, "codes are unpacked once, used from registers by every token"),
        Regime(17, None, "panels of the weight stay in L2 while tiles of 16 tokens pass"),
    )


@linear.family(
    "avx512_vnni",
    preference=100,
    regimes=quantized_regimes,
    batch_invariant=True,
    rejects=native.needs_avx512_vnni,
    unavailable=native.quantized_unavailable,
)
@linear.family(
    "avx512_bf16",
    preference=100,
    regimes=regimes,
    batch_invariant=True,
    rejects=native.needs_plain_weights,
    unavailable=native.unavailable,
)
class PackedLinear(LinearFamily):
    """A packed or quantised weight; at M = 1 it is read at memory bandwidth.

    In bfloat16, M up to 6 cost the same read; sums of codes are whole numbers.
    """

    def __init__(self, problem: LinearProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._weight = stored_weight(problem, binder)
        self._bias: torch.Tensor | None = None
        self._activation = native.NO_ACTIVATION

    @property
    def num_bytes(self) -> int:
        bias = self.problem.out_features if self.problem.has_bias else 0
        return self._weight.num_bytes + self.problem.dtype.num_bytes(bias)

    def allocate(self, device: Device) -> None:
        self._weight.allocate(device)
        if self.problem.has_bias:
            shape = (self.problem.out_features,)
            self._bias = as_torch(device.empty(shape, self.problem.dtype))

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self._weight.load(first_row, weight)

    def load_bias(self, first_row: int, values: Tensor) -> None:
        assert self._bias is not None, f"{self.problem} has no bias"
        source = as_torch(values)
        rows = self._weight.stored_rows(first_row, len(source))
        self._bias[rows] = source.to(self._bias.dtype)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        self._weight.multiply(x, out, self._bias, self._activation)

    def product(self, x: Tensor, out: Tensor) -> object:
        """What a call computes, as the native module takes it."""
        return self._weight.product(x, out, self._bias, self._activation)


class PackedUp(PackedLinear):
    """The first product of an MLP with its activation: out [M, intermediate_size].

    is_gated: rows are gate, then up, as a LinearProblem of 2 * intermediate_size outputs.
    """

    def __init__(
        self, problem: LinearProblem, binder: Binder, activation: Activation, is_gated: bool
    ) -> None:
        super().__init__(problem, binder)
        self._activation = native.ACTIVATION_CODES[activation]
        self._weight = stored_weight(problem, binder, is_gated=is_gated)
