"""The vocabulary-sized matrix: rows looked up at the start, multiplied with at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from hal.binding import Binder
from hal.device import Device
from hal.dtypes import DType
from hal.opset.stored import StoredForm
from hal.select import declare
from hal.tensor import Tensor
from hal.weights import LogicalWeight, WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabProblem:
    """A [vocab_size, hidden_size] matrix used for embed, for logits, or for both (tied).

    weights: as in LinearProblem; a look-up then gives code * scale, rounded to dtype.
    """

    vocab_size: int
    hidden_size: int
    dtype: DType
    embeds: bool
    makes_logits: bool
    weights: WeightFormat | None = None


class VocabFamily(ABC):
    """The matrix in one layout. Tied embeddings are one family, stored once."""

    def __init__(self, problem: VocabProblem, binder: Binder) -> None:
        self.problem = problem

    @property
    @abstractmethod
    def num_bytes(self) -> int: ...

    @abstractmethod
    def allocate(self, device: Device) -> None: ...

    @abstractmethod
    def load(self, first_row: int, weight: LogicalWeight) -> None: ...

    def stored(self) -> StoredForm | None:
        """As of a LinearFamily."""
        return None

    @abstractmethod
    def embed(self, token_ids: Tensor, out: Tensor) -> None:
        """out[t] = weight[token_ids[t]]; token_ids [T] int32, out [T, hidden_size]."""

    @abstractmethod
    def logits(self, x: Tensor, out: Tensor) -> None:
        """out = x @ weight.T; x [N, hidden_size], out [N, vocab_size] float32."""


@declare(VocabProblem)
def vocab(problem: VocabProblem, binder: Binder) -> VocabFamily:
    """A bound VocabFamily: `embed` and `logits` of one vocabulary matrix."""
    raise AssertionError("a declaration is never called")
