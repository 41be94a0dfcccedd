"""What `hal-info conform` found, as data that can be attached to a bug report."""

from __future__ import annotations

import math
import subprocess
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import hal
from hal.cli.installation import Version, installed_versions
from hal.conform.run import ConformRequest, Say, conform_device
from hal.conformance.case import Check
from hal.conformance.report import LEVELS, KernelRun, ModelRun, Results, Summary, Worst
from hal.conformance.run import Outcome
from hal.device import Capabilities
from hal.devices import open_device
from hal.evidence.source import kernel_source
from hal.report import JsonValue, capabilities_as_json

SCHEMA_VERSION = 1
_GIT_TIMEOUT_S = 5.0

JsonObject = dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformReport:
    """One run on one device. commit: "" where the code is no git checkout."""

    spec: str
    reason: str
    capabilities: Capabilities
    request: ConformRequest
    results: Results
    seconds: float
    day: str
    versions: tuple[Version, ...]
    commit: str

    def as_json(self) -> JsonObject:
        results = self.results
        return {
            "schema": SCHEMA_VERSION,
            "report": "conform",
            "passed": results.has_passed,
            "whole": results.is_whole,
            "date": self.day,
            "seconds": round(self.seconds, 1),
            "hal": hal.__version__,
            "commit": self.commit or None,
            "versions": {v.name: v.version for v in self.versions},
            "device": {
                "device": self.spec,
                "reason": self.reason,
                "capabilities": capabilities_as_json(self.capabilities),
            },
            "selected": {
                "ops": list(self.request.ops),
                "kernels": list(self.request.kernels),
                "quick": self.request.is_quick,
                "seeds": self.request.num_seeds,
            },
            "missing": [{"what": gap.what, "reason": gap.reason} for gap in results.gaps],
            "not_run": list(results.not_run),
            "kernels": [_kernel_as_json(run) for run in results.kernels],
            "models": [_model_as_json(run) for run in results.models],
        }


def collect(device_name: str, request: ConformRequest, say: Say) -> ConformReport:
    """Open the device and run; `say` is told what runs now.

    Raises ConfigError and DeviceUnavailable; a failing check does not raise.
    """
    opened = open_device(device_name)
    start = time.monotonic()
    results = conform_device(opened.device, request, say)
    return ConformReport(
        spec=opened.spec,
        reason=opened.reason,
        capabilities=opened.device.capabilities,
        request=request,
        results=results,
        seconds=time.monotonic() - start,
        day=date.today().isoformat(),
        versions=installed_versions(),
        commit=checkout_commit(Path(__file__).resolve()),
    )


def checkout_commit(file: Path) -> str:
    """The commit of the checkout that tracks `file`, with -dirty; "" where none does.

    An installed package may lie inside a checkout of something else, which does not track it.
    """
    is_tracked = _git(file, "ls-files", "--error-unmatch", file.name)
    return _git(file, "describe", "--always", "--dirty", "--abbrev=12") if is_tracked else ""


def _git(file: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=file.parent,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _claim(trait: object) -> bool | str:
    """What a kernel states of itself; a function has no one answer."""
    if isinstance(trait, bool):
        return trait
    return "depends on the problem" if callable(trait) else str(trait)


def _kernel_as_json(run: KernelRun) -> JsonObject:
    source = kernel_source(run.kernel)
    return {
        "op": run.kernel.op,
        "kernel": run.kernel.name,
        "level": _claim(run.kernel.traits.level),
        "batch_invariant": _claim(run.kernel.traits.batch_invariant),
        "source_hash": None if source is None else source.hash,
        "compiler": None if source is None else source.compiler,
        **_summary_as_json(run.summary),
        "records": [outcome_as_json(record) for record in run.records],
    }


def _model_as_json(run: ModelRun) -> JsonObject:
    return {
        "model": run.model,
        "dtype": run.dtype,
        "kernels": run.kernels,
        "levels": {level: _summary_as_json(run.summary(level)) for level in LEVELS},
        "records": [{"level": r.level, **outcome_as_json(r)} for r in run.records],
    }


def _summary_as_json(summary: Summary) -> JsonObject:
    return {
        "num_passed": summary.num_passed,
        "num_failed": summary.num_failed,
        "num_skipped": summary.num_skipped,
        "num_missing": summary.num_missing,
        "worst": None if summary.worst is None else _worst_as_json(summary.worst),
        "reasons": list(summary.reasons),
    }


def _worst_as_json(worst: Worst) -> JsonObject:
    return {"case": worst.case, **_check_as_json(worst.check)}


def outcome_as_json(outcome: Outcome) -> JsonObject:
    """One case: what came of it, and the check that used most of its limit."""
    worst = outcome.worst
    return {
        "case": outcome.case,
        "verdict": outcome.verdict,
        "detail": outcome.detail,
        "num_checks": len(outcome.checks),
        "worst": None if worst is None else _check_as_json(worst),
    }


def _check_as_json(check: Check) -> JsonObject:
    return {
        "quantity": check.quantity,
        "error": _number(check.error),
        "limit": check.limit,
        "ratio": _number(check.ratio),
    }


def _number(value: float) -> float | str:
    """JSON knows neither infinity nor NaN: "inf" and "nan"."""
    return float(value) if math.isfinite(value) else str(value)
