"""moe_block and the ops that only it has: experts of unequal load, ties, odd sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray

from hal.conformance import oracle
from hal.conformance.case import Case, Check, equal, guarded
from hal.conformance.limits import LIMITS, relative_l2
from hal.conformance.quantized_cases import BLOCK_LIMITS, product, quantized
from hal.conformance.stage import Float64, Stage, Value, host_dtype, logical
from hal.dtypes import DType
from hal.opset.elementwise import Activation
from hal.opset.moe import (
    CombineProblem,
    GroupedLinearFamily,
    GroupedLinearProblem,
    MoeBlock,
    MoeBlockProblem,
    RouteProblem,
)
from hal.select import Kernel
from hal.tensor import Tensor
from hal.weights import WEIGHT_FORMATS, WeightFormat

Int32 = NDArray[np.int32]

_LEAST_MARGIN = 0.15
"""Between the logits of the last expert chosen and the next; those of a product that is rounded to
bfloat16 are off by up to 0.03 (logits are below 8)."""


class Load(StrEnum):
    """How many tokens each expert gets."""

    RANDOM = "random"
    ONE_EXPERT = "one expert takes all"
    HALF_IDLE = "half of the experts idle"
    TIES = "experts tie"


@dataclass(frozen=True, slots=True)
class ExpertProduct:
    """What a grouped family holds, as the oracle reads it: float64 [experts, outputs, inputs]."""

    weight: Float64
    format: WeightFormat | None

    def __call__(self, expert: int, x: Float64) -> Float64:
        if self.format is None:
            return np.asarray(x @ self.weight[expert].T)
        return product(x, quantized(self.weight[expert], self.format), self.format)


def load_experts(family: GroupedLinearFamily, stage: Stage, scale: float = 1.0) -> ExpertProduct:
    """Random weights into an allocated family, in uneven parts that end within an expert."""
    p = family.problem
    num_rows = p.num_experts * p.out_features
    weight = stage.weight((num_rows, p.in_features), p.dtype, scale * p.in_features**-0.5)
    cut = num_rows // 3 + 1
    for first in (cut, 0):
        rows = slice(first, num_rows if first else cut)
        family.load(first, logical(weight[rows], p.dtype))
    by_expert = weight.double().numpy().reshape(p.num_experts, p.out_features, p.in_features)
    return ExpertProduct(by_expert, p.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedLinearCase(Case):
    """One weight, rows in groups of many sizes."""

    problem: GroupedLinearProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        family: GroupedLinearFamily = stage.bind(kernel, p)
        before = stage.device.allocated_bytes()
        family.allocate(stage.device)
        taken = stage.device.allocated_bytes() - before
        yield equal("num_bytes", np.array([family.num_bytes]), np.array([taken]))
        experts = load_experts(family, stage)
        x = stage.normal((70, p.in_features), p.dtype)
        for name, counts in _group_sizes(p.num_experts):
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            num_rows = int(offsets[-1])
            out = guarded(stage, (num_rows, p.out_features), self.dtype)
            family(_rows(x, num_rows), stage.indices(offsets), out.out)
            expected = _by_group(experts, x.host, offsets)
            yield self.close(f"out, {name}", out.read(stage), expected)
            yield out.check(stage)
        if kernel.traits.is_batch_invariant(p):
            yield from self._alone(stage, family, x)

    def _alone(self, stage: Stage, family: GroupedLinearFamily, x: Value) -> Iterator[Check]:
        """Each row of a full expert again, as the only one there is."""
        p, last = self.problem, self.problem.num_experts - 1
        results = []
        for num_rows in (len(x.host), 1):
            offsets = np.where(np.arange(p.num_experts + 1) > last, num_rows, 0).astype(np.int32)
            out = guarded(stage, (num_rows, p.out_features), self.dtype)
            family(_rows(x, num_rows), stage.indices(offsets), out.out)
            results.append(out.read(stage))
        yield equal("batch-invariant", results[1], results[0][:1])


def _rows(x: Value, num_rows: int) -> Tensor:
    return x.device[:num_rows]


def _group_sizes(num_experts: int) -> Iterator[tuple[str, list[int]]]:
    """Rows of each expert, by what is special."""
    idle = [0] * num_experts
    yield "uneven", [(7 * e + 3) % 11 for e in range(num_experts)]
    yield "all on the last", [*idle[1:], 70]
    yield "one row", [*idle[:-1], 1] if num_experts == 1 else [0, 1, *idle[2:]]
    yield "every second idle", [0 if e % 2 else 17 for e in range(min(num_experts, 8))] + idle[8:]


def _by_group(experts: ExpertProduct, x: Float64, offsets: Int32) -> Float64:
    spans = zip(offsets, offsets[1:], strict=False)
    return np.concatenate([experts(e, x[a:b]) for e, (a, b) in enumerate(spans) if b > a])


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCase(Case):
    """Many tokens, then one."""

    problem: RouteProblem
    norms: bool
    ties: bool = False

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        call = stage.bind(kernel, p)
        values = stage.rng.standard_normal((37, p.num_experts)) * 2
        logits = stage.place(np.round(values) if self.ties else values, DType.FLOAT32)
        for num_tokens in (37, 1):
            yield from self._routed(call, stage, logits, num_tokens)
        yield from self._not_finite(call, stage, logits.host)

    def _routed(self, call: object, stage: Stage, logits: Value, n: int) -> Iterator[Check]:
        assert callable(call)
        p, shape = self.problem, (n, self.problem.top_k)
        weights = guarded(stage, shape, DType.FLOAT32)
        slots = stage.indices(np.full(shape, -1, np.int32))
        rows = stage.indices(np.full(n * p.top_k, -1, np.int32))
        offsets = stage.indices(np.full(p.num_experts + 1, -1, np.int32))
        call(logits.device[:n], self.norms, weights.out, slots, rows, offsets)
        routed = oracle.top_experts(logits.host[:n], p.top_k, norms=self.norms)
        wanted = oracle.group_choices(routed.experts, p.num_experts)
        yield self.close(f"weights, T={n}", weights.read(stage), routed.weights)
        yield weights.check(stage)
        for name, actual, right in (
            ("slots", slots, wanted.slots),
            ("rows", rows, wanted.rows),
            ("offsets", offsets, wanted.offsets),
        ):
            yield equal(f"{name}, T={n}", stage.read(actual), right.astype(np.float64))

    def _not_finite(self, call: object, stage: Stage, logits: Float64) -> Iterator[Check]:
        """NaN and infinity cost their own tokens, and no index leaves the table."""
        assert callable(call)
        p, values = self.problem, logits[:3].copy()
        values[0, 0], values[1, -1] = np.nan, np.inf
        weights = guarded(stage, (3, p.top_k), DType.FLOAT32)
        slots = stage.indices(np.full((3, p.top_k), -1, np.int32))
        rows = stage.indices(np.full(3 * p.top_k, -1, np.int32))
        offsets = stage.indices(np.full(p.num_experts + 1, -1, np.int32))
        device = stage.place(values, DType.FLOAT32).device
        call(device, self.norms, weights.out, slots, rows, offsets)
        lost = np.isnan(weights.read(stage))
        wanted = np.repeat([[True], [True], [False]], p.top_k, axis=1)
        yield equal("tokens with NaN weights", lost, wanted)
        places = np.sort(stage.read(slots).ravel())
        yield equal("slots are all rows once", places, np.arange(3.0 * p.top_k))
        of_token = np.sort(stage.read(rows))
        yield equal("rows name tokens", of_token, np.repeat(np.arange(3.0), p.top_k))
        yield equal("all rows have an expert", stage.read(offsets)[-1:], np.array([3.0 * p.top_k]))


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineCase(Case):
    """Rows from anywhere, many tokens, then one."""

    problem: CombineProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        call = stage.bind(kernel, p)
        num_rows = 19 * p.top_k
        y = stage.normal((num_rows, p.width), p.dtype)
        slots = stage.rng.permutation(num_rows).astype(np.int32).reshape(19, p.top_k)
        weights = stage.normal((19, p.top_k), DType.FLOAT32)
        expected = np.einsum("tk,tkw->tw", weights.host, y.host[slots])
        for n in (19, 1):
            out = guarded(stage, (n, p.width), self.dtype)
            call(y.device, stage.indices(slots[:n]), weights.device[:n], out.out)
            yield self.close(f"out, T={n}", out.read(stage), expected[:n])
            yield out.check(stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeBlockCase(Case):
    """Prefill, then a few tokens, then one."""

    problem: MoeBlockProblem
    load: Load

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        block: MoeBlock = stage.bind(kernel, p)
        for family in (block.router, block.up, block.down):
            family.allocate(stage.device)
        router = self._router(stage)
        block.router.load(0, logical(router.to(host_dtype(p.dtype)), p.dtype))
        up, down = load_experts(block.up, stage), load_experts(block.down, stage)
        x = self._tokens(stage, router.numpy())
        logits = x.host @ router.numpy().T
        routed = oracle.top_experts(logits, p.top_k, norms=p.norm_topk_prob)
        expected = self._expected(x.host, routed, up, down)
        most: Float64 | None = None
        for n in (33, 5, 1):
            out = guarded(stage, (n, p.hidden_size), self.dtype)
            block(x.device[:n], out.out)
            result = out.read(stage)
            yield Check(f"out, T={n}", relative_l2(result, expected[:n]), self._limit)
            yield out.check(stage)
            most = result if most is None else most
            if _is_invariant(kernel, p, stage):
                yield equal(f"batch-invariant at T={n}", result, most[:n])

    @property
    def _limit(self) -> float:
        """As of an mlp_block of codes: what is rounded to dtype in the middle may move a code.

        Without codes of x it is rounded in the middle, of each expert and at the end.
        """
        format = self.problem.weights
        if format is not None and not format.keeps_activations:
            return BLOCK_LIMITS[self.dtype]
        return LIMITS[self.dtype] if self.dtype is DType.FLOAT32 else 2 * LIMITS[self.dtype]

    def _router(self, stage: Stage) -> torch.Tensor:
        """[num_experts, hidden_size], values of dtype; `_tokens` make its first column count."""
        p = self.problem
        if self.load is Load.TIES:  # two different rows, of whole numbers: every sum is exact
            rows = stage.rng.integers(-2, 3, (2, p.hidden_size)).astype(np.float64)
            return torch.from_numpy(rows[np.arange(p.num_experts) % 2])
        values = stage.rng.standard_normal((p.num_experts, p.hidden_size)) * p.hidden_size**-0.5
        if self.load is Load.ONE_EXPERT:
            values[p.num_experts // 2, 0] = 4.0
        if self.load is Load.HALF_IDLE:
            values[::2, 0] = -4.0
        return torch.from_numpy(values).to(host_dtype(p.dtype)).double()

    def _tokens(self, stage: Stage, router: Float64) -> Value:
        """Tokens that no rounding of their logits sends to another expert."""
        p, num_tokens = self.problem, 33
        if self.load is Load.TIES:
            shape = (num_tokens, p.hidden_size)
            return stage.place(stage.rng.integers(-2, 3, shape).astype(np.float64), self.dtype)
        values = stage.rng.standard_normal((16 * num_tokens, p.hidden_size))
        values[:, 0] = 2.0
        if p.top_k < p.num_experts:
            logits = np.sort(values @ router.T)[:, ::-1]
            values = values[logits[:, p.top_k - 1] - logits[:, p.top_k] > _LEAST_MARGIN]
        assert len(values) >= num_tokens, f"{len(values)} tokens are sure of their experts"
        return stage.place(values[:num_tokens], self.dtype)

    def _expected(
        self, x: Float64, routed: oracle.Routed, up: ExpertProduct, down: ExpertProduct
    ) -> Float64:
        p, total = self.problem, np.zeros_like(x)
        for expert in range(p.num_experts):
            token, choice = np.nonzero(routed.experts == expert)
            if len(token) == 0:
                continue
            rows = up(expert, x[token])
            gate = oracle.activate(rows[:, : p.intermediate_size], p.activation)
            y = down(expert, gate * rows[:, p.intermediate_size :])
            total[token] += routed.weights[token, choice, None] * y
        return total


def _is_invariant(kernel: Kernel, problem: object, stage: Stage) -> bool:
    """Whether it says so, and every kernel that it called in turn."""
    parts = stage.binder.selector.report()
    return kernel.traits.is_batch_invariant(problem) and all(
        part.kernel.traits.is_batch_invariant(part.problem) for part in parts
    )


def moe_cases() -> Iterator[Case]:
    for num_experts, top_k in ((8, 2), (5, 5), (128, 8), (1, 1)):
        for norms in (False, True):
            yield _route(num_experts, top_k, norms)
    yield _route(16, 4, True, ties=True)
    for dtype in LIMITS:
        for top_k, width in ((1, 16), (2, 33), (8, 100)):
            problem = CombineProblem(top_k=top_k, width=width, dtype=dtype)
            name = f"k{top_k}-W{width}"
            yield CombineCase(op="combine_experts", name=name, problem=problem, dtype=dtype)
        for name, weights in (("plain", None), *WEIGHT_FORMATS.items()):
            yield from _grouped_cases(name, weights, dtype)
            yield from _block_cases(name, weights, dtype)


def _route(num_experts: int, top_k: int, norms: bool, *, ties: bool = False) -> RouteCase:
    name = f"E{num_experts}-k{top_k}{'-norm' * norms}{'-ties' * ties}"
    problem = RouteProblem(num_experts=num_experts, top_k=top_k)
    return RouteCase(
        op="route_experts", name=name, problem=problem, dtype=DType.FLOAT32, norms=norms, ties=ties
    )


def _grouped_cases(name: str, weights: WeightFormat | None, dtype: DType) -> Iterator[Case]:
    for num_experts, k, n in ((4, 64, 48), (3, 33, 17), (1, 130, 131)):
        yield GroupedLinearCase(
            op="grouped_linear",
            name=f"{name}-E{num_experts}-K{k}-N{n}",
            problem=GroupedLinearProblem(
                num_experts=num_experts, in_features=k, out_features=n, dtype=dtype, weights=weights
            ),
            dtype=dtype,
        )


def _block_cases(name: str, weights: WeightFormat | None, dtype: DType) -> Iterator[Case]:
    for load in Load:
        yield _block(f"{name}-{load}", dtype, weights, load)
    yield _block(f"{name}-all", dtype, weights, num_experts=3, top_k=3, norms=False)
    yield _block(f"{name}-odd", dtype, weights, num_experts=5, hidden_size=37, width=21)
    yield _block(f"{name}-gelu", dtype, weights, activation=Activation.GELU_TANH, norms=False)


def _block(
    name: str,
    dtype: DType,
    weights: WeightFormat | None,
    load: Load = Load.RANDOM,
    *,
    num_experts: int = 8,
    top_k: int = 2,
    hidden_size: int = 64,
    width: int = 144,
    activation: Activation = Activation.SILU,
    norms: bool = True,
) -> MoeBlockCase:
    problem = MoeBlockProblem(
        num_experts=num_experts,
        top_k=top_k,
        hidden_size=hidden_size,
        intermediate_size=width,
        activation=activation,
        norm_topk_prob=norms,
        dtype=dtype,
        weights=weights,
    )
    return MoeBlockCase(op="moe_block", name=name, problem=problem, dtype=dtype, load=load)
