"""Paged attention: one program attends a tile of queries of one sequence and one kv head.

Rows of a tile are (token, query head of the group), so that grouped queries fill the rows of a
matrix instruction. Keys are read where they lie, a tile at a time, through the block table.

With `scales`, which is the cache once more as bfloat16, the cache holds codes: of each block, side
and head BLOCK_SIZE rows of HEAD_DIM codes, then a scale for each row. A scale goes to the score of
its key, and to the weight of its value, so that products are of codes as they are.
"""

import triton
import triton.language as tl

from hal.kernels.triton.src.codes import coded, decoded, head_scale
from hal.kernels.triton.src.rounding import magnitude

# Columns of a work item, as work_list.py writes them.
ITEM_WIDTH = tl.constexpr(5)
SPLIT_WIDTH = tl.constexpr(4)
LOG2_E = tl.constexpr(1.4426950408889634)
# A power of two that brings a scale near to the values that it stands for: a small weight times a
# small scale must not vanish in float16, and the largest scale must not overflow.
VALUE_FACTOR = tl.constexpr(64.0)


@triton.jit
def _scores(q, k, position, key, is_key, scale, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr):
    """Times log2(e), so that exp2 gives the weights; -inf where a row does not see a key."""
    scores = tl.dot(q, k, input_precision="ieee") * scale
    if SOFTCAP > 0:
        # tanh(x) = 2 sigmoid(2 x) - 1
        scores = SOFTCAP * (2.0 * tl.sigmoid(scores * (2.0 / SOFTCAP)) - 1.0)
    is_seen = is_key[None, :] & (key[None, :] <= position[:, None])
    if WINDOW > 0:
        is_seen = is_seen & (key[None, :] > position[:, None] - WINDOW)
    return tl.where(is_seen, scores * LOG2_E, float("-inf"))


@triton.jit
def _weights(scores, largest, total):
    """Of the online softmax: weights of this tile, what scales the sums so far, new statistics."""
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    # A row that has seen nothing yet: no infinity less infinity.
    base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weights = tl.exp2(scores - base[:, None])
    decay = tl.exp2(largest - base)
    return weights, decay, new_largest, total * decay + tl.sum(weights, axis=1)


