"""Paged attention: one program attends a tile of queries of one sequence and one kv head.

Rows of a tile are (token, query head of the group), so that grouped queries fill the rows of a
matrix instruction. Keys are read where they lie, a tile at a time, through the block table.
"""

import triton
import triton.language as tl

# Columns of a work item, as work_list.py writes them.
ITEM_WIDTH = tl.constexpr(5)
SPLIT_WIDTH = tl.constexpr(4)
LOG2_E = tl.constexpr(1.4426950408889634)


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
def attend(
    qkv,  # [num_tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM]
    cache,  # [num_blocks, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM]
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
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    item = work + tl.program_id(0) * ITEM_WIDTH
    kv_head = tl.program_id(1)
    seq = tl.load(item)
    first_key, end_key = tl.load(item + 2), tl.load(item + 3)
    partial = tl.load(item + 4)
    first_row = tl.load(cu_seqlens_q + seq)
    q_len = tl.load(cu_seqlens_q + seq + 1) - first_row

    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIMS)
    token = tl.load(item + 1) + row // GROUP
    is_row = (row < ROWS // GROUP * GROUP) & (token < q_len)
    position = tl.load(seq_lens + seq) - q_len + token
    head = kv_head * GROUP + row % GROUP
    is_dim = dim < HEAD_DIM
    query_row = (first_row + token).to(tl.int64)
    q_index = query_row * ((GROUP + 2) * KV_HEADS * HEAD_DIM) + head * HEAD_DIM
    q = tl.load(qkv + q_index[:, None] + dim[None, :], is_row[:, None] & is_dim[None, :], other=0.0)

    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, DIMS], tl.float32)
    table = block_table + seq.to(tl.int64) * table_width
    for start in range(first_key // KEYS * KEYS, end_key, KEYS):
        key = start + tl.arange(0, KEYS)
        # What nobody sees may be anything, NaN as well: it is not read.
        is_key = (key >= first_key) & (key < end_key)
        block = tl.load(table + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        slot = (block * (2 * KV_HEADS) + kv_head) * BLOCK_SIZE + key % BLOCK_SIZE
        index = slot * HEAD_DIM
        is_read = is_key[:, None] & is_dim[None, :]
        k = tl.load(cache + index[:, None] + dim[None, :], mask=is_read, other=0.0)
        v_index = index + KV_HEADS * BLOCK_SIZE * HEAD_DIM
        v = tl.load(cache + v_index[:, None] + dim[None, :], mask=is_read, other=0.0)
        scores = _scores(q, tl.trans(k), position, key, is_key, scale, WINDOW, SOFTCAP)
        weights, decay, largest, total = _weights(scores, largest, total)
        result = result * decay[:, None]
        result = tl.dot(weights.to(v.dtype), v, result, input_precision="ieee")

    if partial < 0:
        _store(out, result, total, query_row, head, is_row, dim, HEAD_DIM, GROUP * KV_HEADS)
    else:
        tile = partial.to(tl.int64) * KV_HEADS + kv_head
        tl.store(partial_out + (tile * ROWS + row)[:, None] * DIMS + dim[None, :], result)
        tl.store(partial_stats + tile * (2 * ROWS) + row, largest)
        tl.store(partial_stats + tile * (2 * ROWS) + ROWS + row, total)


@triton.jit
def _store(
    out, result, total, query_row, head, is_row, dim, HEAD_DIM: tl.constexpr, HEADS: tl.constexpr
):
    # Rows that are none have no weights either.
    result = result / tl.where(is_row, total, 1.0)[:, None]
    index = query_row * (HEADS * HEAD_DIM) + head * HEAD_DIM
    is_written = is_row[:, None] & (dim < HEAD_DIM)[None, :]
    tl.store(out + index[:, None] + dim[None, :], result.to(out.dtype.element_ty), mask=is_written)


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
    first_row = tl.load(cu_seqlens_q + seq)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIMS)
    token = tl.load(split + 1) + row // GROUP
    q_len = tl.load(cu_seqlens_q + seq + 1) - first_row
    is_row = (row < ROWS // GROUP * GROUP) & (token < q_len)

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
    query_row = (first_row + token).to(tl.int64)
    head = kv_head * GROUP + row % GROUP
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
