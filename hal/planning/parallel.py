"""How many devices may share a model, and what that costs beside the weights."""

from __future__ import annotations

from hal.collective import Collective
from hal.errors import ConfigError
from hal.planning.shape import ModelShape
from hal.share import Cuttable
from hal.tensor import Tensor

MAX_TP = 64
# Rings and channels of a collective library; assumed, its figures differ by version and card.
COLLECTIVE_BYTES = 256 << 20


def legal_tp(shape: ModelShape, limit: int = MAX_TP) -> tuple[int, ...]:
    """Numbers of ranks that divide the query heads and every width that is cut."""
    return _cuttable(shape).legal_sizes(limit)


def check_tp(shape: ModelShape, tp: int) -> None:
    """Raises ConfigError that names the legal numbers."""
    reason = _cuttable(shape).why_not(tp)
    if reason is not None:
        legal = ", ".join(str(t) for t in legal_tp(shape))
        raise ConfigError(f"{tp} devices cannot share this model: {reason}. Legal --tp: {legal}")


def _cuttable(shape: ModelShape) -> Cuttable:
    return Cuttable(
        num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, widths=shape.cut_sizes
    )


class PlannedRank(Collective):
    """Rank 0 of processes on one CPU machine: what start-up would choose, without the others."""

    name = "planned"

    def __init__(self, size: int) -> None:
        from hal.kernels.cpu import native  # torch comes with it

        self._size = size
        self._region_bytes = 0
        if native.ranks_unavailable() is None:
            self._region_bytes = native.load().Communicator.region_bytes(size)

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return self._size

    @property
    def num_bytes(self) -> int:
        return -(-self._region_bytes // self._size)

    @property
    def is_capturable(self) -> bool:
        return self._region_bytes > 0

    def all_reduce(self, x: Tensor) -> None:
        raise AssertionError("a plan runs nothing")

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        raise AssertionError("a plan runs nothing")

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        raise AssertionError("a plan runs nothing")