@triton.jit
def _strips(table, key, is_key, kv_head, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """[KEYS]: which strip of the cache, what a block keeps of one side and head, has each key; its
    value is KV_HEADS strips further."""
    block = tl.load(table + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
    return block * (2 * KV_HEADS) + kv_head


@triton.jit
def _keys_and_values(
    cache,
    strip,
    key,
    is_key,
    dim,
    HEAD_DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):
    """[KEYS, DIMS] each, zero where nothing is read."""
    SIZE: tl.constexpr = BLOCK_SIZE * (HEAD_DIM + 2 if HAS_SCALES else HEAD_DIM)
    row = (strip * BLOCK_SIZE + key % BLOCK_SIZE) * HEAD_DIM
    if HAS_SCALES:
        row += strip * (2 * BLOCK_SIZE)
    index = row[:, None] + dim[None, :]
    is_read = is_key[:, None] & (dim < HEAD_DIM)[None, :]
    k = tl.load(cache + index, mask=is_read, other=0)
    v = tl.load(cache + KV_HEADS * SIZE + index, mask=is_read, other=0)
    return k, v


@triton.jit
def _scales(
    scales,
    strip,
    key,
    is_key,
    HEAD_DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """[KEYS] float32 each, of what `_keys_and_values` reads."""
    SIZE: tl.constexpr = BLOCK_SIZE * (HEAD_DIM + 2) // 2
    place = scales + strip * SIZE + BLOCK_SIZE * HEAD_DIM // 2 + key % BLOCK_SIZE
    k = tl.load(place, mask=is_key, other=0.0)
    v = tl.load(place + KV_HEADS * SIZE, mask=is_key, other=0.0)
    return k.to(tl.float32), v.to(tl.float32)


@triton.jit
def _item(work):
    """Sequence, first token, first key, end key and partial result of this program."""
    item = work + tl.program_id(0) * ITEM_WIDTH
    first_key, end_key = tl.load(item + 2), tl.load(item + 3)
    return tl.load(item), tl.load(item + 1), first_key, end_key, tl.load(item + 4)


@triton.jit
def _span(cu_seqlens_q, seq):
    """A sequence's first row among all new tokens, and how many it has."""
    first_row = tl.load(cu_seqlens_q + seq)
    return first_row, tl.load(cu_seqlens_q + seq + 1) - first_row


@triton.jit
def _rows(first_token, q_len, kv_head, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS] of a tile: the token, the query head, and whether there is such a row."""
    row = tl.arange(0, ROWS)
    token = first_token + row // GROUP
    is_row = (row < ROWS // GROUP * GROUP) & (token < q_len)
    return token, kv_head * GROUP + row % GROUP, is_row


@triton.jit
def _queries(qkv, query_row, head, is_row, dim, HEAD_DIM: tl.constexpr, ALL_HEADS: tl.constexpr):
    """[ROWS, DIMS], zero where there is no row."""
    index = query_row.to(tl.int64) * (ALL_HEADS * HEAD_DIM) + head * HEAD_DIM
    is_query = is_row[:, None] & (dim < HEAD_DIM)[None, :]
    return tl.load(qkv + index[:, None] + dim[None, :], mask=is_query, other=0.0)


@triton.jit
def attend(
    qkv,  # [num_tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM]
    cache,  # [num_blocks, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM], or codes and scales
    scales,  # or None
    out,  # [num_tokens, HEADS * HEAD_DIM]
    partial_out,  # [num_partials, KV_HEADS, ROWS, DIMS] float32
    partial_stats,  # [num_partials, KV_HEADS, 2, ROWS] float32: largest score, sum of weights
    work,  # [num_items, ITEM_WIDTH] int32
    block_table,
    cu_seqlens_q,
    seq_lens,
    table_width,
    scale,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    IS_FP8: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    seq, first_token, first_key, end_key, partial = _item(work)
    kv_head, dim = tl.program_id(1), tl.arange(0, DIMS)
    first_row, q_len = _span(cu_seqlens_q, seq)
    token, head, is_row = _rows(first_token, q_len, kv_head, GROUP, ROWS)
    position, query_row = tl.load(seq_lens + seq) - q_len + token, first_row + token
    q = _queries(qkv, query_row, head, is_row, dim, HEAD_DIM, (GROUP + 2) * KV_HEADS)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, DIMS], tl.float32)
    table = block_table + seq.to(tl.int64) * table_width
    for start in range(first_key // KEYS * KEYS, end_key, KEYS):
        key = start + tl.arange(0, KEYS)
        is_key = (key >= first_key) & (key < end_key)  # what nobody sees may be NaN
        strip = _strips(table, key, is_key, kv_head, KV_HEADS, BLOCK_SIZE)
        k, v = _keys_and_values(
            cache, strip, key, is_key, dim, HEAD_DIM, KV_HEADS, BLOCK_SIZE, scales is not None
        )
        key_scale = scale
        if scales is not None:
            k, v = decoded(k, q.dtype, IS_FP8), decoded(v, q.dtype, IS_FP8)
            k_scale, v_scale = _scales(scales, strip, key, is_key, HEAD_DIM, KV_HEADS, BLOCK_SIZE)
            key_scale = scale * k_scale[None, :]
        scores = _scores(q, tl.trans(k), position, key, is_key, key_scale, WINDOW, SOFTCAP)
        weights, decay, largest, total = _weights(scores, largest, total)
        if scales is not None:
            weights *= (v_scale * VALUE_FACTOR)[None, :]
        result = tl.dot(weights.to(v.dtype), v, result * decay[:, None], input_precision="ieee")
    if scales is not None:
        result *= 1.0 / VALUE_FACTOR
        # Once more, from what the loop needs: kept over it, the mask would spill.
        is_row = (tl.arange(0, ROWS) < ROWS // GROUP * GROUP) & (position < tl.load(seq_lens + seq))
    if partial < 0:
        _store(out, result, total, query_row, head, is_row, dim, HEAD_DIM, GROUP * KV_HEADS)
    else:
        tile = (partial.to(tl.int64) * KV_HEADS + kv_head) * ROWS
        _store_partial(partial_out, partial_stats, result, largest, total, tile, ROWS, DIMS)


@triton.jit
def _store(
    out, result, total, query_row, head, is_row, dim, HEAD_DIM: tl.constexpr, HEADS: tl.constexpr
):
    # Rows that are none have no weights either.
    result = result / tl.where(is_row, total, 1.0)[:, None]
    index = query_row.to(tl.int64) * (HEADS * HEAD_DIM) + head * HEAD_DIM
    is_written = is_row[:, None] & (dim < HEAD_DIM)[None, :]
    tl.store(out + index[:, None] + dim[None, :], result.to(out.dtype.element_ty), mask=is_written)


@triton.jit
def _store_partial(
    partial_out, partial_stats, result, largest, total, tile, ROWS: tl.constexpr, DIMS: tl.constexpr
):
    """`tile`: of the first row."""
    row = tl.arange(0, ROWS)
    index = (tile + row)[:, None] * DIMS + tl.arange(0, DIMS)[None, :]
    tl.store(partial_out + index, result)
    tl.store(partial_stats + 2 * tile + row, largest)
    tl.store(partial_stats + 2 * tile + ROWS + row, total)


@triton.jit
def merge_partials(
    partial_out,
    partial_stats,
    out,
    splits,  # [num_split_tiles, SPLIT_WIDTH] int32
    cu_seqlens_q,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
):
    split = splits + tl.program_id(0) * SPLIT_WIDTH
    kv_head = tl.program_id(1)
    seq = tl.load(split)
    first_partial, end_partial = tl.load(split + 2), tl.load(split + 3)
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    first_row, q_len = _span(cu_seqlens_q, seq)
    token, head, is_row = _rows(tl.load(split + 1), q_len, kv_head, GROUP, ROWS)

    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, DIMS], tl.float32)
    first_tile = first_partial.to(tl.int64) * KV_HEADS + kv_head
    for number in range(end_partial - first_partial):
        tile = first_tile + number * KV_HEADS
        its_largest = tl.load(partial_stats + tile * (2 * ROWS) + row)
        its_total = tl.load(partial_stats + tile * (2 * ROWS) + ROWS + row)
        its_result = tl.load(partial_out + (tile * ROWS + row)[:, None] * DIMS + dim[None, :])
        new_largest = tl.maximum(largest, its_largest)
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        decay, its_decay = tl.exp2(largest - base), tl.exp2(its_largest - base)
        total = total * decay + its_total * its_decay
        result = result * decay[:, None] + its_result * its_decay[:, None]
        largest = new_largest
    query_row = first_row + token
    _store(out, result, total, query_row, head, is_row, dim, HEAD_DIM, GROUP * KV_HEADS)


@triton.jit
def write_kv(
    qkv,
    cache,
    slots,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program stores a piece of the keys or the values of one token."""
    token = tl.program_id(0).to(tl.int64)
    side = tl.program_id(1)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_in = column < KV_HEADS * HEAD_DIM
    source = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM)
    values = tl.load(source + (HEADS + side * KV_HEADS) * HEAD_DIM + column, mask=is_in)
    slot = tl.load(slots + token)
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    head, dim = column // HEAD_DIM, column % HEAD_DIM
    row = ((block * 2 + side) * KV_HEADS + head) * BLOCK_SIZE + offset
    tl.store(cache + row * HEAD_DIM + dim, values, mask=is_in)


@triton.jit
def write_codes(
    qkv,
    cache,
    scales,
    slots,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_FP8: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
):
    """A program stores some heads of the keys or the values of one token."""
    SIZE: tl.constexpr = BLOCK_SIZE * (HEAD_DIM + 2)
    token = tl.program_id(0).to(tl.int64)
    side = tl.program_id(1)
    head = tl.program_id(2) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)
    source = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM)
    dim = tl.arange(0, DIMS)
    is_in = (head < KV_HEADS)[:, None] & (dim < HEAD_DIM)[None, :]
    column = (HEADS + side * KV_HEADS + head) * HEAD_DIM
    x = tl.load(source + column[:, None] + dim[None, :], mask=is_in, other=0.0)
    x = x.to(tl.float32)
    scale, inverse = head_scale(tl.max(magnitude(x), axis=1), IS_FP8)
    slot = tl.load(slots + token)
    strip = (slot // BLOCK_SIZE * 2 + side) * KV_HEADS + head
    at = strip * SIZE + slot % BLOCK_SIZE * HEAD_DIM
    tl.store(cache + at[:, None] + dim[None, :], coded(x, inverse[:, None], IS_FP8), mask=is_in)
    place = strip * (SIZE // 2) + BLOCK_SIZE * HEAD_DIM // 2 + slot % BLOCK_SIZE
    tl.store(scales + place, scale, mask=head < KV_HEADS)
