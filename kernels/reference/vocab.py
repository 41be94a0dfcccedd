"""vocab: the matrix as stored; rows looked up, logits multiplied in float32."""

from __future__ import annotations

from typing import Protocol

import torch

from hal.binding import Binder
from hal.device import Device
from hal.kernels.reference.linear import StoredMatrix
from hal.kernels.reference.quantized_rows import QuantizedMatrix
from hal.kernels.reference.tensors import as_torch, widen
from hal.kernels.reference.weight_rows import (
    QUANTIZED_COST,
    needs_quantized,
    needs_unquantized,
    rounds_activations,
    store_rows,
)
from hal.opset import vocab
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.select import Level
from hal.tensor import Tensor
from hal.weights import LogicalWeight


class RowMajorVocab(VocabFamily):
    """Holds weight [vocab_size, hidden_size] and looks rows up; subclasses multiply."""

    weight: torch.Tensor

    def __init__(self, problem: VocabProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._shape = (problem.vocab_size, problem.hidden_size)

    @property
    def num_bytes(self) -> int:
        return self.problem.dtype.num_bytes(self._shape[0] * self._shape[1])

    def allocate(self, device: Device) -> None:
        self.weight = as_torch(device.empty(self._shape, self.problem.dtype))

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        store_rows(self.weight, first_row, weight)

    def embed(self, token_ids: Tensor, out: Tensor) -> None:
        as_torch(out).copy_(self.weight.index_select(0, as_torch(token_ids)))


def is_lookup(problem: VocabProblem) -> bool:
    """A table without logits sums nothing, so nothing can depend on the batch."""
    return not problem.makes_logits


@vocab.family(
    "reference",
    preference=0,
    level=Level.REFERENCE,
    rejects=needs_unquantized,
    cost="widens the matrix to float32 in every call: 5 x the bytes of a 16-bit product",
    batch_invariant=is_lookup,
)
class ReferenceVocab(RowMajorVocab):
    """Upcasts the whole matrix at every call: right, not fast."""

    def logits(self, x: Tensor, out: Tensor) -> None:
        as_torch(out).copy_(widen(as_torch(x)) @ widen(self.weight).T)


class LookedUpMatrix(StoredMatrix, Protocol):
    """A weight of codes whose rows are read one by one as well."""

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """[ids, columns] in float32."""


class QuantizedVocab(VocabFamily):
    """Holds `matrix` and looks its rows up; subclasses make the matrix, and multiply."""

    matrix: LookedUpMatrix

    @property
    def num_bytes(self) -> int:
        return self.matrix.num_bytes

    def allocate(self, device: Device) -> None:
        self.matrix.allocate(device)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self.matrix.load(first_row, weight)

    def embed(self, token_ids: Tensor, out: Tensor) -> None:
        as_torch(out).copy_(self.matrix.look_up(as_torch(token_ids)))


@vocab.family(
    "reference_quantized",
    preference=0,
    level=Level.REFERENCE,
    batch_invariant=rounds_activations,
    rejects=needs_quantized,
    cost=QUANTIZED_COST,
)
class ReferenceQuantizedVocab(QuantizedVocab):
    """Look-ups and products read the same codes."""

    matrix: QuantizedMatrix

    def __init__(self, problem: VocabProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        assert problem.weights is not None
        self.matrix = QuantizedMatrix(problem.vocab_size, problem.hidden_size, problem.weights)

    def logits(self, x: Tensor, out: Tensor) -> None:
        as_torch(out).copy_(self.matrix.multiply(as_torch(x)))
