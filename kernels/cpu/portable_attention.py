"""attention for CPUs without AVX512-BF16: the paged cache of the reference, read in place."""

from __future__ import annotations

from typing import ClassVar

import torch

from hal.binding import Binder
from hal.device import Capabilities
from hal.kernels.cpu import native
from hal.kernels.cpu.attention import PlannedStep
from hal.kernels.cpu.portable import LEVELS, Level
from hal.kernels.reference.attention import PagedAttention
from hal.kernels.reference.tensors import as_torch
from hal.opset import attention
from hal.opset.attention import AttentionMeta, AttentionProblem, AttentionSpec
from hal.tensor import Tensor

_LANES = 16


def rejects(level: Level, caps: Capabilities, problem: AttentionProblem) -> str | None:
    """Why this level cannot attend: what a CPU or the module lacks is said first."""
    spec = problem.spec
    known = AttentionSpec(scale=spec.scale, window=spec.window, softcap=spec.softcap)
    if reason := level.lacks(caps, problem.dtype):
        return reason
    if problem.head_dim % _LANES != 0:
        return f"reads {_LANES} elements of a head at a time; head_dim is {problem.head_dim}"
    return None if spec == known else f"has no attention with {spec}"


class PortableAttention(PagedAttention):
    """One call per layer for decodes, chunks and prefills together.

    Keys are summed in tiles of 64 within splits of 512 at fixed positions, so neither the batch,
    the chunking nor the number of threads changes a bit. A sequence's KV heads run in parallel, and
    its new tokens; splits of its keys where there are too few of those for the threads.
    """

    level: ClassVar[Level]

    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._pages = native.HugePages()

    def plan(self, meta: AttentionMeta) -> None:
        self._slots = as_torch(meta.slot_mapping_device)
        self._step = PlannedStep(meta)

    def write_kv(self, qkv: Tensor, kv: Tensor) -> None:
        rows, p = as_torch(qkv), self.problem
        self._pages.advise(as_torch(kv))
        self.level.products().write_kv(
            rows.data_ptr(),
            rows.stride(0),
            rows.shape[0],
            p.num_heads,
            as_torch(kv).data_ptr(),
            native.DTYPE_CODES[p.kv_dtype],
            p.num_kv_heads,
            p.block_size,
            p.head_dim,
            self._slots.data_ptr(),
            native.DTYPE_CODES[p.dtype],
            torch.get_num_threads(),
        )

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        rows = as_torch(qkv)
        self.level.products().attention(
            rows.data_ptr(),
            *self._step.arguments(self.problem, rows, as_torch(kv), as_torch(out)),
            torch.get_num_threads(),
        )


def _register(of: Level) -> None:
    class Attention(PortableAttention):
        level = of

    def rejects_attention(caps: Capabilities, problem: AttentionProblem) -> str | None:
        return rejects(of, caps, problem)

    attention.family(
        of.name,
        preference=of.preference,
        batch_invariant=True,
        capturable=True,
        rejects=rejects_attention,
        unavailable=of.unavailable,
    )(Attention)


for _level in LEVELS:
    _register(_level)
