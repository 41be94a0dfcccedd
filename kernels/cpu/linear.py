"""linear on AVX512-BF16: one packed layout from decode to prefill."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.device import Device
from hal.kernels.cpu import native
from hal.kernels.cpu.packed_weight import PackedWeight
from hal.kernels.reference.tensors import as_torch
from hal.opset import linear
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearFamily, LinearProblem
from hal.select import Regime
from hal.tensor import Tensor
from hal.weights import LogicalWeight


def multiply(
    x: Tensor,
    weight: PackedWeight,
    out: Tensor,
    bias: torch.Tensor | None = None,
    activation: int = native.NO_ACTIVATION,
) -> None:
    """out = activation(x @ weight.T + bias), or activation(gate) * up of a gated weight.

    x [M, columns] in the weight's dtype; out [M, rows] (gated: [M, rows / 2]) in that dtype or
    float32; rows of both may be apart. Sums are one float32 chain per element at every M.
    """
    source, target = as_torch(x), as_torch(out)
    assert source.stride(1) == 1 and target.stride(1) == 1, "columns must be contiguous"
    native.load().linear(
        source.data_ptr(),
        source.stride(0),
        source.shape[0],
        weight.address,
        weight.rows,
        weight.columns,
        weight.code,
        0 if bias is None else bias.data_ptr(),
        target.data_ptr(),
        native.TORCH_CODES[target.dtype],
        target.stride(0),
        activation,
        weight.is_gated,
        torch.get_num_threads(),
    )


def regimes(_problem: object) -> tuple[Regime, ...]:
    """Of products with a packed weight; src/linear_avx512.cpp has the limits."""
    return (
        Regime(1, 6, "each panel of the weight is read once and reused from registers"),
        Regime(7, None, "blocks of the weight stay in cache while tiles of 6 tokens pass"),
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
    """A packed weight; at M = 1 it is read at memory bandwidth, M up to 6 cost the same read."""

    def __init__(self, problem: LinearProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._weight = PackedWeight(problem.out_features, problem.in_features, problem.dtype)
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
        multiply(x, self._weight, out, self._bias, self._activation)


class PackedUp(PackedLinear):
    """The first product of an MLP with its activation: out [M, intermediate_size].

    is_gated: rows are gate, then up, as a LinearProblem of 2 * intermediate_size outputs.
    """

    def __init__(
        self, problem: LinearProblem, binder: Binder, activation: Activation, is_gated: bool
    ) -> None:
        super().__init__(problem, binder)
        self._activation = native.ACTIVATION_CODES[activation]
        self._weight = PackedWeight(
            problem.out_features, problem.in_features, problem.dtype, is_gated=is_gated
        )
