"""Products with a weight: one program makes a tile of tokens by outputs.

Weights lie row by row, an output's inputs side by side, so that both tiles are read along the sum.
Rows of a tile that are none repeat the last one: reads stay inside and need no mask.

With `offsets`, rows of x stand together for each of EXPERTS weights that lie behind each other. A
program finds its tile itself: the grid has room for the most tiles that so many rows can make, and
what is left over ends at once.
"""

import triton
import triton.language as tl

from hal.kernels.triton.src.codes import decoded


@triton.jit
def _tile_of_expert(offsets, EXPERTS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """This program's expert, first row, and the end of the expert's rows: 0 where there is none."""
    tile = tl.program_id(0)
    expert = tl.arange(0, BLOCK)
    first = tl.load(offsets + expert, mask=expert < EXPERTS, other=0)
    end = tl.load(offsets + expert + 1, mask=expert < EXPERTS, other=0)
    num_tiles = (end - first + ROWS - 1) // ROWS
    last_tile = tl.cumsum(num_tiles, axis=0)
    own = tl.sum((last_tile <= tile).to(tl.int32), axis=0)
    before = tl.sum(tl.where(expert == own, last_tile - num_tiles, 0), axis=0)
    first_row = tl.sum(tl.where(expert == own, first, 0), axis=0) + (tile - before) * ROWS
    return own, first_row, tl.sum(tl.where(expert == own, end, 0), axis=0)


@triton.jit
def _store(out, total, bias, row, column, is_out, OUT: tl.constexpr):
    if bias is not None:
        total += tl.load(bias + tl.minimum(column, OUT - 1)).to(tl.float32)[None, :]
    index = row.to(tl.int64)[:, None] * OUT + column[None, :]
    tl.store(out + index, total.to(out.dtype.element_ty), mask=is_out)


@triton.jit(do_not_specialize=["num_tokens"])
def multiply_rows(
    x,  # [num_tokens, IN] int8, or floats
    x_scales,  # [num_tokens] float32; None with floats
    weight,  # [EXPERTS * OUT, IN] int8, e4m3 as uint8, or as x
    scales,  # [EXPERTS * OUT] float32; None with a weight as x
    bias,  # [OUT] or None
    offsets,  # [EXPERTS + 1] or None
    out,  # [num_tokens, OUT]
    num_tokens,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    IS_FP8: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A scale for each output: sums of codes are scaled once, at the end."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    read_column = tl.minimum(column, OUT - 1)
    first_row, end_row = tl.program_id(0) * ROWS, num_tokens
    if offsets is not None:
        expert, first_row, end_row = _tile_of_expert(offsets, EXPERTS, EXPERTS_BLOCK, ROWS)
        if first_row >= end_row:
            return
        read_column += expert * OUT
    row = first_row + tl.arange(0, ROWS)
    read_row = tl.minimum(row, end_row - 1)
    x_at = x + read_row.to(tl.int64)[:, None] * IN + depth[None, :]
    weight_at = weight + read_column.to(tl.int64)[:, None] * IN + depth[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32 if x_scales is None else tl.int32)
    for first in range(0, IN, DEPTH):
        if IN % DEPTH == 0:
            a, b = tl.load(x_at + first), tl.load(weight_at + first)
        else:
            is_in = (first + depth < IN)[None, :]
            a = tl.load(x_at + first, mask=is_in, other=0)
            b = tl.load(weight_at + first, mask=is_in, other=0)
        if x_scales is None and scales is not None:
            b = decoded(b, x.dtype.element_ty, IS_FP8)
        total = tl.dot(a, tl.trans(b), total, out_dtype=total.dtype, input_precision="ieee")
    result = total.to(tl.float32)
    if scales is not None:
        scale = tl.load(scales + read_column)[None, :]
        if x_scales is not None:
            scale = tl.load(x_scales + read_row)[:, None] * scale
        result *= scale
    is_out = (row < end_row)[:, None] & (column < OUT)[None, :]
    _store(out, result, bias, row, column, is_out, OUT)


@triton.jit
def _half_tile(x_at, zeros_at, codes, first, IN: tl.constexpr, IS_ROUNDED: tl.constexpr):
    """x [ROWS, 32] from column `first`, and the weight's 32 columns in x's dtype."""
    if zeros_at is None:
        codes -= 8
    else:
        codes -= tl.load(zeros_at).to(tl.int8)[:, None]
    if IS_ROUNDED or IN % 64 == 0:
        x = tl.load(x_at + first)
    else:
        is_in = (first + tl.arange(0, 32) < IN)[None, :]
        x = tl.load(x_at + first, mask=is_in, other=0)
    if not IS_ROUNDED:
        codes = codes.to(tl.float32).to(x.dtype)
    return x, tl.trans(codes)


@triton.jit(do_not_specialize=["num_tokens"])
def multiply_groups(
    x,  # [num_tokens, PADDED] int8, or [num_tokens, IN] floats of 16 bits
    x_scales,  # [num_tokens, PADDED // 32] float32; None with floats
    weight,  # [EXPERTS * OUT, PADDED // 2] uint8: of 64 columns, 32 in the low halves, 32 in the
    # high ones
    scales,  # [EXPERTS * OUT, NUM_GROUPS] bfloat16
    zeros,  # [EXPERTS * OUT, NUM_GROUPS] uint8; None: 8
    bias,  # [OUT] or None
    offsets,  # [EXPERTS + 1] or None
    out,  # [num_tokens, OUT]
    num_tokens,
    IN: tl.constexpr,
    PADDED: tl.constexpr,
    OUT: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A scale for each GROUP columns of an output; codes are unpacked in registers.

    Products of 32 columns are exact in whole numbers; scaled, they are summed in float32.
    """
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, 32)
    is_rounded: tl.constexpr = x_scales is not None
    width: tl.constexpr = PADDED if is_rounded else IN
    read_column = tl.minimum(column, OUT - 1).to(tl.int64)
    first_row, end_row = tl.program_id(0) * ROWS, num_tokens
    if offsets is not None:
        expert, first_row, end_row = _tile_of_expert(offsets, EXPERTS, EXPERTS_BLOCK, ROWS)
        if first_row >= end_row:
            return
        read_column += expert * OUT
    row = first_row + tl.arange(0, ROWS)
    read_row = tl.minimum(row, end_row - 1).to(tl.int64)
    x_at = x + read_row[:, None] * width + depth[None, :]
    weight_at = weight + read_column[:, None] * (PADDED // 2) + depth[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for chunk in range(PADDED // 64):
        packed = tl.load(weight_at + chunk * 32)
        for half in tl.static_range(2):
            first = chunk * 64 + half * 32
            group = read_column * NUM_GROUPS + first // GROUP
            codes = ((packed >> (4 * half)) & 15).to(tl.int8)
            zeros_at = None if zeros is None else zeros + group
            a, b = _half_tile(x_at, zeros_at, codes, first, IN, is_rounded)
            scale = tl.load(scales + group).to(tl.float32)[None, :]
            if is_rounded:
                x_scale = tl.load(x_scales + read_row * (PADDED // 32) + first // 32)
                scale = x_scale[:, None] * scale
                product = tl.dot(a, b, out_dtype=tl.int32).to(tl.float32)
            else:
                product = tl.dot(a, b)
            total += product * scale
    is_out = (row < end_row)[:, None] & (column < OUT)[None, :]
    _store(out, total, bias, row, column, is_out, OUT)
