"""vocab: logits by the products of linear; the same codes are looked up by torch."""

from __future__ import annotations

from hal.binding import Binder
from hal.device import Capabilities
from hal.dtypes import DType
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.vocab import QuantizedVocab
from hal.kernels.reference.weight_rows import rounds_activations
from hal.kernels.triton import quantized
from hal.kernels.triton.predicates import PREFERENCE, unavailable
from hal.opset import vocab
from hal.opset.vocab import VocabProblem
from hal.tensor import Tensor


def _rejects(caps: Capabilities, problem: VocabProblem) -> str | None:
    if problem.weights is not None and problem.weights.codes is DType.INT4:
        return f"looks up codes of 8 bits; {problem.weights} stores 4"
    return quantized.rejects_columns(problem, problem.hidden_size) or quantized.rejects(
        caps, problem
    )


@vocab.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=rounds_activations,
    rejects=_rejects,
    unavailable=unavailable,
    regimes=quantized.regimes,
)
class TritonVocab(QuantizedVocab):
    """x and out are contiguous. As `linear`, written in float32."""

    matrix: quantized.RowScaledMatrix

    def __init__(self, problem: VocabProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        assert problem.weights is not None
        shape = quantized.MatrixShape(problem.vocab_size, problem.hidden_size)
        self.matrix = quantized.RowScaledMatrix(shape, problem.weights, binder)

    def logits(self, x: Tensor, out: Tensor) -> None:
        self.matrix.multiply(as_torch(x), as_torch(out))
