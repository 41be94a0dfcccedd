"""How many devices may share a model, and what that costs beside the weights."""

from __future__ import annotations

from hal.errors import ConfigError
from hal.planning.shape import ModelShape
from hal.share import Cuttable

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
