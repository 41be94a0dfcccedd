"""Prints one row per JUnit XML file in a folder; optionally writes the same rows as JSON.

Exits with 1 when the folder holds no report, or a report with a failure or without a test.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """Counts of one pytest run and its time without start-up.

    Errors in set-up and collection count as failed.
    """

    suite: str
    num_passed: int
    num_failed: int
    num_skipped: int
    time_s: float
    failures: tuple[str, ...]
    skip_reasons: tuple[str, ...]

    @property
    def is_ok(self) -> bool:
        return self.num_failed == 0 and self.num_passed + self.num_skipped > 0


def read_report(path: Path) -> SuiteResult:
    """Counts from the test cases themselves; a damaged file raises ParseError."""
    root = ElementTree.parse(path).getroot()
    cases = list(root.iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    reasons = [s.get("message", "") for c in cases for s in c.findall("skipped")]
    return SuiteResult(
        suite=path.stem,
        num_passed=len(cases) - len(failed) - len(reasons),
        num_failed=len(failed),
        num_skipped=len(reasons),
        time_s=round(sum(float(s.get("time", "0")) for s in root.iter("testsuite")), 1),
        failures=tuple(f"{c.get('classname')}::{c.get('name')}" for c in failed),
        skip_reasons=tuple(sorted(set(reasons))),
    )


def table(results: list[SuiteResult]) -> str:
    lines = [f"{'suite':<20}{'passed':>8}{'failed':>8}{'skipped':>9}{'in tests':>10}"]
    for r in results:
        counts = f"{r.num_passed:>8}{r.num_failed:>8}{r.num_skipped:>9}{r.time_s:>8.1f} s"
        lines.append(f"{r.suite:<20}{counts}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with *.xml files written by pytest")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    results = [read_report(path) for path in sorted(args.folder.glob("*.xml"))]
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    for failure in (f for r in results for f in r.failures):
        print(f"FAILED {failure}")
    return 0 if results and all(r.is_ok for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
