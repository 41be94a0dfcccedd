"""Activations and sums: a program owns a piece of one row."""

import triton
import triton.language as tl


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """x in float32; tanh(u) = 2 sigmoid(2 u) - 1, so that nothing cancels."""
    if ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_pytorch_tanh":
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        tl.static_assert(ACTIVATION == "relu")
        y = tl.where(x <= 0, 0.0, x)  # NaN stays
    return y


@triton.jit
def gated_activation(
    gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = column < WIDTH
    gate = tl.load(gate_up + row * (2 * WIDTH) + column, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * (2 * WIDTH) + WIDTH + column, mask=is_in, other=0.0)
    y = _activate(gate, ACTIVATION) * up.to(tl.float32)
    tl.store(out + row * WIDTH + column, y.to(out.dtype.element_ty), mask=is_in)


@triton.jit
def plain_activation(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = column < WIDTH
    y = _activate(
        tl.load(x + row * WIDTH + column, mask=is_in, other=0.0).to(tl.float32), ACTIVATION
    )
    tl.store(out + row * WIDTH + column, y.to(out.dtype.element_ty), mask=is_in)


@triton.jit
def add(x, y, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = column < WIDTH
    index = row * WIDTH + column
    total = tl.load(x + index, mask=is_in, other=0.0).to(tl.float32)
    total += tl.load(y + index, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out + index, total.to(out.dtype.element_ty), mask=is_in)
