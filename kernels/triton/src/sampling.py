"""Sampling without a sort: a program owns a row and passes over it.

Edges of top-k and top-p are found by bisection over the bits of (maximum - logit) / temperature,
which is never negative, so that its bits are ordered as it is.
"""

import triton
import triton.language as tl

LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
INFINITY_BITS = tl.constexpr(0x7F800000)


@triton.jit
def _gumbel(seed, token_index, start, BLOCK: tl.constexpr):
    """Noise of ids start .. start + BLOCK, in float64: there u is never 0 or 1."""
    group = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = group * 0
    w0, w1, w2, w3 = tl.philox(seed, group, zero + token_index.to(tl.uint32), zero, zero)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    u = (words.to(tl.uint32, bitcast=True).to(tl.float64) + 0.5) * 2.3283064365386963e-10
    return -tl.log(-tl.log(u))


@triton.jit
def _distance_bits(row, start, largest, inverse, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Bits of how far below the maximum each id is, in units of temperature; infinite behind."""
    id = start + tl.arange(0, BLOCK)
    x = tl.load(row + id, mask=id < VOCAB, other=float("-inf"))
    return ((largest - x) * inverse).to(tl.int32, bitcast=True)


@triton.jit
def _weight(bits):
    return tl.exp(-bits.to(tl.float32, bitcast=True))


@triton.jit
def _amount_within(
    row,
    edge,
    limit,
    largest,
    inverse,
    COUNTS: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many ids are at most `edge` away or, without COUNTS, how much they weigh; none beyond
    `limit`."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, VOCAB, BLOCK):
        bits = _distance_bits(row, start, largest, inverse, VOCAB, BLOCK)
        amount = tl.full([BLOCK], 1.0, tl.float64)
        if not COUNTS:
            amount = _weight(bits).to(tl.float64)
        is_in = (bits <= edge) & (bits <= limit) & (start + tl.arange(0, BLOCK) < VOCAB)
        total += tl.where(is_in, amount, 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _edge(
    row,
    wanted,
    limit,
    largest,
    inverse,
    COUNTS: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The least distance within which the amount is at least `wanted`."""
    low = tl.full([], 0, tl.int32)
    high = tl.full([], INFINITY_BITS, tl.int32)
    while low < high:
        middle = low + (high - low) // 2
        amount = _amount_within(row, middle, limit, largest, inverse, COUNTS, VOCAB, BLOCK)
        high = tl.where(amount >= wanted, middle, high)
        low = tl.where(amount >= wanted, low, middle + 1)
    return high


@triton.jit
def _filters(row, largest, inverse, top_k, top_p, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The edge of what top-k and top-p leave, and how many ids on it stay, lower ids first."""
    limit = tl.full([], INFINITY_BITS, tl.int32)
    if (top_k > 0) & (top_k < VOCAB):
        limit = _edge(row, top_k.to(tl.float64), limit, largest, inverse, True, VOCAB, BLOCK)
    edge = limit
    num_on_edge = tl.full([], VOCAB, tl.int32)
    if top_p < 1.0:
        total = _amount_within(row, limit, limit, largest, inverse, False, VOCAB, BLOCK)
        wanted = top_p.to(tl.float64) * total
        edge = _edge(row, wanted, limit, largest, inverse, False, VOCAB, BLOCK)
        edge = tl.minimum(edge, limit)
        before = _amount_within(row, edge - 1, limit, largest, inverse, False, VOCAB, BLOCK)
        on_edge = tl.ceil((wanted - before) / _weight(edge).to(tl.float64))
        # The first id stays whatever top_p is; where an edge weighs nothing, all of it does.
        on_edge = tl.minimum(tl.maximum(on_edge, 1.0), VOCAB * 1.0)
        num_on_edge = tl.where(on_edge == on_edge, on_edge, VOCAB * 1.0).to(tl.int32)
    return edge, num_on_edge


@triton.jit
def _draw(
    row,
    largest,
    inverse,
    seed,
    token_index,
    top_k,
    top_p,
    min_p,
    HAS_FILTERS: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The id of the largest logit with noise among those that the filters leave."""
    edge = tl.full([], INFINITY_BITS, tl.int32)
    num_on_edge = tl.full([], VOCAB, tl.int32)
    if HAS_FILTERS:
        edge, num_on_edge = _filters(row, largest, inverse, top_k, top_p, VOCAB, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float64)
    best_id = tl.full([BLOCK], VOCAB, tl.int32)
    num_seen = tl.full([], 0, tl.int32)
    for start in range(0, VOCAB, BLOCK):
        id = start + tl.arange(0, BLOCK)
        bits = _distance_bits(row, start, largest, inverse, VOCAB, BLOCK)
        is_kept = id < VOCAB
        if HAS_FILTERS:
            is_on_edge = (bits == edge) & is_kept
            number = num_seen + tl.cumsum(is_on_edge.to(tl.int32), axis=0)
            num_seen += tl.sum(is_on_edge.to(tl.int32), axis=0)
            is_kept &= (bits < edge) | (is_on_edge & (number <= num_on_edge))
            is_kept &= _weight(bits) >= min_p
        score = _gumbel(seed, token_index, start, BLOCK)
        score -= bits.to(tl.float32, bitcast=True).to(tl.float64)
        is_better = is_kept & (score > best)
        best, best_id = tl.where(is_better, score, best), tl.where(is_better, id, best_id)
    return tl.min(tl.where(best == tl.max(best, axis=0), best_id, VOCAB), axis=0)


@triton.jit
def sample(
    logits,
    tokens,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    token_index,
    IS_GREEDY: tl.constexpr,
    HAS_FILTERS: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    row = logits + number * VOCAB
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.full([BLOCK], VOCAB, tl.int32)
    is_nan = tl.full([BLOCK], 0, tl.int32)
    for start in range(0, VOCAB, BLOCK):
        id = start + tl.arange(0, BLOCK)
        x = tl.load(row + id, mask=id < VOCAB, other=float("-inf"))
        is_nan |= (x != x).to(tl.int32)
        best_id = tl.where(x > best, id, best_id)
        best = tl.where(x > best, x, best)
    largest = tl.max(best, axis=0)
    token = tl.min(tl.where(best == largest, best_id, VOCAB), axis=0)
    is_fine = (tl.max(is_nan, axis=0) == 0) & (tl.abs(largest) <= LARGEST_FLOAT)
    if not IS_GREEDY:
        t = tl.load(temperature + number)
        if (t > 0) & is_fine:
            inverse = tl.minimum(tl.div_rn(1.0, t), LARGEST_FLOAT)
            seed, its_index = tl.load(seeds + number), tl.load(token_index + number)
            k, p, least = tl.load(top_k + number), tl.load(top_p + number), tl.load(min_p + number)
            token = _draw(
                row, largest, inverse, seed, its_index, k, p, least, HAS_FILTERS, VOCAB, BLOCK
            )
    tl.store(tokens + number, tl.where(is_fine, token, -1))
