"""Copies by index and conversion at load: the bits must be right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hal.conformance.case import Case, Check, equal, guarded
from hal.conformance.limits import LIMITS
from hal.conformance.stage import Stage, host_dtype
from hal.dtypes import DType
from hal.errors import WeightsError
from hal.opset.indexing import GatherProblem, TokenProblem
from hal.select import Kernel

Int32 = NDArray[np.int32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherCase(Case):
    """Rows in any order, some twice, some never."""

    problem: GatherProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        x = stage.normal((23, self.problem.width), self.dtype)
        call = stage.bind(kernel, self.problem)
        for num_rows in (40, 1):
            index = stage.rng.integers(0, 23, num_rows).astype(np.int32)
            out = guarded(stage, (num_rows, self.problem.width), self.dtype)
            call(x.device, stage.indices(index), out.out)
            yield equal(f"out, {num_rows} rows", out.read(stage), x.host[index])
            yield out.check(stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCase(Case):
    """A strided checkpoint vector in `source`, kept in `dtype`."""

    problem: GatherProblem
    source: DType

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        values = stage.weight((5, self.problem.width), self.source, 10.0)
        out = guarded(stage, (5, self.problem.width), self.dtype)
        call = stage.bind(kernel, self.problem)
        call(values, out.out)
        expected = values.to(host_dtype(self.dtype)).double().numpy()
        yield equal("out", out.read(stage), expected)
        yield out.check(stage)
        if self.dtype is DType.FLOAT16 and self.source is not DType.FLOAT16:
            values[2, 1] = 70000.0
            yield Check("refuses a value beyond float16", _accepts(call, values, out.out), 0.0)


def _accepts(call: object, values: torch.Tensor, out: object) -> float:
    assert callable(call)
    try:
        call(values, out)
    except WeightsError:
        return 0.0
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeTokensCase(Case):
    """Half of the ids are given, half are the last sampled token of their slot."""

    problem: TokenProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        last = stage.rng.integers(100, 200, 9).astype(np.int32)
        call = stage.bind(kernel, self.problem)
        for num_tokens in (17, 1):
            given = stage.rng.integers(0, 50, num_tokens).astype(np.int32)
            given[::2] = -1
            slots = stage.rng.integers(0, 9, num_tokens).astype(np.int32)
            out = stage.indices(np.full(num_tokens, -7, dtype=np.int32))
            call(stage.indices(given), stage.indices(slots), stage.indices(last), out)
            expected = np.where(given < 0, last[slots], given)
            yield equal(f"out, T={num_tokens}", stage.read(out), expected.astype(np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepTokensCase(Case):
    """Slots out of order; the others keep what they have."""

    problem: TokenProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        last = stage.rng.integers(100, 200, 9).astype(np.int32)
        device_last = stage.indices(last)
        call = stage.bind(kernel, self.problem)
        for slots in (np.array([7, 0, 3], dtype=np.int32), np.array([8], dtype=np.int32)):
            tokens = stage.rng.integers(0, 50, len(slots)).astype(np.int32)
            call(stage.indices(tokens), stage.indices(slots), device_last)
            last[slots] = tokens
            yield equal("last_tokens", stage.read(device_last), last.astype(np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTokensCase(Case):
    """Ids of this rank's rows, and of those before and behind."""

    problem: TokenProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        call = stage.bind(kernel, self.problem)
        for first, count in ((0, 5), (7, 3), (11, 9)):
            ids = stage.rng.integers(0, 20, 17).astype(np.int32)
            ids[:4] = (first, first + count - 1, first + count, max(0, first - 1))
            out = stage.indices(np.full(17, -7, dtype=np.int32))
            call(stage.indices(ids), first, count, out)
            expected = np.where(_is_own(ids, first, count), ids - first, 0)
            yield equal(f"out, {count} from {first}", stage.read(out), expected.astype(np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroOtherRowsCase(Case):
    """Rows of this rank's ids stay as they are, to the bit."""

    problem: GatherProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        call = stage.bind(kernel, self.problem)
        for num_rows in (17, 1):
            ids = stage.rng.integers(0, 20, num_rows).astype(np.int32)
            ids[0] = 12  # the first that is not
            x = stage.normal((num_rows, self.problem.width), self.dtype)
            call(stage.indices(ids), 7, 5, x.device)
            expected = np.where(_is_own(ids, 7, 5)[:, None], x.host, 0.0)
            yield equal(f"out, {num_rows} rows", stage.read(x.device), expected)


def _is_own(ids: Int32, first: int, count: int) -> Bool:
    return (ids >= first) & (ids < first + count)


def indexing_cases() -> Iterator[Case]:
    tokens = TokenProblem()
    yield TakeTokensCase(op="take_tokens", name="mixed", problem=tokens, dtype=DType.INT32)
    yield KeepTokensCase(op="keep_tokens", name="some", problem=tokens, dtype=DType.INT32)
    yield OwnTokensCase(op="own_tokens", name="rank", problem=tokens, dtype=DType.INT32)
    for dtype in LIMITS:
        for width in (64, 33):
            problem = GatherProblem(width=width, dtype=dtype)
            yield GatherCase(op="gather_rows", name=f"W{width}", problem=problem, dtype=dtype)
            yield ZeroOtherRowsCase(
                op="zero_other_rows", name=f"W{width}", problem=problem, dtype=dtype
            )
        for source in LIMITS:
            yield StoreCase(
                op="store",
                name=f"from-{source}",
                problem=GatherProblem(width=33, dtype=dtype),
                dtype=dtype,
                source=source,
            )
