"""attention_block whose rotation, cache write and attention are one call between the products."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.device import Capabilities
from hal.kernels.cpu import native
from hal.kernels.cpu.attention import NativeAttention, rejects_codes, rejects_plain
from hal.kernels.cpu.normed_product import NormedProduct
from hal.kernels.cpu.rope import qk_norm_rope_avx512, rejects_rope
from hal.kernels.reference.block import ComposedAttentionBlock
from hal.kernels.reference.tensors import as_torch
from hal.opset import attention_block
from hal.opset.block import AttentionBlockProblem, AttentionWeights
from hal.opset.norm import NormInput
from hal.tensor import Tensor


def _rejects(caps: Capabilities, problem: AttentionBlockProblem) -> str | None:
    inner = problem.attention
    rejects = rejects_plain if inner.kv_dtype is inner.dtype else rejects_codes
    return rejects_rope(caps, problem.rope) or rejects(caps, inner)


@attention_block.family(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=_rejects,
    unavailable=native.unavailable,
)
class FusedAttentionBlock(ComposedAttentionBlock):
    """Each token's heads are rotated and stored while they are in cache, then attended.

    Its products are sites of their own. Where another attention or qk_norm_rope was asked for by
    name, that one runs, as in the composed form.
    """

    def __init__(self, problem: AttentionBlockProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        rotates = self.qk_norm_rope in (None, qk_norm_rope_avx512)
        self._native = self.family if isinstance(self.family, NativeAttention) and rotates else None
        self._weights: AttentionWeights | None = None
        self._project = NormedProduct(self.norm, self.qkv)

    def project(self, x: Tensor, norm: NormInput | None, qkv: Tensor) -> None:
        self._project(x, norm, qkv)

    def between(
        self, qkv: Tensor, positions: Tensor, kv: Tensor, weights: AttentionWeights, heads: Tensor
    ) -> None:
        if self._native is None:
            super().between(qkv, positions, kv, weights, heads)
            return
        if weights is not self._weights:
            self._weights, self._rotation = weights, self._arguments_of(weights)
        rows = as_torch(qkv)
        native.load().rope_write_attend(
            rows.data_ptr(),
            as_torch(positions).data_ptr(),
            *self._rotation,
            self._native.slots,
            rows.shape[0],
            *self._native.arguments(rows, as_torch(kv), as_torch(heads)),
            torch.get_num_threads(),
        )

    def _arguments_of(self, weights: AttentionWeights) -> tuple[int | float, ...]:
        """Of the native call, what the layer's own vectors make up."""
        norms = (weights.q_norm, weights.k_norm) if self.rope.has_norm else (None, None)
        return (
            0 if weights.cos_sin is None else as_torch(weights.cos_sin).data_ptr(),
            self.rope.rotary_dim,
            *(0 if norm is None else as_torch(norm).data_ptr() for norm in norms),
            weights.norm_eps,
        )
