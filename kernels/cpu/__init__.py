"""CPU kernels: Python wrappers of the native module."""

from hal.kernels.cpu import (
    attention,
    block,
    elementwise,
    indexing,
    linear,
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
    "norm",
    "rope",
    "sampling",
    "vocab",
]
