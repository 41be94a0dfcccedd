"""attention on AVX512-BF16, reading the paged cache in place."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.device import Capabilities
from hal.kernels.cpu import native
from hal.kernels.reference.attention import PagedAttention
from hal.kernels.reference.tensors import as_torch
from hal.opset import attention
from hal.opset.attention import AttentionMeta, AttentionProblem
from hal.tensor import Tensor


def _rejects(caps: Capabilities, problem: AttentionProblem) -> str | None:
    if problem.head_dim % 2 != 0:
        return f"multiplies pairs of elements; head_dim is {problem.head_dim}"
    return native.needs_avx512_bf16(caps, problem)


@attention.family(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    rejects=_rejects,
    unavailable=native.unavailable,
)
class NativeAttention(PagedAttention):
    """One call per layer for decodes, chunks and prefills together.

    Keys are summed in tiles of 64 within splits of 512 at fixed positions, so neither the batch,
    the chunking nor the number of threads changes a bit. Slots that no query sees are not read.
    """

    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._code = native.DTYPE_CODES[problem.dtype]
        self._advised: set[int] = set()

    def plan(self, meta: AttentionMeta) -> None:
        self._meta = meta
        self._slots = as_torch(meta.slot_mapping_device)
        self._starts = as_torch(meta.cu_seqlens_q_device)
        self._lens = as_torch(meta.seq_lens_device)
        self._table = as_torch(meta.block_table_device)

    def write_kv(self, qkv: Tensor, kv: Tensor) -> None:
        rows, p = as_torch(qkv), self.problem
        self._advise_huge_pages(as_torch(kv))
        native.load().write_kv(
            rows.data_ptr(),
            rows.stride(0),
            rows.shape[0],
            p.num_heads,
            as_torch(kv).data_ptr(),
            p.num_kv_heads,
            p.block_size,
            p.head_dim,
            self._slots.data_ptr(),
            self._code,
            torch.get_num_threads(),
        )

    def _advise_huge_pages(self, cache: torch.Tensor) -> None:
        """Before a cache's pages are first touched: its blocks are read in no order at all, and
        with small pages each costs a walk of the page tables.
        """
        address = cache.data_ptr()
        if address not in self._advised:
            self._advised.add(address)
            native.load().advise_huge_pages(address, cache.nbytes)

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        rows, result, p = as_torch(qkv), as_torch(out), self.problem
        native.load().attention(
            rows.data_ptr(),
            rows.stride(0),
            as_torch(kv).data_ptr(),
            p.num_kv_heads,
            p.block_size,
            p.head_dim,
            result.data_ptr(),
            result.stride(0),
            self._starts.data_ptr(),
            self._lens.data_ptr(),
            self._table.data_ptr(),
            self._table.stride(0),
            self._lens.shape[0],
            p.num_heads,
            p.spec.scale,
            p.spec.softcap or 0.0,
            p.spec.window or 0,
            self._code,
            torch.get_num_threads(),
        )
