"""Weights of the parts that decoders are made of, as lists that an architecture adds up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hal.engine.layers.parameters import Parallel
from hal.planning.shape import Role, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """One attention: `width` is what it reads and writes; head norms are counted by size."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    o_bias: bool = False
    q_norm: int = 0
    k_norm: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """Multi-head latent attention. q_rank 0: queries are projected in one step.

    Source: DeepSeek-V2 (2024), section 2.1.
    """

    width: int
    num_heads: int
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpShape:
    """One MLP, or `num_experts` of them of which a token meets `num_active`."""

    width: int
    intermediate: int
    gated: bool = True
    bias: bool = False
    num_experts: int = 0
    num_active: int = 0

    @property
    def role(self) -> Role:
        return Role.EXPERT if self.num_experts else Role.LINEAR


def vector(name: str, size: int, count: int = 1, parallel: Parallel | None = None) -> Weight:
    """A norm's weight or a bias."""
    return Weight(
        name=name,
        rows=size,
        columns=1,
        role=Role.OTHER,
        parallel=parallel or Parallel.REPLICATED,
        count=count,
    )


def norms(name: str, size: int, count: int, *, bias: bool = False) -> Weight:
    """`count` norms, each with a weight and, if `bias`, a bias."""
    return vector(name, size, count * (2 if bias else 1))


def embedding(vocab_size: int, width: int, *, tied: bool, head_bias: bool = False) -> list[Weight]:
    """The vocabulary matrix and the head; tied ones are one matrix that is also multiplied."""
    role = Role.HEAD if tied else Role.EMBEDDING
    found = [_vocab("embedding", vocab_size, width, role)]
    if not tied:
        found.append(_vocab("head", vocab_size, width, Role.HEAD))
    if head_bias:
        found.append(vector("head.bias", vocab_size, parallel=Parallel.VOCAB))
    return found


def table(name: str, rows: int, width: int) -> Weight:
    """Learned positions and the like: looked up, whole on every rank."""
    return Weight(name=name, rows=rows, columns=width, role=Role.EMBEDDING)


def _vocab(name: str, rows: int, width: int, role: Role) -> Weight:
    return Weight(name=name, rows=rows, columns=width, role=role, parallel=Parallel.VOCAB)


def attention(shape: AttentionShape, count: int, name: str = "attention") -> Iterator[Weight]:
    """q, k, v, o of `count` layers."""
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    yield linear(f"{name}.q", q, shape.width, count, Parallel.COLUMN)
    yield linear(f"{name}.kv", kv, shape.width, 2 * count, Parallel.COLUMN, shape.num_kv_heads)
    yield linear(f"{name}.o", shape.width, q, count, Parallel.ROW)
    if shape.qkv_bias:
        yield vector(f"{name}.q.bias", q, count, Parallel.COLUMN)
        yield vector(f"{name}.kv.bias", kv, 2 * count)
    if shape.o_bias:
        yield vector(f"{name}.o.bias", shape.width, count)
    for norm, size in (("q_norm", shape.q_norm), ("k_norm", shape.k_norm)):
        if size:
            yield vector(f"{name}.{norm}", size, count)


def latent_attention(shape: LatentShape, count: int) -> Iterator[Weight]:
    """Down to one latent for all heads (every rank has it), up again by heads."""
    q = shape.num_heads * (shape.nope_dim + shape.rope_dim)
    down = shape.kv_rank + shape.rope_dim
    up = shape.num_heads * (shape.nope_dim + shape.value_dim)
    q_inputs = shape.q_rank or shape.width
    if shape.q_rank:
        yield linear("attention.q_down", shape.q_rank, shape.width, count, Parallel.REPLICATED)
        yield vector("attention.q_norm", shape.q_rank, count)
    yield linear("attention.q_up", q, q_inputs, count, Parallel.COLUMN)
    yield linear("attention.kv_down", down, shape.width, count, Parallel.REPLICATED)
    yield vector("attention.kv_norm", shape.kv_rank, count)
    yield linear("attention.kv_up", up, shape.kv_rank, count, Parallel.COLUMN)
    values = shape.num_heads * shape.value_dim
    yield linear("attention.o", shape.width, values, count, Parallel.ROW)
    if shape.bias:
        sizes = ((shape.q_rank, shape.width) if shape.q_rank else (shape.width,)) + (down,)
        yield from (vector("attention.bias", size, count) for size in sizes)


def mlp(shape: MlpShape, count: int, name: str = "mlp") -> Iterator[Weight]:
    """Up (with gate) and down of `count` layers; each expert is cut like a small MLP."""
    copies = max(1, shape.num_experts) * count
    active = shape.num_active * count if shape.num_experts else None
    inputs = 2 if shape.gated else 1
    up = Weight(
        name=f"{name}.up",
        rows=shape.intermediate,
        columns=shape.width,
        role=shape.role,
        parallel=Parallel.COLUMN,
        count=inputs * copies,
        active=None if active is None else inputs * active,
    )
    yield up
    yield Weight(
        name=f"{name}.down",
        rows=shape.width,
        columns=shape.intermediate,
        role=shape.role,
        parallel=Parallel.ROW,
        count=copies,
        active=active,
    )
    if shape.bias:
        yield vector(f"{name}.up.bias", shape.intermediate, inputs * copies, Parallel.COLUMN)
        yield vector(f"{name}.down.bias", shape.width, copies)


def router(num_experts: int, width: int, count: int, *, bias: bool = False) -> Iterator[Weight]:
    """Which experts a token goes to; small, and kept in 16 bit."""
    yield Weight(name="router", rows=num_experts, columns=width, role=Role.OTHER, count=count)
    if bias:
        yield vector("router.bias", num_experts, count)


def linear(
    name: str, rows: int, columns: int, count: int, parallel: Parallel, heads: int = 0
) -> Weight:
    """`count` projections that every token is multiplied with."""
    return Weight(
        name=name,
        rows=rows,
        columns=columns,
        role=Role.LINEAR,
        parallel=parallel,
        count=count,
        heads=heads,
    )
