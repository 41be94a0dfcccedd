"""How ranks talk. One interface; the single-rank implementation is real, not an `if`."""

from __future__ import annotations

from abc import ABC, abstractmethod

from hal.tensor import Tensor


class Collective(ABC):
    """Communication among the ranks of one tensor-parallel group.

    All ranks call the same operations in the same order. Every rank gets the same bits.
    """

    name: str

    @property
    @abstractmethod
    def rank(self) -> int: ...

    @property
    @abstractmethod
    def size(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        """Memory of this rank for the exchange, for the memory plan."""
        return 0

    @property
    def is_capturable(self) -> bool:
        """Whether a graph may hold its operations."""
        return True

    @abstractmethod
    def all_reduce(self, x: Tensor) -> None:
        """Sum `x` over all ranks, in place: in float32, in the order of the ranks or any other
        that is the same each time, then rounded once."""

    @abstractmethod
    def all_gather(self, x: Tensor, out: Tensor) -> None:
        """Put every rank's columns beside each other.

        x [N, own], out [N, all], of one dtype; `own` is this rank's part of `all` as Share cuts it.
        """

    @abstractmethod
    def broadcast(self, x: Tensor, root: int = 0) -> None:
        """Replace `x` by the root rank's, in place."""

    def limit_waits(self, timeout_s: float) -> None:
        """From now on a rank that waits longer than that for another one has lost it."""
        return None

    def check(self) -> None:
        """Raise EngineError where the group has lost a rank: what was computed since means nothing.

        Operations of such a group return at once and leave their tensors undefined.
        """
        return None

    def abort(self) -> None:
        """End the waiting of all ranks: this one cannot go on."""
        return None


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

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        assert x is out, "the columns of a group of one are all columns: give the same tensor"

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        assert root == 0, "a group of one has only rank 0"
