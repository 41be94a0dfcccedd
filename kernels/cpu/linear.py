"""linear on AVX512: for each way of storing a weight one layout from decode to prefill."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

import torch

from hal.binding import Binder
from hal.device import Device
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.packed_weight import PackedWeight
from hal.kernels.cpu.products import AVX512_BF16, AVX512_DECODED, AVX512_VNNI
from hal.kernels.cpu.quantized_weight import QuantizedWeight
from hal.kernels.reference.tensors import as_torch, raw_bytes
from hal.opset import linear
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearFamily, LinearProblem
from hal.opset.norm import NormInput
from hal.opset.stored import StoredForm
from hal.tensor import Tensor
from hal.weights import LogicalWeight


def stored_weight(
    problem: LinearProblem,
    binder: Binder,
    products: native.Products = native.load,
    *,
    is_gated: bool = False,
) -> PackedWeight | QuantizedWeight:
    """The layout for the problem's weight, with room declared for what its products need."""
    rows, columns = problem.out_features, problem.in_features
    if problem.weights is None:
        return PackedWeight(rows, columns, problem.dtype, is_gated=is_gated, products=products)
    weight = QuantizedWeight(rows, columns, problem.weights, is_gated=is_gated, products=products)
    scratch_bytes = weight.scratch_bytes(problem.dtype)
    weight.scratch = binder.arena.buffer("rounded_x", scratch_bytes, DType.UINT8)
    return weight


def stored_form(
    problem: object, weight: PackedWeight | QuantizedWeight, *beside: memoryview
) -> StoredForm:
    """The weight's bytes, and those of whatever else belongs to it: such as a bias in the order of
    its rows."""
    kind = type(weight).__name__
    return StoredForm(
        layout=f"{kind} is_gated={weight.is_gated} of {problem}",
        parts=(weight.raw_bytes(), *beside),
    )


@AVX512_DECODED.of(linear)
@AVX512_VNNI.of(linear)
@AVX512_BF16.of(linear)
class PackedLinear(LinearFamily):
    """A packed or quantised weight; at M = 1 it is read at memory bandwidth.

    In bfloat16, M up to 6 cost the same read; sums of codes are whole numbers.
    """

    takes_norm: ClassVar[bool] = True  # whether `products` has `after_norm`

    @staticmethod
    def products() -> ModuleType:
        """The functions of the instruction set that multiplies it."""
        return native.load()

    def __init__(self, problem: LinearProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._weight = stored_weight(problem, binder, self.products)
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

    def stored(self) -> StoredForm:
        bias = () if self._bias is None else (raw_bytes(self._bias),)
        return stored_form(self.problem, self._weight, *bias)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        self._weight.multiply(x, out, self._bias, self._activation)

    def after_norm(self, norm: NormInput, x: Tensor, out: Tensor) -> None:
        """The same on x, whose rows are written as the norm of norm.values right before they are
        read; bits are those of the norm and the product one after the other."""
        self._weight.multiply(x, out, self._bias, self._activation, norm)


class PackedUp(PackedLinear):
    """The first product of an MLP with its activation: out [M, intermediate_size].

    is_gated: rows are gate, then up, as a LinearProblem of 2 * intermediate_size outputs.
    """

    def __init__(
        self, problem: LinearProblem, binder: Binder, activation: Activation, is_gated: bool
    ) -> None:
        super().__init__(problem, binder)
        self._activation = native.ACTIVATION_CODES[activation]
        self._weight = stored_weight(problem, binder, self.products, is_gated=is_gated)
