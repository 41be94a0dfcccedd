"""What surrounds the products of experts: whom each token chooses, where it stands, its sum."""

import triton
import triton.language as tl


@triton.jit
def choose_experts(
    logits,  # [num_tokens, EXPERTS] float32
    weights,  # [num_tokens, TOP_K] float32
    experts,  # [num_tokens, TOP_K] int32
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMS: tl.constexpr,
    BLOCK: tl.constexpr,
    TOP_BLOCK: tl.constexpr,
):
    """A program chooses for one token: TOP_K times the largest that is left."""
    token = tl.program_id(0).to(tl.int64)
    expert, choice = tl.arange(0, BLOCK), tl.arange(0, TOP_BLOCK)
    is_left = expert < EXPERTS
    x = tl.load(logits + token * EXPERTS + expert, mask=is_left, other=float("-inf"))
    # NaN as well: whoever is chosen then, it is one of the table.
    x = tl.where(x < float("inf"), x, float("inf"))
    largest = tl.max(x, axis=0)
    total = tl.sum(tl.exp(x - largest), axis=0)
    chosen = tl.zeros([TOP_BLOCK], tl.int32)
    result = tl.zeros([TOP_BLOCK], tl.float32)
    for number in tl.static_range(TOP_K):
        best = tl.max(tl.where(is_left, x, float("-inf")), axis=0)
        id = tl.min(tl.where(is_left & (x == best), expert, BLOCK), axis=0)
        is_left = is_left & (expert != id)
        chosen = tl.where(choice == number, id, chosen)
        result = tl.where(choice == number, tl.exp(best - largest) / total, result)
    if NORMS:
        result = result / tl.sum(result, axis=0)
    index = token * TOP_K + choice
    tl.store(experts + index, chosen, mask=choice < TOP_K)
    tl.store(weights + index, result, mask=choice < TOP_K)


@triton.jit(do_not_specialize=["num_choices"])
def place_choices(
    experts,  # [num_choices] int32, as chosen: token by token
    slots,  # [num_choices] int32
    rows,  # [num_choices] int32
    offsets,  # [EXPERTS + 1] int32
    num_choices,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program places the choices of one expert behind those of all lower ones, in their order."""
    own = tl.program_id(0)
    lower = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_choices, BLOCK):
        index = start + tl.arange(0, BLOCK)
        expert = tl.load(experts + index, mask=index < num_choices, other=EXPERTS)
        lower += (expert < own).to(tl.int32)
    first = tl.sum(lower, axis=0)
    tl.store(offsets + own, first)
    if own == EXPERTS - 1:
        tl.store(offsets + EXPERTS, num_choices)
    for start in range(0, num_choices, BLOCK):
        index = start + tl.arange(0, BLOCK)
        expert = tl.load(experts + index, mask=index < num_choices, other=EXPERTS)
        is_own = (expert == own).to(tl.int32)
        slot = first + tl.cumsum(is_own, axis=0) - 1
        tl.store(slots + index, slot, mask=is_own > 0)
        tl.store(rows + slot, index // TOP_K, mask=is_own > 0)
        first += tl.sum(is_own, axis=0)


@triton.jit
def combine_experts(
    y,  # [num_tokens * TOP_K, WIDTH]
    slots,  # [num_tokens, TOP_K] int32
    weights,  # [num_tokens, TOP_K] float32
    out,  # [num_tokens, WIDTH]
    TOP_K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program sums a piece of one token's rows, in the order of its choices."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = column < WIDTH
    total = tl.zeros([BLOCK], tl.float32)
    for choice in tl.static_range(TOP_K):
        slot = tl.load(slots + token * TOP_K + choice).to(tl.int64)
        weight = tl.load(weights + token * TOP_K + choice)
        total += weight * tl.load(y + slot * WIDTH + column, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + column, total.to(out.dtype.element_ty), mask=is_in)
