"""CPU kernels: Python wrappers of the native module."""

from hal.kernels.cpu import (
    amx,
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
from hal.kernels.cpu.native import compiled_part

__all__ = [
    "amx",
    "attention",
    "block",
    "compiled_part",
    "elementwise",
    "indexing",
    "linear",
    "norm",
    "rope",
    "sampling",
    "vocab",
]
