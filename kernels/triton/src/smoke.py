"""The first kernel that a device is trusted with."""

import triton
import triton.language as tl


@triton.jit
def running_share(x, out, count, BLOCK: tl.constexpr):
    """out = x / sum(x)."""
    index = tl.arange(0, BLOCK)
    is_in = index < count
    values = tl.load(x + index, mask=is_in, other=0.0)
    tl.store(out + index, values / tl.sum(values, axis=0), mask=is_in)
