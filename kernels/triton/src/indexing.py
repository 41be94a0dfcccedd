"""Rows and token ids by index."""

import triton
import triton.language as tl


@triton.jit
def gather_rows(x, index, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = column < WIDTH
    source = tl.load(index + row).to(tl.int64)
    tl.store(
        out + row * WIDTH + column,
        tl.load(x + source * WIDTH + column, mask=is_in),
        mask=is_in,
    )


@triton.jit(do_not_specialize=["count"])
def take_tokens(token_ids, slots, last_tokens, out, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_in = index < count
    given = tl.load(token_ids + index, mask=is_in, other=0)
    slot = tl.load(slots + index, mask=is_in, other=0)
    last = tl.load(last_tokens + slot, mask=is_in & (given < 0), other=0)
    tl.store(out + index, tl.where(given < 0, last, given), mask=is_in)


@triton.jit(do_not_specialize=["count"])
def keep_tokens(tokens, slots, last_tokens, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_in = index < count
    slot = tl.load(slots + index, mask=is_in, other=0)
    tl.store(last_tokens + slot, tl.load(tokens + index, mask=is_in), mask=is_in)
