"""`hal-info conform` for people: the table, what is missing, the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from hal.cli.info.columns import hanging, section
from hal.cli.info.conform_report import ConformReport
from hal.conformance.report import LEVELS, Summary
from hal.conformance.run import Outcome

_INDENT = " " * 10


def render(report: ConformReport) -> str:
    """Everything but the records of single cases."""
    results = report.results
    sections = [
        section("Device", _device_lines(report)),
        section(HEADING % "Kernels", summary_rows(run.summary for run in results.kernels)),
        *_model_sections(report),
        section("Missing, so not shown", (_wrapped(str(g), "  ") for g in results.gaps)),
        section("Verdict", (_wrapped(line, "  ") for line in _verdict(report))),
    ]
    return "\n\n".join(section for section in sections if section)


def worst_failure(report: ConformReport) -> str:
    """One line: the failure that exceeds its limit most, else what is missing."""
    failed = [outcome for outcome in report.results.outcomes() if outcome.has_failed]
    if failed:
        more = f"; {len(failed) - 1} more failed" if len(failed) > 1 else ""
        return f"{max(failed, key=_excess)}{more}"
    gaps = report.results.gaps
    if gaps:
        more = f"; {len(gaps) - 1} more missing" if len(gaps) > 1 else ""
        return f"not shown: {gaps[0]}{more}"
    return "nothing ran, so nothing was shown"


def _excess(outcome: Outcome) -> float:
    if outcome.raised or outcome.worst is None:
        return math.inf
    return outcome.worst.ratio


HEADING = "%-32s passed failed skipped  of limit  worst case"


def _wrapped(text: str, first: str) -> str:
    return hanging(text, first, _INDENT)


def _device_lines(report: ConformReport) -> Iterator[str]:
    caps = report.capabilities
    yield _wrapped(f"{report.spec}: {caps.name}, {caps.arch} ({caps.vendor})", "  ")
    yield _wrapped(f"chosen because: {report.reason}", "  ")


def summary_rows(summaries: Iterable[Summary]) -> Iterator[str]:
    """A line for each under HEADING, then its first failure and why cases were left out."""
    for summary in summaries:
        ratio, case = "-", ""
        if summary.worst is not None:
            ratio = f"{summary.worst.check.ratio:.2f}"
            case = f"{summary.worst.case}, {summary.worst.check.quantity}"
        yield (
            f"  {summary.name:<17} {summary.variant:<12} {summary.num_passed:>6} "
            f"{summary.num_failed:>6} {summary.num_skipped:>7} {ratio:>9}  {case}"
        ).rstrip()
        if summary.first_failure:
            yield _wrapped(f"failed: {summary.first_failure}", _INDENT)
        for reason in summary.reasons:
            yield _wrapped(f"skipped: {reason}", _INDENT)


def _model_sections(report: ConformReport) -> Iterator[str]:
    """Layers, then whole models; what was skipped is the same for all of them, so said once."""
    summaries = list(report.results.model_summaries())
    for level in LEVELS:
        title = HEADING % f"Tiny models, {'by layer' if level == 'layer' else 'whole'}"
        bare = (replace(s, reasons=()) for s in summaries if s.level == level)
        yield section(title, summary_rows(bare))
    reasons = dict.fromkeys(r for s in summaries for r in s.reasons)
    yield section("Models skipped", (_wrapped(reason, "  ") for reason in reasons))


def _verdict(report: ConformReport) -> Iterator[str]:
    results = report.results
    num_passed = sum(s.num_passed for s in results.summaries())
    words = "passed" if results.has_passed else "NOT PASSED"
    yield (
        f"{words}: {num_passed} cases passed, {results.num_failed} failed, "
        f"{len(results.gaps)} missing, in {report.seconds:.1f} s"
    )
    if results.not_run:
        yield f"ran on no case here, so nothing is known of them: {', '.join(results.not_run)}"
    if not results.is_whole:
        yield f"only a part was asked for: {_part(report)}"


def _part(report: ConformReport) -> str:
    request = report.request
    parts = [
        f"ops {', '.join(request.ops)}" if request.ops else "",
        f"kernels {', '.join(request.kernels)}" if request.kernels else "",
        "--quick" if request.is_quick else "",
    ]
    text = "; ".join(part for part in parts if part)
    return f"{text} (no models)" if request.ops or request.kernels else text
