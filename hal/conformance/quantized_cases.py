"""linear, vocab and mlp_block on weights of codes.

Codes are numbers that hal.weights.WeightFormat defines to the last bit, so the oracle takes
them as that says, in float32 numpy, of the weight and of x alike; everything after is float64. A
product then meets the limits of its dtype: that of rounding its result, with no room for a code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hal.conformance import oracle
from hal.conformance.block_input import BlockInput, cut
from hal.conformance.case import Case, Check, equal, guarded
from hal.conformance.limits import LIMITS, relative_l2
from hal.conformance.stage import Float64, Stage, logical
from hal.dtypes import DType
from hal.opset.block import MlpBlock, MlpBlockProblem
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearFamily, LinearProblem
from hal.opset.norm import NormKind
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.select import Kernel
from hal.weights import WEIGHT_FORMATS, WeightFormat

Float32 = NDArray[np.float32]

# Every tile height of up to 16 tokens would be slow in the reference: the ends, an odd one, a full
# tile, one more, two uneven tiles, and a prefill; largest first.
_NUM_TOKENS = (300, 33, 17, 16, 7, 2, 1)

# An mlp_block rounds its inner activations to codes after rounding them to dtype, as the oracle
# does not: where that moves one across the middle between two codes, a whole step of it shows.
BLOCK_LIMITS = {DType.FLOAT32: 2e-3, DType.FLOAT16: 1e-2, DType.BFLOAT16: 3e-2}


@dataclass(frozen=True, slots=True)
class _Rounded:
    """codes [rows, columns] and the scale of each of them."""

    codes: Float64
    scales: Float64

    @property
    def values(self) -> Float64:
        return self.codes * self.scales


def _rounded(
    x: Float64, group_size: int, round_group: Callable[[Float32], tuple[Float64, np.float32]]
) -> _Rounded:
    """Each row in groups, one by one; x holds float32 values."""
    codes, scales = np.zeros_like(x), np.zeros_like(x)
    for row, first in np.ndindex(len(x), -(-x.shape[1] // group_size)):
        columns = slice(first * group_size, (first + 1) * group_size)
        codes[row, columns], scales[row, columns] = round_group(x[row, columns].astype(np.float32))
    return _Rounded(codes, scales)


def _int8(group: Float32) -> tuple[Float64, np.float32]:
    largest = abs(group).max()
    codes = np.rint(group * (np.float32(127) / largest))
    return codes.astype(np.float64), largest / np.float32(127)


def _int4(group: Float32) -> tuple[Float64, np.float32]:
    extreme = group.max() if group.max() >= -group.min() else group.min()
    scale = _bfloat16(extreme / np.float32(-8))
    codes = np.rint(group * (np.float32(1) / scale)).clip(-8, 7)
    return codes.astype(np.float64), scale


def _int4_with_zero(group: Float32) -> tuple[Float64, np.float32]:
    zero32, steps = np.float32(0), np.float32(15)
    high, low = max(group.max(), zero32), min(group.min(), zero32)
    scale = _bfloat16(high / steps - low / steps)
    inverse = np.float32(1) / scale
    zero = np.rint(-low * inverse).clip(0, 15)
    codes = (np.rint(group * inverse) + zero).clip(0, 15) - zero
    return codes.astype(np.float64), scale


def _fp8(group: Float32) -> tuple[Float64, np.float32]:
    """The nearest of the 127 magnitudes, of two equally near the one with an even code."""
    largest = abs(group).max()
    magnitude = abs(group * (np.float32(448) / largest)).astype(np.float64)
    below = (np.searchsorted(_FP8_MAGNITUDES, magnitude, side="right") - 1).clip(0, 125)
    low, high = _FP8_MAGNITUDES[below], _FP8_MAGNITUDES[below + 1]
    is_up = (magnitude - low > high - magnitude) | (
        (magnitude - low == high - magnitude) & (below % 2 == 1)
    )
    codes = np.copysign(np.where(is_up, high, low), group.astype(np.float64))
    return codes, largest / np.float32(448)


def _fp8_magnitude(code: int) -> float:
    exponent, mantissa = divmod(code, 8)
    return (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9


_FP8_MAGNITUDES = np.array([_fp8_magnitude(code) for code in range(127)])


def _bfloat16(value: np.float32) -> np.float32:
    return np.float32(torch.tensor(value).bfloat16().item())


def quantized(weight: Float64, format: WeightFormat) -> _Rounded:
    """As a family stores it."""
    int4 = _int4_with_zero if format.has_zeros else _int4
    rounding = {DType.INT8: _int8, DType.INT4: int4, DType.FLOAT8_E4M3FN: _fp8}[format.codes]
    return _rounded(weight, format.group_size or weight.shape[1], rounding)


def product(x: Float64, weight: _Rounded, format: WeightFormat) -> Float64:
    """x, rounded as the format says, times the stored weight."""
    if not format.keeps_activations:
        x = _rounded(x, format.activation_group or x.shape[1], _int8).values
    return np.asarray(x @ weight.values.T)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLinearCase(Case):
    """One weight, loaded as a merged weight is: its last rows first."""

    problem: LinearProblem
    num_tokens: tuple[int, ...] = _NUM_TOKENS

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        assert p.weights is not None
        family: LinearFamily = stage.bind(kernel, p)
        before = stage.device.allocated_bytes()
        family.allocate(stage.device)
        taken = stage.device.allocated_bytes() - before
        yield equal("num_bytes", np.array([family.num_bytes]), np.array([taken]))
        weight = stage.weight((p.out_features, p.in_features), p.dtype, p.in_features**-0.5)
        bias = stage.weight((p.out_features,), p.dtype, 1.0)
        for rows in _slices(p.out_features):
            family.load(rows.start, logical(weight[rows], p.dtype))
            if p.has_bias:
                family.load_bias(rows.start, bias[rows])
        x = stage.normal((self.num_tokens[0], p.in_features), p.dtype)
        stored = quantized(weight.double().numpy(), p.weights)
        expected = product(x.host, stored, p.weights)
        if p.has_bias:
            expected = expected + bias.double().numpy()
        yield from self._products(kernel, stage, family, x.device, expected)

    def _products(
        self, kernel: Kernel, stage: Stage, family: LinearFamily, x: object, expected: Float64
    ) -> Iterator[Check]:
        assert isinstance(x, torch.Tensor)
        most: Float64 | None = None
        for m in self.num_tokens:
            out = guarded(stage, (m, self.problem.out_features), self.dtype)
            family(x[:m], out.out)
            result = out.read(stage)
            yield self.close(f"out, M={m}", result, expected[:m])
            yield out.check(stage)
            most = result if most is None else most
            if kernel.traits.is_batch_invariant(self.problem):
                yield equal(f"batch-invariant at M={m}", result, most[:m])


class WideLinearCase(QuantizedLinearCase):
    """Of many columns, whole vectors of them: for kernels that refuse the other shapes."""


def _slices(num_rows: int) -> list[slice]:
    """Two uneven parts, last first, that meet no strip's edge unless there is one row."""
    cut = num_rows // 3 + 1
    return [slice(cut, num_rows), slice(0, cut)] if cut < num_rows else [slice(0, num_rows)]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedVocabCase(Case):
    """Rows looked up and logits from one matrix of codes."""

    problem: VocabProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        assert p.weights is not None
        family: VocabFamily = stage.bind(kernel, p)
        family.allocate(stage.device)
        weight = stage.weight((p.vocab_size, p.hidden_size), p.dtype, p.hidden_size**-0.5)
        for rows in _slices(p.vocab_size):
            family.load(rows.start, logical(weight[rows], p.dtype))
        stored = quantized(weight.double().numpy(), p.weights)
        ids = stage.rng.integers(0, p.vocab_size, 19).astype(np.int32)
        ids[:2] = (0, p.vocab_size - 1)
        out = guarded(stage, (len(ids), p.hidden_size), self.dtype)
        family.embed(stage.indices(ids), out.out)
        yield self.close("embed", out.read(stage), stored.values[ids])
        yield out.check(stage)
        x = stage.normal((17, p.hidden_size), self.dtype)
        for n in (17, 1):
            logits = guarded(stage, (n, p.vocab_size), DType.FLOAT32)
            family.logits(x.device[:n], logits.out)
            expected = product(x.host[:n], stored, p.weights)
            error = relative_l2(logits.read(stage), expected)
            yield Check(f"logits, N={n}", error, LIMITS[DType.FLOAT32])
            yield logits.check(stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedMlpBlockCase(Case):
    """Prefill, then one token."""

    problem: MlpBlockProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        assert p.weights is not None
        block: MlpBlock = stage.bind(kernel, p)
        up, down = _load(block.up, stage), _load(block.down, stage)
        given = BlockInput(stage, p.hidden_size, self.dtype, p.norm)
        x = given.rows(33)
        for num_tokens in (33, 1):
            call = given.give(cut([x], [slice(num_tokens)]))
            out = guarded(stage, (num_tokens, p.hidden_size), self.dtype)
            block(call.x, out.out, call.norm)
            expected = self._expected(call.multiplied(stage), up, down)
            error = relative_l2(out.read(stage), expected)
            limit = BLOCK_LIMITS[self.dtype]
            if p.weights.keeps_activations:
                limit = 2 * LIMITS[self.dtype]  # of rounding to dtype in the middle and at the end
            yield Check(f"out, T={num_tokens}", error, limit)
            yield out.check(stage)
            yield from call.checks(stage)

    def _expected(self, x: Float64, up: _Rounded, down: _Rounded) -> Float64:
        p = self.problem
        assert p.weights is not None
        rows = product(x, up, p.weights)
        hidden = oracle.activate(rows[:, : p.intermediate_size], p.activation)
        if p.is_gated:
            hidden = hidden * rows[:, p.intermediate_size :]
        return product(hidden, down, p.weights)


def _load(family: LinearFamily, stage: Stage) -> _Rounded:
    """Random weights into an allocated family, as the oracle reads them."""
    p = family.problem
    assert p.weights is not None
    family.allocate(stage.device)
    weight = stage.weight((p.out_features, p.in_features), p.dtype, p.in_features**-0.5)
    family.load(0, logical(weight, p.dtype))
    return quantized(weight.double().numpy(), p.weights)


# K and N: fewer rows than a strip, odd N, K no multiple of 4, 32 or a group, several tiles.
_SHAPES = ((64, 48), (33, 17), (131, 130), (300, 77), (16, 5))


# K: ten runs of 128 columns, the last one short, and no whole group at the end.
_WIDE_SHAPE = (1160, 72)


def _wide_cases() -> Iterator[Case]:
    k, n = _WIDE_SHAPE
    for dtype in (DType.FLOAT16, DType.BFLOAT16):
        for name, weights in WEIGHT_FORMATS.items():
            if weights.codes is DType.INT4 and weights.keeps_activations:
                yield WideLinearCase(
                    op="linear",
                    name=f"{name}-K{k}-N{n}",
                    problem=LinearProblem(
                        in_features=k, out_features=n, dtype=dtype, weights=weights
                    ),
                    dtype=dtype,
                    num_tokens=(70, 17, 9, 1),
                )


def quantized_cases() -> Iterator[Case]:
    yield from _wide_cases()
    for dtype in LIMITS:
        for name, weights in WEIGHT_FORMATS.items():
            for k, n in _SHAPES:
                yield QuantizedLinearCase(
                    op="linear",
                    name=f"{name}-K{k}-N{n}-bias",
                    problem=LinearProblem(
                        in_features=k, out_features=n, dtype=dtype, has_bias=True, weights=weights
                    ),
                    dtype=dtype,
                )
            yield QuantizedVocabCase(
                op="vocab",
                name=f"{name}-V203-H40-tied",
                problem=VocabProblem(
                    vocab_size=203,
                    hidden_size=40,
                    dtype=dtype,
                    embeds=True,
                    makes_logits=True,
                    weights=weights,
                ),
                dtype=dtype,
            )
            yield from _mlp_cases(name, weights, dtype)


def _mlp_cases(name: str, weights: WeightFormat, dtype: DType) -> Iterator[Case]:
    for width, is_gated, norm in (
        (96, True, None),
        (100, True, None),
        (96, False, None),
        (384, True, NormKind.RMS),  # wide: one code at its middle is little of a row
    ):
        normed = "" if norm is None else f"-{norm}"
        yield QuantizedMlpBlockCase(
            op="mlp_block",
            name=f"{name}-W{width}{'-gated' * is_gated}{normed}",
            problem=MlpBlockProblem(
                hidden_size=64,
                intermediate_size=width,
                activation=Activation.SILU,
                is_gated=is_gated,
                has_bias=False,
                dtype=dtype,
                weights=weights,
                norm=norm,
            ),
            dtype=dtype,
        )
