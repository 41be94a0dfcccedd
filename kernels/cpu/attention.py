"""attention on AVX512-BF16, reading the paged cache in place."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hal.binding import Binder
from hal.device import Capabilities, Feature
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.reference.attention import copy_blocks, needs_int8, needs_plain_cache
from hal.kernels.reference.tensors import as_torch
from hal.opset import attention
from hal.opset.attention import AttentionFamily, AttentionMeta, AttentionProblem
from hal.tensor import Tensor

STRIP_TOKENS = 16  # kLanes of src/kernels.h
SCALES_BYTES = 4 * STRIP_TOKENS  # of a strip: one for the keys of a token, one for its values


class PlannedStep:
    """A step's tensors, which live as long as this, and their addresses, looked up once."""

    def __init__(self, meta: AttentionMeta) -> None:
        starts, lens = as_torch(meta.cu_seqlens_q_device), as_torch(meta.seq_lens_device)
        table = as_torch(meta.block_table_device)
        self._tensors = starts, lens, table
        self._addresses = starts.data_ptr(), lens.data_ptr(), table.data_ptr(), table.stride(0)
        self._num_seqs = lens.shape[0]

    def arguments(
        self, p: AttentionProblem, rows: torch.Tensor, cache: torch.Tensor, out: torch.Tensor
    ) -> tuple[int | float, ...]:
        """The native call's, between the rows' address and the number of threads."""
        return (
            rows.stride(0),
            cache.data_ptr(),
            native.DTYPE_CODES[p.kv_dtype],
            p.num_kv_heads,
            p.block_size,
            p.head_dim,
            out.data_ptr(),
            out.stride(0),
            *self._addresses,
            self._num_seqs,
            p.num_heads,
            p.spec.scale,
            p.spec.softcap or 0.0,
            p.spec.window or 0,
            native.DTYPE_CODES[p.dtype],
        )


def _no_strips(problem: AttentionProblem) -> str | None:
    step = 4 * 8 // problem.kv_dtype.bits
    if problem.head_dim % step != 0:
        return f"multiplies {step} elements at a time; head_dim is {problem.head_dim}"
    if problem.block_size % STRIP_TOKENS != 0:
        return f"stores strips of {STRIP_TOKENS} tokens; block_size is {problem.block_size}"
    return None


def rejects_plain(caps: Capabilities, problem: AttentionProblem) -> str | None:
    reason = native.needs_avx512_bf16(caps, problem) or needs_plain_cache(caps, problem)
    return reason or _no_strips(problem)


def rejects_codes(caps: Capabilities, problem: AttentionProblem) -> str | None:
    reason = native.needs_avx512_bf16(caps, problem) or needs_int8(caps, problem)
    if reason is None and Feature.AVX512_VNNI not in caps.features:
        reason = f"needs {Feature.AVX512_VNNI}; {caps.name} has {caps.feature_names()}"
    if reason is None and problem.dtype is not DType.BFLOAT16:
        reason = f"rounds queries to 16 bits; the problem is in {problem.dtype}"
    return reason or _no_strips(problem)


@attention.family(
    "avx512_vnni",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=rejects_codes,
    unavailable=native.unavailable,
)
@attention.family(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=rejects_plain,
    unavailable=native.unavailable,
)
class NativeAttention(AttentionFamily):
    """One call per layer for decodes, chunks and prefills together.

    A strip of the cache is what one head keeps of 16 tokens, in the order in which they are
    multiplied (KvShape of src/kernels.h). Keys are summed in tiles of 64 within splits of 512 at
    fixed positions, so neither the batch, the chunking nor the number of threads changes a bit.
    Of codes, queries and softmax weights are rounded to 16 bits and their products are exact.
    """

    legal_block_sizes = (16, 32, 64, 128)

    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._code = native.DTYPE_CODES[problem.dtype]
        self._kv_code = native.DTYPE_CODES[problem.kv_dtype]
        self._pages = native.HugePages()

    @property
    def kv_layout(self) -> str:
        scales = ", scales" if self.problem.kv_dtype is DType.INT8 else ""
        return (
            "[num_blocks, num_kv_heads, block_size / 16, strip: keys [head_dim / step, 16, step], "
            f"values [16 / step, head_dim, step]{scales}], step elements in 32 bits"
        )

    def kv_shape(self, num_blocks: int) -> tuple[int, ...]:
        p = self.problem
        strip = 2 * STRIP_TOKENS * p.head_dim
        strip += SCALES_BYTES if p.kv_dtype is DType.INT8 else 0
        return (num_blocks, p.num_kv_heads, p.block_size // STRIP_TOKENS, strip)

    def plan(self, meta: AttentionMeta) -> None:
        self._slots = as_torch(meta.slot_mapping_device)
        self.slots = self._slots.data_ptr()
        self._step = PlannedStep(meta)

    def copy_blocks(self, kv: Tensor, out: Tensor, pairs: NDArray[np.int32]) -> None:
        copy_blocks(as_torch(kv), as_torch(out), pairs)

    def write_kv(self, qkv: Tensor, kv: Tensor) -> None:
        rows, p = as_torch(qkv), self.problem
        self._pages.advise(as_torch(kv))
        native.load().write_kv(
            rows.data_ptr(),
            rows.stride(0),
            rows.shape[0],
            p.num_heads,
            as_torch(kv).data_ptr(),
            self._kv_code,
            p.num_kv_heads,
            p.block_size,
            p.head_dim,
            self.slots,
            self._code,
            torch.get_num_threads(),
        )

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        rows = as_torch(qkv)
        native.load().attention(
            rows.data_ptr(),
            *self.arguments(rows, as_torch(kv), as_torch(out)),
            torch.get_num_threads(),
        )

    def arguments(
        self, rows: torch.Tensor, cache: torch.Tensor, out: torch.Tensor
    ) -> tuple[int | float, ...]:
        """The native call's, between the rows' address and the number of threads."""
        self._pages.advise(cache)
        return self._step.arguments(self.problem, rows, cache, out)
