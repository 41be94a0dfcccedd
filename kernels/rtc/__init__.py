"""C++ kernels compiled at run time, one source for NVIDIA and AMD: NVRTC and hiprtc are libraries
that make machine code, so a user needs no CUDA toolkit.
"""

from hal.kernels.rtc import gemv, int4_linear
from hal.kernels.rtc.compiled import compiled_part

__all__ = ["compiled_part", "gemv", "int4_linear"]
