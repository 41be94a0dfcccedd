"""Rows of logits: penalties and bias, and log probabilities without a sort."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def penalise(
    logits,
    rows,
    ids,
    counts,
    presence,
    frequency,
    repetition,
    count,
    vocab_size,
    BLOCK: tl.constexpr,
):
    """Each (row, id) is listed once."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_in = index < count
    row = tl.load(rows + index, mask=is_in, other=0)
    place = row.to(tl.int64) * vocab_size + tl.load(ids + index, mask=is_in, other=0)
    seen = tl.load(counts + index, mask=is_in, other=0)
    value = tl.load(logits + place, mask=is_in, other=0.0)
    factor = tl.load(repetition + row, mask=is_in, other=1.0)
    value = tl.where(value > 0, tl.div_rn(value, factor), value * factor)
    value -= tl.load(frequency + row, mask=is_in, other=0.0) * seen.to(tl.float32)
    value -= tl.where(seen > 0, tl.load(presence + row, mask=is_in, other=0.0), 0.0)
    tl.store(logits + place, value, mask=is_in)


@triton.jit(do_not_specialize=["count"])
def add_bias(logits, rows, ids, values, count, vocab_size, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_in = index < count
    row = tl.load(rows + index, mask=is_in, other=0).to(tl.int64)
    place = row * vocab_size + tl.load(ids + index, mask=is_in, other=0)
    value = tl.load(values + index, mask=is_in, other=0.0)
    tl.atomic_add(logits + place, value, mask=is_in)


@triton.jit
def _next_largest(row, value, last_id, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logit that comes after (value, last_id), and its id; equal ones by id."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.full([BLOCK], VOCAB, tl.int32)
    for start in range(0, VOCAB, BLOCK):
        id = start + tl.arange(0, BLOCK)
        x = tl.load(row + id, mask=id < VOCAB, other=float("-inf"))
        is_after = (x < value) | ((x == value) & (id > last_id))
        # An id that is -inf is better than none.
        is_better = is_after & (id < VOCAB) & ((x > best) | ((best_id == VOCAB) & (x == best)))
        best, best_id = tl.where(is_better, x, best), tl.where(is_better, id, best_id)
    largest = tl.max(best, axis=0)
    return largest, tl.min(tl.where(best == largest, best_id, VOCAB), axis=0)


@triton.jit(do_not_specialize=["num_top"])
def logprobs(
    logits,
    tokens,
    chosen,
    rank,
    top_ids,
    top,
    num_top,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    row = logits + number * VOCAB
    token = tl.maximum(tl.load(tokens + number), 0)
    value = tl.load(row + token)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    before = tl.zeros([BLOCK], tl.int32)
    for start in range(0, VOCAB, BLOCK):
        id = start + tl.arange(0, BLOCK)
        x = tl.load(row + id, mask=id < VOCAB, other=float("-inf"))
        best = tl.maximum(best, x)
        is_before = (x > value) | ((x == value) & (id < token))
        before += (is_before & (id < VOCAB)).to(tl.int32)
    largest = tl.max(best, axis=0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        id = start + tl.arange(0, BLOCK)
        x = tl.load(row + id, mask=id < VOCAB, other=float("-inf"))
        # Masked out after: a row of nothing finite has NaN, as it should.
        total += tl.where(id < VOCAB, tl.exp(x - largest), 0.0)
    log_total = tl.log(tl.sum(total, axis=0))
    tl.store(chosen + number, value - largest - log_total)
    tl.store(rank + number, tl.sum(before, axis=0))
    last, last_id = largest, -1
    for place in range(num_top):
        last, last_id = _next_largest(row, last, last_id, VOCAB, BLOCK)
        tl.store(top_ids + number * num_top + place, last_id)
        tl.store(top + number * num_top + place, last - largest - log_total)
