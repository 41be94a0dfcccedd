"""linear: the weight as stored, multiplied in float32."""

from __future__ import annotations

from typing import Protocol

import torch

from hal.binding import Binder
from hal.device import Device
from hal.kernels.reference.quantized_rows import QuantizedMatrix
from hal.kernels.reference.tensors import as_torch, widen
from hal.kernels.reference.weight_rows import (
    QUANTIZED_COST,
    needs_quantized,
    needs_unquantized,
    rounds_activations,
    store_rows,
    store_values,
)
from hal.opset import linear
from hal.opset.linear import LinearFamily, LinearProblem
from hal.select import Level
from hal.tensor import Tensor
from hal.weights import LogicalWeight


class RowMajorLinear(LinearFamily):
    """Holds weight [out_features, in_features] and bias [out_features]; subclasses multiply."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __init__(self, problem: LinearProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._shape = (problem.out_features, problem.in_features)

    @property
    def num_bytes(self) -> int:
        rows, columns = self._shape
        return self.problem.dtype.num_bytes(rows * (columns + int(self.problem.has_bias)))

    def allocate(self, device: Device) -> None:
        self.weight = as_torch(device.empty(self._shape, self.problem.dtype))
        if self.problem.has_bias:
            self.bias = as_torch(device.empty(self._shape[:1], self.problem.dtype))

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        store_rows(self.weight, first_row, weight)

    def load_bias(self, first_row: int, values: Tensor) -> None:
        assert self.bias is not None, f"{self.problem} has no bias"
        store_values(self.bias, first_row, values)


@linear.family(
    "reference",
    preference=0,
    level=Level.REFERENCE,
    rejects=needs_unquantized,
    cost="widens the weight to float32 in every call: 5 x the bytes of a 16-bit product",
)
class ReferenceLinear(RowMajorLinear):
    """Upcasts the whole weight at every call: right, not fast.

    Not batch-invariant: the matrix library chooses another order of summation for other M.
    """

    def __call__(self, x: Tensor, out: Tensor) -> None:
        result = widen(as_torch(x)) @ widen(self.weight).T
        if self.bias is not None:
            result += self.bias
        as_torch(out).copy_(result)


class StoredMatrix(Protocol):
    """A weight of codes in some layout."""

    @property
    def num_bytes(self) -> int: ...

    def allocate(self, device: Device) -> None: ...

    def load(self, first_row: int, weight: LogicalWeight) -> None: ...


class QuantizedLinear(LinearFamily):
    """Holds `matrix` and bias [out_features]; subclasses make the matrix, and multiply."""

    matrix: StoredMatrix
    bias: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        bias = self.problem.out_features if self.problem.has_bias else 0
        return self.matrix.num_bytes + self.problem.dtype.num_bytes(bias)

    def allocate(self, device: Device) -> None:
        self.matrix.allocate(device)
        if self.problem.has_bias:
            shape = (self.problem.out_features,)
            self.bias = as_torch(device.empty(shape, self.problem.dtype))

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self.matrix.load(first_row, weight)

    def load_bias(self, first_row: int, values: Tensor) -> None:
        assert self.bias is not None, f"{self.problem} has no bias"
        store_values(self.bias, first_row, values)


@linear.family(
    "reference_quantized",
    preference=0,
    level=Level.REFERENCE,
    batch_invariant=rounds_activations,
    rejects=needs_quantized,
    cost=QUANTIZED_COST,
)
class ReferenceQuantizedLinear(QuantizedLinear):
    """Defines the numbers of every format: codes as hal.weights says, products exact.

    Where x stays in floats it is not batch-invariant: the matrix library chooses another order of
    summation for other M.
    """

    matrix: QuantizedMatrix

    def __init__(self, problem: LinearProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        assert problem.weights is not None
        self.matrix = QuantizedMatrix(problem.out_features, problem.in_features, problem.weights)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        result = self.matrix.multiply(as_torch(x))
        if self.bias is not None:
            result += self.bias
        as_torch(out).copy_(result)
