"""How many devices may share a model, and what that costs beside the weights."""

from __future__ import annotations

from hal.errors import ConfigError
from hal.planning.shape import ModelShape

MAX_TP = 64
# Rings and channels of a collective library; assumed, its figures differ by version and card.
COLLECTIVE_BYTES = 256 << 20


def legal_tp(shape: ModelShape, limit: int = MAX_TP) -> tuple[int, ...]:
    """Numbers of ranks that divide the query heads and every width that is cut.

    Key and value heads are divided, or copied evenly where there are fewer than ranks.
    """
    return tuple(tp for tp in range(1, limit + 1) if why_illegal(shape, tp) is None)


def why_illegal(shape: ModelShape, tp: int) -> str | None:
    """What `tp` does not divide, None where it is legal."""
    if shape.num_heads % tp:
        return f"{tp} does not divide {shape.num_heads} attention heads"
    kv_heads = shape.num_kv_heads
    if kv_heads % tp and tp % kv_heads:
        return f"{kv_heads} key/value heads can neither be divided nor copied evenly over {tp}"
    for size in shape.cut_sizes:
        if size % tp:
            return f"{tp} does not divide the MLP's width {size}"
    return None


def check_tp(shape: ModelShape, tp: int) -> None:
    """Raises ConfigError that names the legal numbers."""
    reason = why_illegal(shape, tp)
    if reason is not None:
        legal = ", ".join(str(t) for t in legal_tp(shape))
        raise ConfigError(f"{tp} devices cannot share this model: {reason}. Legal --tp: {legal}")
