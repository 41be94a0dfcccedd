"""Ops that treat every row alone: norms, activations, sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hal.conformance import oracle
from hal.conformance.case import Case, Check, equal, guarded
from hal.conformance.limits import LIMITS
from hal.conformance.stage import Float64, Stage, Value
from hal.dtypes import DType
from hal.opset.elementwise import Activation, ActivationProblem, ElementwiseProblem
from hal.opset.norm import NormProblem
from hal.select import Kernel
from hal.tensor import Tensor

NUM_ROWS = (33, 3, 1)
EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class NormCase(Case):
    """rms_norm or layer_norm. The scale of 300 overflows a sum of squares in float16."""

    problem: NormProblem
    has_residual: bool
    is_in_place: bool = False
    mean: float = 0.0
    scale: float = 1.0

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        width, first = self.problem.hidden_size, NUM_ROWS[0]
        x = self._rows(stage, first)
        residual = stage.normal((first, width), self.dtype, self.scale)
        weight = stage.normal((width,), self.dtype)
        bias = stage.normal((width,), self.dtype)
        vectors = [weight] if self.op == "rms_norm" else [weight, bias]
        call = stage.bind(kernel, self.problem)
        most: Float64 | None = None
        for num_rows in NUM_ROWS:
            xs = stage.place(x.host[:num_rows], self.dtype)
            ys = stage.place(residual.host[:num_rows], self.dtype) if self.has_residual else None
            out = guarded(stage, (num_rows, width), self.dtype)
            target = xs.device if self.is_in_place else out.out
            tensors = [v.device for v in vectors]
            call(xs.device, None if ys is None else ys.device, *tensors, EPS, target)
            result = stage.read(target)
            yield from self._checks(stage, xs, ys, vectors, result)
            yield out.check(stage)
            most = result if most is None else most
            if kernel.traits.is_batch_invariant(self.problem):
                yield equal(f"batch-invariant at {num_rows} rows", result, most[:num_rows])

    def _rows(self, stage: Stage, num_rows: int) -> Value:
        noise = stage.rng.standard_normal((num_rows, self.problem.hidden_size))
        return stage.place(self.mean + self.scale * noise, self.dtype)

    def _checks(
        self, stage: Stage, x: Value, residual: Value | None, vectors: list[Value], out: Float64
    ) -> Iterator[Check]:
        y = x.host
        if residual is not None:
            # The sum of two numbers of a dtype is exact in float64: one rounding, so equal bits.
            y = stage.place(x.host + residual.host, self.dtype).host
            yield equal("residual", stage.read(residual.device), y)
        if self.op == "rms_norm":
            expected = oracle.rms_norm(y, vectors[0].host, EPS)
        else:
            expected = oracle.layer_norm(y, vectors[0].host, vectors[1].host, EPS)
        yield self.close(f"out, {len(y)} rows", out, expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationCase(Case):
    """gated_activation or plain_activation."""

    problem: ActivationProblem
    is_in_place: bool = False

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        width, activation = self.problem.width, self.problem.activation
        is_gated = self.op == "gated_activation"
        x = stage.normal((NUM_ROWS[0], 2 * width if is_gated else width), self.dtype, 3.0)
        expected = oracle.activate(x.host[:, :width], activation)
        if is_gated:
            expected = expected * x.host[:, width:]
        call = stage.bind(kernel, self.problem)
        most: Float64 | None = None
        for num_rows in NUM_ROWS:
            rows = stage.place(x.host[:num_rows], self.dtype)
            out = guarded(stage, (num_rows, width), self.dtype)
            target = rows.device if self.is_in_place else out.out
            call(rows.device, activation, target)
            result = stage.read(target)
            yield self.close(f"out, {num_rows} rows", result, expected[:num_rows])
            yield out.check(stage)
            most = result if most is None else most
            if kernel.traits.is_batch_invariant(self.problem):
                yield equal(f"batch-invariant at {num_rows} rows", result, most[:num_rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class AddCase(Case):
    """x + y, exactly: one rounding leaves no choice."""

    problem: ElementwiseProblem
    is_in_place: bool = False

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        call = stage.bind(kernel, self.problem)
        for num_rows in NUM_ROWS:
            shape = (num_rows, self.problem.width)
            x, y = stage.normal(shape, self.dtype), stage.normal(shape, self.dtype)
            expected = stage.place(x.host + y.host, self.dtype).host
            out = guarded(stage, shape, self.dtype)
            target: Tensor = x.device if self.is_in_place else out.out
            call(x.device, y.device, target)
            yield equal(f"out, {num_rows} rows", stage.read(target), expected)
            yield equal("y is only read", stage.read(y.device), y.host)
            yield out.check(stage)


def norm_cases() -> Iterator[NormCase]:
    for dtype in LIMITS:
        for op in ("rms_norm", "layer_norm"):
            yield from _norm_cases(op, dtype)


def _norm_cases(op: str, dtype: DType) -> Iterator[NormCase]:
    for width in (64, 1, 100, 257) if op == "rms_norm" else (64, 100, 257):
        for has_residual in (False, True):
            yield NormCase(
                op=op,
                name=f"H{width}{'-residual' if has_residual else ''}",
                problem=NormProblem(hidden_size=width, dtype=dtype),
                dtype=dtype,
                has_residual=has_residual,
            )
    problem = NormProblem(hidden_size=128, dtype=dtype)
    yield NormCase(
        op=op,
        name="H128-in-place-large",
        problem=problem,
        dtype=dtype,
        has_residual=True,
        is_in_place=True,
        scale=300.0,
    )
    if op == "layer_norm":
        # A mean of 8 deviations: E[y^2] - E[y]^2 in low precision would show.
        yield NormCase(
            op=op, name="H128-mean", problem=problem, dtype=dtype, has_residual=False, mean=8.0
        )


def elementwise_cases() -> Iterator[Case]:
    for dtype in LIMITS:
        for activation in Activation:
            for op, width in (("gated_activation", 96), ("plain_activation", 33)):
                yield ActivationCase(
                    op=op,
                    name=f"{activation}-W{width}",
                    problem=ActivationProblem(width=width, activation=activation, dtype=dtype),
                    dtype=dtype,
                )
        in_place = ActivationProblem(width=64, activation=Activation.GELU_TANH, dtype=dtype)
        yield ActivationCase(
            op="plain_activation", name="in-place", problem=in_place, dtype=dtype, is_in_place=True
        )
        for width, is_in_place in ((64, False), (33, True)):
            yield AddCase(
                op="add",
                name=f"W{width}{'-in-place' if is_in_place else ''}",
                problem=ElementwiseProblem(width=width, dtype=dtype),
                dtype=dtype,
                is_in_place=is_in_place,
            )
