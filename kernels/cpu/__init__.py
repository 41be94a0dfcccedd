"""CPU kernels: Python wrappers of the native module."""

from hal.kernels.cpu import (
    attention,
    block,
    elementwise,
    indexing,
    linear,
    norm,
    portable,
    portable_attention,
    rope,
    sampling,
    vocab,
)
from hal.kernels.cpu.native import compiled_part

__all__ = [
    "attention",
    "block",
    "compiled_part",
    "elementwise",
    "indexing",
    "linear",
    "norm",
    "portable",
    "portable_attention",
    "rope",
    "sampling",
    "vocab",
]
