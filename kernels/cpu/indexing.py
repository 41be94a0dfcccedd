"""gather_rows as plain copies."""

from __future__ import annotations

import torch

from hal.kernels.cpu import native
from hal.opset import gather_rows


@gather_rows.kernel(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    rejects=native.needs_cpu,
    unavailable=native.unavailable,
)
def gather_rows_native(x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    """Copies bits."""
    size = x.element_size()
    native.load().gather_rows(
        x.data_ptr(),
        x.stride(0) * size,
        index.data_ptr(),
        index.shape[0],
        out.data_ptr(),
        out.stride(0) * size,
        x.shape[1] * size,
        torch.get_num_threads(),
    )
