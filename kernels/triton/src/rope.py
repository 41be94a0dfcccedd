"""QK-norm and rotation: a program owns some heads of one token.

An element and its partner are read and written by one thread, so heads change in place.
"""

import triton
import triton.language as tl


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
    is_query = (head < HEADS)[:, None]
    HALF: tl.constexpr = ROTARY_DIM // 2
    row = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM) + head[:, None] * HEAD_DIM
    dim = tl.arange(0, HALF_BLOCK)
    is_half = is_head & (dim < HALF)[None, :]
    rest = ROTARY_DIM + tl.arange(0, REST_BLOCK)
    is_rest = is_head & (rest < HEAD_DIM)[None, :]

    first = tl.load(row + dim[None, :], mask=is_half, other=0.0).to(tl.float32)
    second = tl.load(row + HALF + dim[None, :], mask=is_half, other=0.0).to(tl.float32)
    others = tl.load(row + rest[None, :], mask=is_rest, other=0.0).to(tl.float32)
    if q_weight is not None:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        squares += tl.sum(others * others, axis=1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        first *= scale * _weights(q_weight, k_weight, dim, dim < HALF, is_query)
        second *= scale * _weights(q_weight, k_weight, HALF + dim, dim < HALF, is_query)
        others *= scale * _weights(q_weight, k_weight, rest, rest < HEAD_DIM, is_query)
        tl.store(row + rest[None, :], others.to(qkv.dtype.element_ty), mask=is_rest)
    if ROTARY_DIM > 0:
        angles = cos_sin + tl.load(positions + token).to(tl.int64) * ROTARY_DIM
        cos = tl.load(angles + dim, mask=dim < HALF, other=0.0)[None, :]
        sin = tl.load(angles + HALF + dim, mask=dim < HALF, other=0.0)[None, :]
        turned = (first * cos - second * sin).to(qkv.dtype.element_ty)
        second = (second * cos + first * sin).to(qkv.dtype.element_ty)
        tl.store(row + dim[None, :], turned, mask=is_half)
        tl.store(row + HALF + dim[None, :], second, mask=is_half)


@triton.jit
def _weights(q_weight, k_weight, dim, is_dim, is_query):
    of_queries = tl.load(q_weight + dim, mask=is_dim, other=0.0).to(tl.float32)
    of_keys = tl.load(k_weight + dim, mask=is_dim, other=0.0).to(tl.float32)
    return tl.where(is_query, of_queries[None, :], of_keys[None, :])
