"""linear: a weight of codes, multiplied by matrix instructions of its codes or of floats."""

from __future__ import annotations

from hal.binding import Binder
from hal.device import Capabilities
from hal.kernels.reference.linear import QuantizedLinear
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import rounds_activations
from hal.kernels.triton import quantized
from hal.kernels.triton.predicates import PREFERENCE, unavailable
from hal.opset import linear
from hal.opset.linear import LinearProblem
from hal.tensor import Tensor


def _rejects(caps: Capabilities, problem: LinearProblem) -> str | None:
    return quantized.rejects_columns(problem, problem.in_features) or quantized.rejects(
        caps, problem
    )


@linear.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=rounds_activations,
    rejects=_rejects,
    unavailable=unavailable,
    regimes=quantized.regimes,
)
class TritonLinear(QuantizedLinear):
    """x and out are contiguous.

    Products of two codes are exact, and where they are scaled they are added in the order of the
    columns, whatever the tile: batch-invariant. With floats, a matrix instruction adds as it likes.
    """

    matrix: quantized.Int4Matrix | quantized.RowScaledMatrix

    def __init__(self, problem: LinearProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        assert problem.weights is not None
        shape = quantized.MatrixShape(problem.out_features, problem.in_features)
        self.matrix = quantized.stored_matrix(shape, problem.weights, binder)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        self.matrix.multiply(as_torch(x), as_torch(out), self.bias)
