"""Run one kernel on one case on one device, and say how far it was from the oracle."""

from __future__ import annotations

from dataclasses import dataclass

from hal.conformance.case import Case, Check
from hal.conformance.stage import Stage
from hal.device import Device
from hal.select import Kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one run showed. Either it was skipped for a reason, or `checks` tells."""

    op: str
    kernel: str
    case: str
    skipped: str = ""
    checks: tuple[Check, ...] = ()

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if not c.is_ok)

    @property
    def has_passed(self) -> bool:
        return bool(self.checks) and not self.failures

    @property
    def worst_error(self) -> float:
        """The largest error of a check that has room for one."""
        return max((c.error for c in self.checks if c.limit > 0), default=0.0)

    def __str__(self) -> str:
        where = f"{self.op} {self.kernel} {self.case}"
        if self.skipped:
            return f"{where}: skipped, {self.skipped}"
        return f"{where}: " + ("; ".join(map(str, self.failures)) or "passed")


def conform(kernel: Kernel, case: Case, device: Device) -> Record:
    """Run `case`; a kernel that cannot run it is skipped with its own reason."""
    assert kernel.op == case.op, f"{kernel.op} kernel, {case.op} case"
    caps = device.capabilities
    reason = kernel.traits.rejects(caps, case.problem) or kernel.traits.unavailable()
    if reason is not None:
        return Record(op=case.op, kernel=kernel.name, case=case.label, skipped=reason)
    checks = tuple(case.run(kernel, Stage(device, case.seed)))
    return Record(op=case.op, kernel=kernel.name, case=case.label, checks=checks)
