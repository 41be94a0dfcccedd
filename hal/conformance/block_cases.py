"""attention_block and mlp_block: the composition, over a paged cache and several steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hal.conformance import oracle
from hal.conformance.block_input import BlockInput, cut
from hal.conformance.case import Case, Check, guarded
from hal.conformance.limits import LIMITS
from hal.conformance.paged import PagedCache, SequenceStep
from hal.conformance.rope_cases import EPS, rope_table
from hal.conformance.stage import Float64, Stage, Value, logical
from hal.dtypes import DType
from hal.opset.attention import AttentionProblem, AttentionSpec, RopeProblem
from hal.opset.block import (
    AttentionBlock,
    AttentionBlockProblem,
    AttentionWeights,
    MlpBlock,
    MlpBlockProblem,
)
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearFamily
from hal.opset.norm import NormKind
from hal.select import Kernel

_Steps = tuple[SequenceStep, ...]
# A prompt and a chunk of another; then a decode and that prompt's rest.
_STEPS: tuple[_Steps, ...] = (
    (SequenceStep(9, 9), SequenceStep(12, 12)),
    (SequenceStep(1, 10), SequenceStep(8, 20)),
)


@dataclass(frozen=True, slots=True)
class _Product:
    """What a linear family of the block holds, as the oracle reads it."""

    weight: Float64
    bias: Float64 | None

    def __call__(self, x: Float64) -> Float64:
        y = x @ self.weight.T
        return np.asarray(y if self.bias is None else y + self.bias)


def _load(family: LinearFamily, stage: Stage) -> _Product:
    """Random weights into an allocated family."""
    p = family.problem
    family.allocate(stage.device)
    weight = stage.weight((p.out_features, p.in_features), p.dtype, p.in_features**-0.5)
    family.load(0, logical(weight, p.dtype))
    if not p.has_bias:
        return _Product(weight.double().numpy(), None)
    bias = stage.weight((p.out_features,), p.dtype, 0.5)
    family.load_bias(0, bias)
    return _Product(weight.double().numpy(), bias.double().numpy())


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBlockCase(Case):
    """Two steps over one cache; position encoding and norms where the problem has them."""

    problem: AttentionBlockProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        block: AttentionBlock = stage.bind(kernel, p)
        qkv, output = _load(block.qkv, stage), _load(block.output, stage)
        table = rope_table(stage, p.rope.rotary_dim) if p.rope.rotary_dim else None
        norms = [stage.normal((p.rope.head_dim,), self.dtype) for _ in range(2)]
        lens = [s.seq_len for s in _STEPS[-1]]
        given = BlockInput(stage, p.hidden_size, self.dtype, p.norm)
        xs = [given.rows(n) for n in lens]
        expected = [output(self._heads(qkv(rows.x), table, norms)) for rows in xs]
        cache = PagedCache(stage, block.family, p.attention, lens)
        for steps in _STEPS:
            cache.plan(list(steps), list(range(len(steps))))
            spans = [slice(s.seq_len - s.q_len, s.seq_len) for s in steps]
            call = given.give(cut(xs, spans))
            positions = np.concatenate([np.arange(s.start, s.stop) for s in spans])
            out = guarded(stage, (len(positions), p.hidden_size), self.dtype)
            index = stage.indices(positions.astype(np.int32))
            block(call.x, index, cache.kv, self._weights(table, norms), out.out, call.norm)
            yield self.close(f"out, T={len(positions)}", out.read(stage), _cut(expected, spans))
            yield out.check(stage)
            yield from call.checks(stage)

    def _weights(self, table: Value | None, norms: list[Value]) -> AttentionWeights:
        has_norm = self.problem.rope.has_norm
        return AttentionWeights(
            cos_sin=None if table is None else table.device,
            q_norm=norms[0].device if has_norm else None,
            k_norm=norms[1].device if has_norm else None,
            norm_eps=EPS,
        )

    def _heads(self, qkv: Float64, table: Value | None, norms: list[Value]) -> Float64:
        """One whole sequence: rotated, attended, [seq_len, num_heads * head_dim]."""
        p = self.problem
        if table is not None:
            q_norm, k_norm = (n.host for n in norms) if p.rope.has_norm else (None, None)
            positions = np.arange(len(qkv), dtype=np.int32)
            qkv = oracle.qk_norm_rope(qkv, p.rope, positions, table.host, q_norm, k_norm, EPS)
        heads = qkv.reshape(len(qkv), -1, p.attention.head_dim)
        first, second = p.attention.num_heads, p.attention.num_heads + p.attention.num_kv_heads
        q, k, v = heads[:, :first], heads[:, first:second], heads[:, second:]
        return oracle.attend(q, k, v, p.attention.spec).reshape(len(qkv), -1)


def _cut(rows: list[Float64], spans: list[slice]) -> Float64:
    return np.concatenate([r[s] for r, s in zip(rows, spans, strict=True)])


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpBlockCase(Case):
    """Prefill, then one token."""

    problem: MlpBlockProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        block: MlpBlock = stage.bind(kernel, p)
        up, down = _load(block.up, stage), _load(block.down, stage)
        given = BlockInput(stage, p.hidden_size, self.dtype, p.norm)
        x = given.rows(33)
        rows = up(x.x)
        hidden = oracle.activate(rows[:, : p.intermediate_size], p.activation)
        if p.is_gated:
            hidden = hidden * rows[:, p.intermediate_size :]
        expected = down(hidden)
        for num_tokens in (33, 1):
            call = given.give(cut([x], [slice(num_tokens)]))
            out = guarded(stage, (num_tokens, p.hidden_size), self.dtype)
            block(call.x, out.out, call.norm)
            yield self.close(f"out, T={num_tokens}", out.read(stage), expected[:num_tokens])
            yield out.check(stage)
            yield from call.checks(stage)


def block_cases() -> Iterator[Case]:
    for dtype in LIMITS:
        yield _attention_block("llama", dtype)
        yield _attention_block("bias", dtype, has_qkv_bias=True, rotary_dim=8)
        yield _attention_block("norm", dtype, has_norm=True, window=8)
        yield _attention_block(
            "no-rope", dtype, has_qkv_bias=True, has_output_bias=True, rotary_dim=0
        )
        yield _attention_block("rms_norm", dtype, block_norm=NormKind.RMS)
        yield _attention_block("layer_norm", dtype, block_norm=NormKind.LAYER, rotary_dim=0)
        for width, activation, is_gated, has_bias, norm in (
            (96, Activation.SILU, True, False, None),
            (100, Activation.SILU, True, False, None),
            (96, Activation.GELU_TANH, False, True, None),
            (96, Activation.GELU_TANH, True, False, None),
            (96, Activation.SILU, True, False, NormKind.RMS),
            (96, Activation.GELU, False, True, NormKind.LAYER),
        ):
            gate, bias = "-gated" * is_gated, "-bias" * has_bias
            normed = "" if norm is None else f"-{norm}"
            yield MlpBlockCase(
                op="mlp_block",
                name=f"{activation}-W{width}{gate}{bias}{normed}",
                problem=MlpBlockProblem(
                    hidden_size=64,
                    intermediate_size=width,
                    activation=activation,
                    is_gated=is_gated,
                    has_bias=has_bias,
                    dtype=dtype,
                    norm=norm,
                ),
                dtype=dtype,
            )


def _attention_block(
    name: str,
    dtype: DType,
    *,
    has_qkv_bias: bool = False,
    has_output_bias: bool = False,
    has_norm: bool = False,
    rotary_dim: int = 32,
    window: int | None = None,
    block_norm: NormKind | None = None,
) -> AttentionBlockCase:
    attention = AttentionProblem(
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        dtype=dtype,
        block_size=16,
        spec=AttentionSpec(scale=32**-0.5, window=window),
    )
    rope = RopeProblem(
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        rotary_dim=rotary_dim,
        has_norm=has_norm,
        dtype=dtype,
    )
    problem = AttentionBlockProblem(
        hidden_size=96,
        attention=attention,
        rope=rope,
        has_qkv_bias=has_qkv_bias,
        has_output_bias=has_output_bias,
        norm=block_norm,
    )
    return AttentionBlockCase(op="attention_block", name=name, problem=problem, dtype=dtype)
