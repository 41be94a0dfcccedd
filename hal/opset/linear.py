"""Matrix products with a stored weight. A linear family owns the layout its kernels read."""

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
class LinearProblem:
    """out[M, out_features] = x[M, in_features] @ weight.T (+ bias); accumulates in float32.

    dtype is that of x, weight and out; bias is kept in dtype as well.
    weights: how the weight is stored and x is rounded; None: both are in dtype.
    """

    in_features: int
    out_features: int
    dtype: DType
    has_bias: bool = False
    weights: WeightFormat | None = None


class LinearFamily(ABC):
    """One layer's weight in the layout of this family, and the product with it."""

    def __init__(self, problem: LinearProblem, binder: Binder) -> None:
        self.problem = problem

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes that `allocate` takes, weight and bias."""

    @abstractmethod
    def allocate(self, device: Device) -> None:
        """Take the memory; rows may then be loaded in any order."""

    @abstractmethod
    def load(self, first_row: int, weight: LogicalWeight) -> None:
        """Store output rows first_row.. from a canonical weight, converting to this layout."""

    @abstractmethod
    def load_bias(self, first_row: int, values: Tensor) -> None:
        """Store bias elements first_row.. ; only with problem.has_bias."""

    def stored(self) -> StoredForm | None:
        """The allocated memory, where filling it took more than a copy; else None.

        Bytes from a form of equal layout load the family. Zeros must leave it as `allocate` did.
        """
        return None

    @abstractmethod
    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x [M, in_features], out [M, out_features]; writes `out`."""


@declare(LinearProblem)
def linear(problem: LinearProblem, binder: Binder) -> LinearFamily:
    """A bound LinearFamily: the matrix products of one layer, M from 1 to max_num_batched_tokens.

    Source: GEMM with float32 accumulation.
    """
    raise AssertionError("a declaration is never called")
