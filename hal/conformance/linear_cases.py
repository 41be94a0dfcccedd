"""linear and vocab: every M of one weight, empty tails, biases, slices loaded in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from hal.conformance.case import Case, Check, equal, guarded
from hal.conformance.limits import LIMITS
from hal.conformance.stage import Float64, Stage, logical
from hal.dtypes import DType
from hal.opset.linear import LinearFamily, LinearProblem
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.select import Kernel

# One token, the small decode batches, one past a tile of 16, a prefill chunk; largest first.
NUM_TOKENS = (64, 17, 16, 3, 2, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearCase(Case):
    """One weight, loaded as a merged weight is: its last rows first."""

    problem: LinearProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        family: LinearFamily = stage.bind(kernel, p)
        before = stage.device.allocated_bytes()
        family.allocate(stage.device)
        yield _bytes_check(stage.device.allocated_bytes() - before, family.num_bytes)
        weight = stage.weight((p.out_features, p.in_features), p.dtype, p.in_features**-0.5)
        bias = stage.weight((p.out_features,), p.dtype, 1.0)
        for rows in _slices(p.out_features):
            family.load(rows.start, logical(weight[rows], p.dtype))
            if p.has_bias:
                family.load_bias(rows.start, bias[rows])
        x = stage.normal((NUM_TOKENS[0], p.in_features), p.dtype)
        expected = x.host @ _wide(weight).T + (_wide(bias) if p.has_bias else 0.0)
        yield from self._products(kernel, stage, family, x.device, expected)

    def _products(
        self, kernel: Kernel, stage: Stage, family: LinearFamily, x: object, expected: Float64
    ) -> Iterator[Check]:
        assert isinstance(x, torch.Tensor)
        most: Float64 | None = None
        for m in NUM_TOKENS:
            out = guarded(stage, (m, self.problem.out_features), self.dtype)
            family(x[:m], out.out)
            result = out.read(stage)
            yield self.close(f"out, M={m}", result, expected[:m])
            yield out.check(stage)
            most = result if most is None else most
            if kernel.traits.is_batch_invariant(self.problem):
                yield equal(f"batch-invariant at M={m}", result, most[:m])


def _bytes_check(taken: int, stated: int) -> Check:
    """The memory plan adds up what families state: it must be what they take."""
    return Check(f"num_bytes {stated}, allocated {taken}", float(abs(taken - stated)), 0.0)


def _slices(num_rows: int) -> list[slice]:
    """Three uneven parts, last first, that meet no tile's edge."""
    first, second = max(1, num_rows // 3), max(2, num_rows // 2 + 1)
    cuts = [0, *sorted({min(first, num_rows), min(second, num_rows)}), num_rows]
    return [slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False) if a < b][::-1]


def _wide(values: torch.Tensor) -> Float64:
    return values.double().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabCase(Case):
    """Rows looked up and logits from one matrix, padded rows (a tail) included."""

    problem: VocabProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        family: VocabFamily = stage.bind(kernel, p)
        before = stage.device.allocated_bytes()
        family.allocate(stage.device)
        yield _bytes_check(stage.device.allocated_bytes() - before, family.num_bytes)
        weight = stage.weight((p.vocab_size, p.hidden_size), p.dtype, p.hidden_size**-0.5)
        for rows in _slices(p.vocab_size):
            family.load(rows.start, logical(weight[rows], p.dtype))
        if p.embeds:
            yield from self._lookups(stage, family, _wide(weight))
        if p.makes_logits:
            yield from self._logits(kernel, stage, family, _wide(weight))

    def _lookups(self, stage: Stage, family: VocabFamily, weight: Float64) -> Iterator[Check]:
        ids = stage.rng.integers(0, self.problem.vocab_size, 19).astype(np.int32)
        ids[:2] = (0, self.problem.vocab_size - 1)
        out = guarded(stage, (len(ids), self.problem.hidden_size), self.dtype)
        family.embed(stage.indices(ids), out.out)
        yield equal("embed", out.read(stage), weight[ids])
        yield out.check(stage)

    def _logits(
        self, kernel: Kernel, stage: Stage, family: VocabFamily, weight: Float64
    ) -> Iterator[Check]:
        x = stage.normal((17, self.problem.hidden_size), self.dtype)
        most: Float64 | None = None
        for n in (17, 2, 1):
            out = guarded(stage, (n, self.problem.vocab_size), DType.FLOAT32)
            family.logits(x.device[:n], out.out)
            result = out.read(stage)
            yield self.close(f"logits, N={n}", result, x.host[:n] @ weight.T)
            yield out.check(stage)
            most = result if most is None else most
            if kernel.traits.is_batch_invariant(self.problem):
                yield equal(f"batch-invariant at N={n}", result, most[:n])


_SHAPES = ((64, 48), (33, 17), (130, 128), (256, 200), (16, 9))
_VOCABS = ((96, 64), (1003, 40))


def linear_cases() -> Iterator[LinearCase]:
    for dtype in LIMITS:
        for k, n in _SHAPES:
            for has_bias in (False, True):
                yield LinearCase(
                    op="linear",
                    name=f"K{k}-N{n}{'-bias' if has_bias else ''}",
                    problem=LinearProblem(
                        in_features=k, out_features=n, dtype=dtype, has_bias=has_bias
                    ),
                    dtype=dtype,
                )


def vocab_cases() -> Iterator[VocabCase]:
    for dtype in LIMITS:
        for vocab_size, hidden_size in _VOCABS:
            for embeds, makes_logits in ((True, True), (True, False), (False, True)):
                uses = "tied" if embeds and makes_logits else "embed" if embeds else "logits"
                yield VocabCase(
                    op="vocab",
                    name=f"V{vocab_size}-H{hidden_size}-{uses}",
                    problem=VocabProblem(
                        vocab_size=vocab_size,
                        hidden_size=hidden_size,
                        dtype=dtype,
                        embeds=embeds,
                        makes_logits=makes_logits,
                    ),
                    dtype=dtype,
                )
