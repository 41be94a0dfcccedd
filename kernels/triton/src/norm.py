"""Norms: a program owns a row and keeps it in registers."""

import triton
import triton.language as tl


@triton.jit
def _add_residual(y, residual, index, is_in):
    """y, or y + residual, which is stored, rounded, and read back."""
    if residual is not None:
        total = y + tl.load(residual + index, mask=is_in, other=0.0).to(tl.float32)
        stored = total.to(residual.dtype.element_ty)
        tl.store(residual + index, stored, mask=is_in)
        y = stored.to(tl.float32)
    return y


@triton.jit
def rms_norm(x, residual, weight, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    is_in = column < WIDTH
    index = tl.program_id(0).to(tl.int64) * WIDTH + column
    y = tl.load(x + index, mask=is_in, other=0.0).to(tl.float32)
    y = _add_residual(y, residual, index, is_in)
    scale = tl.rsqrt(tl.sum(y * y, axis=0) / WIDTH + eps)
    w = tl.load(weight + column, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out + index, (y * scale * w).to(out.dtype.element_ty), mask=is_in)


@triton.jit
def layer_norm(x, residual, weight, bias, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    is_in = column < WIDTH
    index = tl.program_id(0).to(tl.int64) * WIDTH + column
    y = tl.load(x + index, mask=is_in, other=0.0).to(tl.float32)
    y = _add_residual(y, residual, index, is_in)
    # Centred before squaring: no cancellation where the mean is large.
    centred = tl.where(is_in, y - tl.sum(y, axis=0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    w = tl.load(weight + column, mask=is_in, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out + index, (centred * scale * w + b).to(out.dtype.element_ty), mask=is_in)
