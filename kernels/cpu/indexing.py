"""Rows and token ids by index as plain copies."""

from __future__ import annotations

import torch

from hal.kernels.cpu import native
from hal.opset import gather_rows, keep_tokens, own_tokens, take_tokens, zero_other_rows


@gather_rows.kernel(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=native.needs_cpu,
    unavailable=native.unavailable,
)
def gather_rows_native(x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    """Copies bits."""
    look_up_rows(x, index, out)


def look_up_rows(x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    """out[i] = x[index[i]]; NaN where there is no such row, which fails its request further on
    instead of the process here."""
    size = x.element_size()
    native.load().gather_rows(
        x.data_ptr(),
        x.shape[0],
        x.stride(0) * size,
        index.data_ptr(),
        index.shape[0],
        out.data_ptr(),
        out.stride(0) * size,
        x.shape[1] * size,
        torch.get_num_threads(),
    )


@take_tokens.kernel(
    "native",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=native.needs_any_cpu,
    unavailable=native.module_unavailable,
)
def take_tokens_native(
    token_ids: torch.Tensor, slots: torch.Tensor, last_tokens: torch.Tensor, out: torch.Tensor
) -> None:
    """Copies ids."""
    native.load().take_tokens(
        token_ids.data_ptr(),
        slots.data_ptr(),
        last_tokens.data_ptr(),
        out.shape[0],
        out.data_ptr(),
        torch.get_num_threads(),
    )


@keep_tokens.kernel(
    "native",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=native.needs_any_cpu,
    unavailable=native.module_unavailable,
)
def keep_tokens_native(
    tokens: torch.Tensor, slots: torch.Tensor, last_tokens: torch.Tensor
) -> None:
    """Copies ids."""
    native.load().keep_tokens(
        tokens.data_ptr(),
        slots.data_ptr(),
        tokens.shape[0],
        last_tokens.data_ptr(),
        torch.get_num_threads(),
    )


@own_tokens.kernel(
    "native",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=native.needs_any_cpu,
    unavailable=native.ranks_unavailable,
)
def own_tokens_native(token_ids: torch.Tensor, first: int, count: int, out: torch.Tensor) -> None:
    """Copies ids."""
    native.load().own_tokens(
        token_ids.data_ptr(),
        token_ids.shape[0],
        first,
        count,
        out.data_ptr(),
        torch.get_num_threads(),
    )


@zero_other_rows.kernel(
    "native",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=native.needs_any_cpu,
    unavailable=native.ranks_unavailable,
)
def zero_other_rows_native(
    token_ids: torch.Tensor, first: int, count: int, out: torch.Tensor
) -> None:
    """Clears bytes."""
    size = out.element_size()
    native.load().zero_other_rows(
        token_ids.data_ptr(),
        token_ids.shape[0],
        first,
        count,
        out.data_ptr(),
        out.stride(0) * size,
        out.shape[1] * size,
        torch.get_num_threads(),
    )
