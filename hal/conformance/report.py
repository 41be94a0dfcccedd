"""Everything one run of the kit found, added up: worst cases, gaps, the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hal.conformance.case import Check
from hal.conformance.model_checks import ModelRecord
from hal.conformance.run import Outcome, Record
from hal.select import Kernel


@dataclass(frozen=True, slots=True)
class Worst:
    """The check that used most of its limit, and the case it belongs to."""

    case: str
    check: Check

    def __str__(self) -> str:
        return f"{self.case}, {self.check}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Outcomes of one row of the table: a kernel of an op, or a model in a dtype.

    reasons: why cases were skipped or could not be made, most frequent first
    """

    level: str
    name: str
    variant: str
    num_passed: int
    num_failed: int
    num_skipped: int
    num_missing: int
    worst: Worst | None
    reasons: tuple[str, ...]
    first_failure: str = ""

    @property
    def num_run(self) -> int:
        return self.num_passed + self.num_failed

    @property
    def has_passed(self) -> bool:
        """A row of which nothing ran has shown nothing."""
        return self.num_passed > 0 and not self.num_failed and not self.num_missing

    @property
    def worst_ratio(self) -> float | None:
        return None if self.worst is None else self.worst.check.ratio


def summarise(level: str, name: str, variant: str, outcomes: Sequence[Outcome]) -> Summary:
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    found = [Worst(o.case, o.worst) for o in outcomes if o.worst is not None]
    why = Counter(o.detail for o in outcomes if o.skipped or o.missing)
    failed = [o for o in outcomes if o.has_failed]
    return Summary(
        level=level,
        name=name,
        variant=variant,
        num_passed=verdicts["passed"],
        num_failed=verdicts["failed"],
        num_skipped=verdicts["skipped"],
        num_missing=verdicts["missing"],
        worst=max(found, key=lambda w: w.check.ratio, default=None),
        reasons=tuple(reason for reason, _ in why.most_common()),
        first_failure=f"{failed[0].case}: {failed[0].detail or 'no check was made'}"
        if failed
        else "",
    )


@dataclass(frozen=True, slots=True)
class KernelRun:
    """One kernel with what it showed on every case of its op."""

    kernel: Kernel
    records: tuple[Record, ...]
    summary: Summary


LEVELS = ("layer", "model")


@dataclass(frozen=True, slots=True)
class ModelRun:
    """One model in one dtype; kernels: op -> the kernel that ran it."""

    model: str
    dtype: str
    records: tuple[ModelRecord, ...]
    kernels: dict[str, str]

    def summary(self, level: str) -> Summary:
        records = [record for record in self.records if record.level == level]
        return summarise(level, self.model, self.dtype, records)


@dataclass(frozen=True, slots=True)
class Gap:
    """Something required that nothing has shown."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All of it. is_whole: nothing was left out by --op, --kernel or --quick."""

    kernels: tuple[KernelRun, ...]
    models: tuple[ModelRun, ...]
    gaps: tuple[Gap, ...]
    is_whole: bool

    def summaries(self) -> Iterable[Summary]:
        yield from (run.summary for run in self.kernels)
        yield from self.model_summaries()

    def model_summaries(self) -> Iterable[Summary]:
        for level in LEVELS:
            yield from (run.summary(level) for run in self.models)

    def outcomes(self) -> Iterable[Record | ModelRecord]:
        for kernel in self.kernels:
            yield from kernel.records
        for model in self.models:
            yield from model.records

    @property
    def not_run(self) -> tuple[str, ...]:
        """Kernels and models of which no case ran: nothing is known of them."""
        return tuple(f"{s.name} {s.variant}" for s in self.summaries() if not s.num_run)

    @property
    def num_run(self) -> int:
        return sum(s.num_run for s in self.summaries())

    @property
    def num_failed(self) -> int:
        return sum(s.num_failed for s in self.summaries())

    @property
    def has_passed(self) -> bool:
        return self.num_run > 0 and not self.num_failed and not self.gaps
