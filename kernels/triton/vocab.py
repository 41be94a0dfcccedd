"""vocab: logits by the products of linear; the same codes are looked up by torch."""

from __future__ import annotations

from hal.binding import Binder
from hal.device import Capabilities, Device
from hal.dtypes import DType
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import rounds_activations
from hal.kernels.triton import quantized
from hal.kernels.triton.predicates import PREFERENCE, unavailable
from hal.opset import vocab
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.tensor import Tensor
from hal.weights import LogicalWeight


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
class TritonVocab(VocabFamily):
    """x and out are contiguous. As `linear`, written in float32."""

    def __init__(self, problem: VocabProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        assert problem.weights is not None
        shape = (problem.vocab_size, problem.hidden_size)
        self._matrix = quantized.RowScaledMatrix(*shape, problem.weights, binder)

    @property
    def num_bytes(self) -> int:
        return self._matrix.num_bytes

    def allocate(self, device: Device) -> None:
        self._matrix.allocate(device)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self._matrix.load(first_row, weight)

    def embed(self, token_ids: Tensor, out: Tensor) -> None:
        as_torch(out).copy_(self._matrix.look_up(as_torch(token_ids)))

    def logits(self, x: Tensor, out: Tensor) -> None:
        self._matrix.multiply(as_torch(x), None, as_torch(out))
