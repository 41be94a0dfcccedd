"""Activations to int8 codes, as hal.weights.WeightFormat rounds them to the last bit.

Launched without fused multiply-adds: a product is rounded before anything is added to it.
"""

import triton
import triton.language as tl

# Added and taken off again, it leaves no bits behind the point: to nearest, ties to even.
NO_FRACTION = tl.constexpr(12582912.0)
SMALLEST = tl.constexpr(1e-30)


@triton.jit
def magnitude(x):
    """Of what is not finite, NaN as well: infinity, which no maximum loses."""
    size = tl.abs(x)
    return tl.where(size < float("inf"), size, float("inf"))


@triton.jit
def _scale_and_inverse(largest):
    """Both 0 where all is zero; NaN and 0 where something is not finite."""
    is_zero = largest <= SMALLEST
    is_finite = largest < float("inf")
    is_plain = is_finite & (largest > SMALLEST)
    divisor = tl.where(is_plain, largest, 1.0)
    top = tl.full(divisor.shape, 127.0, tl.float32)
    scale = tl.where(is_plain, tl.div_rn(divisor, top), tl.where(is_zero, 0.0, float("nan")))
    return scale, tl.where(is_plain, tl.div_rn(top, divisor), 0.0)


@triton.jit
def _codes(x, inverse):
    rounded = (x * inverse + NO_FRACTION) - NO_FRACTION
    # Infinity times 0 has no code.
    return tl.where(tl.abs(rounded) <= 127.0, rounded, 0.0).to(tl.int8)


@triton.jit
def round_tokens(x, codes, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A program rounds one row of x [num_tokens, WIDTH] under one scale."""
    token = tl.program_id(0).to(tl.int64)
    row = x + token * WIDTH
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        column = first + tl.arange(0, BLOCK)
        values = tl.load(row + column, mask=column < WIDTH, other=0.0)
        largest = tl.maximum(largest, magnitude(values.to(tl.float32)))
    scale, inverse = _scale_and_inverse(tl.max(largest, axis=0, keep_dims=True))
    tl.store(scales + token + tl.arange(0, 1), scale)
    for first in range(0, WIDTH, BLOCK):
        column = first + tl.arange(0, BLOCK)
        values = tl.load(row + column, mask=column < WIDTH, other=0.0)
        result = _codes(values.to(tl.float32), inverse)
        tl.store(codes + token * WIDTH + column, result, mask=column < WIDTH)


@triton.jit
def round_groups(
    x,  # [num_tokens, WIDTH]
    codes,  # [num_tokens, PADDED]
    scales,  # [num_tokens, PADDED // GROUP]
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program rounds a piece of a row, a scale for GROUP columns each; zeros behind the last."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    values = tl.load(x + token * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    scale, inverse = _scale_and_inverse(tl.max(magnitude(values), axis=1))
    tl.store(scales + token * (PADDED // GROUP) + group, scale, mask=group < PADDED // GROUP)
    result = _codes(values, inverse[:, None])
    tl.store(codes + token * PADDED + column, result, mask=column < PADDED)
