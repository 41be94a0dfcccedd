"""attention_block whose rotation and cache write are one launch between the products."""

from __future__ import annotations

from hal.binding import Binder
from hal.device import Capabilities
from hal.dtypes import DType
from hal.kernels.reference.block import ComposedAttentionBlock
from hal.kernels.reference.tensors import as_torch
from hal.kernels.triton.attention import (
    CODE_OPTIONS,
    TritonAttention,
    rejects_attention,
    scales_of,
)
from hal.kernels.triton.predicates import PREFERENCE, unavailable
from hal.kernels.triton.program import Program
from hal.kernels.triton.rope import TritonQkNormRope, rejects_rope, rope_options
from hal.opset import attention_block
from hal.opset.block import AttentionBlockProblem, AttentionWeights
from hal.tensor import Tensor

_ROPE_WRITE = Program("rope", "rope_write")


def _rejects(caps: Capabilities, problem: AttentionBlockProblem) -> str | None:
    if problem.rope.rotary_dim == 0 and not problem.rope.has_norm:
        return "rotates heads on their way to the cache; this model rotates none"
    return rejects_rope(caps, problem.rope) or rejects_attention(caps, problem.attention)


@attention_block.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=_rejects,
    unavailable=unavailable,
)
class TritonAttentionBlock(ComposedAttentionBlock):
    """Keys go to the cache as they are rotated, and values beside them; qkv keeps the queries.

    Its products and attention are sites of their own. Where another attention or qk_norm_rope was
    asked for by name, that one runs, as in the composed form.
    """

    def __init__(self, problem: AttentionBlockProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        inner, rope = problem.attention, problem.rope
        self._fused: TritonAttention | None = None
        rotates = isinstance(self.qk_norm_rope, TritonQkNormRope)
        if rotates and isinstance(self.family, TritonAttention):
            self._fused = self.family
        self._options = {
            **rope_options(binder.selector.caps, rope),
            **(CODE_OPTIONS if inner.holds_codes else {}),
            "BLOCK_SIZE": inner.block_size,
            "IS_FP8": inner.kv_dtype is DType.FLOAT8_E4M3FN,
        }
        num_heads = rope.num_heads + 2 * rope.num_kv_heads
        self._num_pieces = -(-num_heads // self._options["HEADS_BLOCK"])

    def between(
        self, qkv: Tensor, positions: Tensor, kv: Tensor, weights: AttentionWeights, heads: Tensor
    ) -> None:
        if self._fused is None:
            super().between(qkv, positions, kv, weights, heads)
            return
        rows, cache = as_torch(qkv), as_torch(kv)
        vectors = (positions, weights.cos_sin, weights.q_norm, weights.k_norm)
        scales = scales_of(cache) if self._fused.problem.holds_codes else None
        _ROPE_WRITE.launch(
            (len(rows), self._num_pieces),
            rows,
            *vectors,
            weights.norm_eps,
            cache,
            scales,
            self._fused.slots,
            **self._options,
        )
        self._fused.attend(qkv, kv, heads)
