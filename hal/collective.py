"""How ranks talk. One interface; the single-rank implementation is real, not an `if`."""

from __future__ import annotations

from abc import ABC, abstractmethod

from hal.tensor import Tensor


class Collective(ABC):
    """Communication among the ranks of one tensor-parallel group."""

    name: str

    @property
    @abstractmethod
    def rank(self) -> int: ...

    @property
    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def all_reduce(self, x: Tensor) -> None:
        """Sum `x` over all ranks, in place."""

    @abstractmethod
    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate every rank's `x` along the last dimension."""

    @abstractmethod
    def broadcast(self, x: Tensor, root: int = 0) -> None:
        """Replace `x` by the root rank's, in place."""


class SingleRank(Collective):
    """The group of one: every operation is the identity it mathematically is."""

    name = "single"

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return 1

    def all_reduce(self, x: Tensor) -> None:
        return None

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        assert root == 0, "a group of one has only rank 0"
