"""Triton kernels shared by every vendor that Triton compiles for."""

from hal.kernels.triton import elementwise, indexing, norm
from hal.kernels.triton.source import compiled_part

__all__ = ["compiled_part", "elementwise", "indexing", "norm"]
