"""Run one kernel on one case on one device, and say how far it was from the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hal.conformance.case import Case, Check
from hal.conformance.stage import Stage
from hal.device import Device
from hal.select import Kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run showed: skipped for a reason, ended by an error, or as `checks` tell.

    missing: why a run that is required could not be made; that is no pass
    """

    case: str
    skipped: str = ""
    missing: str = ""
    raised: str = ""
    checks: tuple[Check, ...] = ()

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if not c.is_ok)

    @property
    def has_passed(self) -> bool:
        return bool(self.checks) and not self.failures and not self.raised

    @property
    def has_failed(self) -> bool:
        """Ran, and did not pass: a run without a single check shows nothing."""
        return not (self.has_passed or self.skipped or self.missing)

    @property
    def worst(self) -> Check | None:
        """The check that uses most of its limit, or exceeds it most."""
        return max(self.checks, key=lambda c: c.ratio, default=None)

    @property
    def verdict(self) -> str:
        if self.has_passed:
            return "passed"
        return "skipped" if self.skipped else "missing" if self.missing else "failed"

    @property
    def detail(self) -> str:
        """The reason of everything but a pass."""
        return self.skipped or self.missing or self.raised or "; ".join(map(str, self.failures))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Outcome):
    """One kernel on one case."""

    op: str
    kernel: str

    @property
    def worst_error(self) -> float:
        """The largest error of a check that has room for one."""
        return max((c.error for c in self.checks if c.limit > 0), default=0.0)

    def __str__(self) -> str:
        return f"{self.op} {self.kernel} {self.case}: {self.verdict}, {self.detail}".rstrip(", ")


@dataclass(frozen=True, slots=True)
class Ran:
    """The checks that were reached, and what ended the run early."""

    checks: tuple[Check, ...]
    raised: str = ""


def run_checks(start: Callable[[], Iterable[Check]]) -> Ran:
    """Make every check; what a kernel raises is a result like any other."""
    checks: list[Check] = []
    try:
        checks.extend(start())
    except Exception as error:  # noqa: BLE001  # foreign kernels raise what they like
        return Ran(tuple(checks), f"raised {type(error).__name__}: {error}")
    return Ran(tuple(checks))


def conform(kernel: Kernel, case: Case, device: Device) -> Record:
    """Run `case`; a kernel that cannot run it is skipped with its own reason."""
    assert kernel.op == case.op, f"{kernel.op} kernel, {case.op} case"
    caps = device.capabilities
    reason = kernel.traits.rejects(caps, case.problem) or kernel.traits.unavailable()
    if reason is not None:
        return Record(op=case.op, kernel=kernel.name, case=case.label, skipped=reason)
    ran = run_checks(lambda: case.run(kernel, Stage(device, case.seed)))
    return Record(
        op=case.op, kernel=kernel.name, case=case.label, raised=ran.raised, checks=ran.checks
    )
