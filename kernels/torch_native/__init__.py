"""Fast paths through torch's own kernels, for any device that torch drives."""

from hal.kernels.torch_native import (
    attention,
    elementwise,
    indexing,
    linear,
    logits,
    norm,
    rope,
    sampling,
    vocab,
)

__all__ = [
    "attention",
    "elementwise",
    "indexing",
    "linear",
    "logits",
    "norm",
    "rope",
    "sampling",
    "vocab",
]
