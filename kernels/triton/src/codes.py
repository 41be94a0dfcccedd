"""What codes of 8 bits stand for, and the codes of keys and values as hal.kv.KVSpec defines them.

Launched without fused multiply-adds: a product is rounded before anything is added to it.
"""

import triton
import triton.language as tl

from hal.kernels.triton.src.rounding import NO_FRACTION, SMALLEST

LARGEST_INT8 = tl.constexpr(127.0)
LARGEST_FP8 = tl.constexpr(448.0)


@triton.jit
def decoded(codes, dtype: tl.constexpr, IS_FP8: tl.constexpr):
    """Codes as numbers of dtype, in which each is exact."""
    if IS_FP8:
        # e4m3 in float16's bits is its value / 256, subnormals included; no arch need know e4m3.
        bits = codes.to(tl.int16)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        return (half * 256.0).to(dtype)
    return codes.to(tl.float32).to(dtype)


@triton.jit
def _fp8_bits(x):
    """OCP e4m3 nearest to x, of two equally near the even one; |x| at most 448."""
    size = tl.minimum(tl.abs(x), LARGEST_FP8)
    # Of the power of two below it; all that is less than 2 ** -6 has the same steps.
    exponent = tl.maximum(size.to(tl.int32, bitcast=True) >> 23, 127 - 6)
    steps_of_one = ((127 + 127 + 3 - exponent) << 23).to(tl.float32, bitcast=True)
    steps = (size * steps_of_one + NO_FRACTION) - NO_FRACTION
    bits = ((exponent - (127 - 7)) << 3) + steps.to(tl.int32) - 8
    return tl.where(x < 0, bits | 0x80, bits).to(tl.uint8)


@triton.jit
def head_scale(largest, IS_FP8: tl.constexpr):
    """Of heads by their largest magnitude: scales in bfloat16, and their inverses in float32; 0
    where there are no codes."""
    top = LARGEST_FP8 if IS_FP8 else LARGEST_INT8
    is_plain = (largest < float("inf")) & (largest > SMALLEST)
    divisor = tl.where(is_plain, largest, 1.0)
    scale = tl.div_rn(divisor, tl.full(divisor.shape, top, tl.float32)).to(tl.bfloat16)
    inverse = tl.div_rn(tl.full(divisor.shape, 1.0, tl.float32), scale.to(tl.float32))
    special = tl.where(largest <= SMALLEST, 0.0, float("nan"))
    scale = tl.where(is_plain, scale.to(tl.float32), special).to(tl.bfloat16)
    return scale, tl.where(is_plain, inverse, 0.0)


@triton.jit
def coded(x, inverse, IS_FP8: tl.constexpr):
    """int8 bits of the codes of x in float32."""
    # Infinity and NaN have no code.
    exact = tl.where(inverse == 0.0, 0.0, x * inverse)
    if IS_FP8:
        codes = _fp8_bits(exact).to(tl.int8, bitcast=True)
    else:
        rounded = (exact + NO_FRACTION) - NO_FRACTION
        codes = tl.maximum(tl.minimum(rounded, LARGEST_INT8), -LARGEST_INT8).to(tl.int8)
    return codes
