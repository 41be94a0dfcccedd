"""QK-norm and rotation: a program owns some heads of one token.

An element and its partner are read and written by one thread, so heads change in place.
"""

import triton
import triton.language as tl

from hal.kernels.triton.src.codes import coded, head_scale
from hal.kernels.triton.src.rounding import magnitude


@triton.jit
def qk_norm_rope(
    qkv,
    positions,
    cos_sin,
    q_weight,
    k_weight,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)
    is_head = (head < HEADS + KV_HEADS)[:, None]
    row = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM) + head[:, None] * HEAD_DIM
    dim, rest = tl.arange(0, HALF_BLOCK), ROTARY_DIM + tl.arange(0, REST_BLOCK)
    first, second, others = _loaded(row, dim, rest, is_head, HEAD_DIM, ROTARY_DIM)
    if q_weight is not None:
        is_query = (head < HEADS)[:, None]
        weights = _weights(q_weight, k_weight, dim, rest, is_query, HEAD_DIM, ROTARY_DIM)
        first, second, others = _normed(first, second, others, weights, eps, HEAD_DIM)
    if ROTARY_DIM > 0:
        angles = cos_sin + tl.load(positions + token).to(tl.int64) * ROTARY_DIM
        first, second = _turned(first, second, angles, dim, ROTARY_DIM // 2)
    dtype = qkv.dtype.element_ty
    if q_weight is not None:
        tl.store(row + rest[None, :], others.to(dtype), mask=is_head & (rest < HEAD_DIM)[None, :])
    if ROTARY_DIM > 0:
        _store_halves(row, first.to(dtype), second.to(dtype), dim, is_head, ROTARY_DIM // 2)


@triton.jit
def rope_write(
    qkv,
    positions,
    cos_sin,
    q_weight,
    k_weight,
    eps,
    cache,
    scales,  # as of attention.attend
    slots,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_FP8: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
):
    """As qk_norm_rope, with keys and values stored in the cache instead of qkv."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)
    is_head, is_query = (head < HEADS + 2 * KV_HEADS)[:, None], (head < HEADS)[:, None]
    is_kept = (head >= HEADS) & (head < HEADS + 2 * KV_HEADS)
    is_value = (head >= HEADS + KV_HEADS)[:, None]
    row = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM) + head[:, None] * HEAD_DIM
    dim, rest = tl.arange(0, HALF_BLOCK), ROTARY_DIM + tl.arange(0, REST_BLOCK)
    v = _loaded(row, dim, rest, is_head, HEAD_DIM, ROTARY_DIM)
    first, second, others = v
    if q_weight is not None:
        weights = _weights(q_weight, k_weight, dim, rest, is_query, HEAD_DIM, ROTARY_DIM)
        first, second, others = _normed(first, second, others, weights, eps, HEAD_DIM)
    if ROTARY_DIM > 0:
        angles = cos_sin + tl.load(positions + token).to(tl.int64) * ROTARY_DIM
        first, second = _turned(first, second, angles, dim, ROTARY_DIM // 2)
    first = tl.where(is_value, v[0], first).to(qkv.dtype.element_ty)
    second = tl.where(is_value, v[1], second).to(qkv.dtype.element_ty)
    others = tl.where(is_value, v[2], others).to(qkv.dtype.element_ty)
    _store(row, first, second, others, dim, rest, is_query, HEAD_DIM, ROTARY_DIM)
    slot = tl.load(slots + token)
    strip, offset = slot // BLOCK_SIZE * (2 * KV_HEADS) + head - HEADS, slot % BLOCK_SIZE
    target = (strip * BLOCK_SIZE + offset) * HEAD_DIM
    if scales is not None:
        target += strip * (2 * BLOCK_SIZE)
        place = strip * (BLOCK_SIZE * (HEAD_DIM + 2) // 2) + BLOCK_SIZE * HEAD_DIM // 2 + offset
        first, second, others, scale = _codes(first, second, others, IS_FP8)
        tl.store(scales + place, scale, mask=is_kept)
    target, is_kept = cache + target[:, None], is_kept[:, None]
    _store(target, first, second, others, dim, rest, is_kept, HEAD_DIM, ROTARY_DIM)


@triton.jit
def _loaded(row, dim, rest, is_head, HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr):
    """Heads in float32: both halves that turn, and what does not."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    is_half, is_rest = is_head & (dim < HALF)[None, :], is_head & (rest < HEAD_DIM)[None, :]
    first = tl.load(row + dim[None, :], mask=is_half, other=0.0).to(tl.float32)
    second = tl.load(row + HALF + dim[None, :], mask=is_half, other=0.0).to(tl.float32)
    others = tl.load(row + rest[None, :], mask=is_rest, other=0.0).to(tl.float32)
    return first, second, others


@triton.jit
def _normed(first, second, others, weights, eps, HEAD_DIM: tl.constexpr):
    squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    squares += tl.sum(others * others, axis=1)
    scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
    return (
        first * (scale * weights[0]),
        second * (scale * weights[1]),
        others * (scale * weights[2]),
    )


@triton.jit
def _weights(
    q_weight, k_weight, dim, rest, is_query, HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr
):
    """Of each element of heads in three pieces."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    first = _weight(q_weight, k_weight, dim, dim < HALF, is_query)
    second = _weight(q_weight, k_weight, HALF + dim, dim < HALF, is_query)
    return first, second, _weight(q_weight, k_weight, rest, rest < HEAD_DIM, is_query)


@triton.jit
def _weight(q_weight, k_weight, dim, is_dim, is_query):
    of_queries = tl.load(q_weight + dim, mask=is_dim, other=0.0).to(tl.float32)
    of_keys = tl.load(k_weight + dim, mask=is_dim, other=0.0).to(tl.float32)
    return tl.where(is_query, of_queries[None, :], of_keys[None, :])


@triton.jit
def _turned(first, second, angles, dim, HALF: tl.constexpr):
    cos = tl.load(angles + dim, mask=dim < HALF, other=0.0)[None, :]
    sin = tl.load(angles + HALF + dim, mask=dim < HALF, other=0.0)[None, :]
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _codes(first, second, others, IS_FP8: tl.constexpr):
    """Heads in three pieces, under one scale each."""
    first, second, others = first.to(tl.float32), second.to(tl.float32), others.to(tl.float32)
    largest = tl.maximum(tl.max(magnitude(first), axis=1), tl.max(magnitude(second), axis=1))
    largest = tl.maximum(largest, tl.max(magnitude(others), axis=1))
    scale, inverse = head_scale(largest, IS_FP8)
    inverse = inverse[:, None]
    codes = coded(first, inverse, IS_FP8), coded(second, inverse, IS_FP8)
    return codes[0], codes[1], coded(others, inverse, IS_FP8), scale


@triton.jit
def _store_halves(row, first, second, dim, is_head, HALF: tl.constexpr):
    is_half = is_head & (dim < HALF)[None, :]
    tl.store(row + dim[None, :], first, mask=is_half)
    tl.store(row + HALF + dim[None, :], second, mask=is_half)


@triton.jit
def _store(
    row,
    first,
    second,
    others,
    dim,
    rest,
    is_head,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
):
    if ROTARY_DIM > 0:
        _store_halves(row, first, second, dim, is_head, ROTARY_DIM // 2)
    tl.store(row + rest[None, :], others, mask=is_head & (rest < HEAD_DIM)[None, :])
