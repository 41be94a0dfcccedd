"""Every op in plain torch, float32 inside: the specification and the fallback."""

from hal.kernels.reference import (
    attention,
    block,
    elementwise,
    indexing,
    linear,
    logits,
    moe,
    norm,
    rope,
    sampling,
    vocab,
)

__all__ = [
    "attention",
    "block",
    "elementwise",
    "indexing",
    "linear",
    "logits",
    "moe",
    "norm",
    "rope",
    "sampling",
    "vocab",
]
