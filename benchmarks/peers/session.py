"""One weight format at a time: all its arms loaded, every case in interleaved rounds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from peers import quality, report
from peers.cases import Case, Work, requests
from peers.checkpoint import Geometry, read_geometry
from peers.child import ArmFailure, Child, Run
from peers.protocol import Document, Facts, Settings

WARM_UP_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asked for."""

    arms: tuple[str, ...]
    cases: tuple[Case, ...]
    weights: tuple[str, ...]
    shape: str
    pairs: int
    threads: int
    timeout_s: float
    cache: Path
    measures_perplexity: bool
    kv: str = "auto"

    def settings(self, folder: Path, weights: str) -> Settings:
        return Settings(
            folder=folder,
            weights=weights,
            threads=self.threads,
            max_len=max(case.max_len for case in self.cases),
            max_num_seqs=max(case.num_requests for case in self.cases),
            cache=self.cache,
            kv=self.kv,
        )


@dataclass(slots=True)
class Loaded:
    """An arm that runs."""

    child: Child
    facts: Facts


class Session:
    """Collects rows; an arm that fails gets its reason in every later row."""

    def __init__(self, plan: Plan, folder: Path, read_gb_s: float | None) -> None:
        self._plan, self._folder, self._read_gb_s = plan, folder, read_gb_s
        self._geometry: Geometry = read_geometry(folder)
        self._documents: list[Document] = quality.held_out() if plan.measures_perplexity else []
        self.rows: list[report.Row] = []
        self.arm_rows: list[report.ArmRow] = []

    def run(self) -> None:
        for weights in self._plan.weights:
            with ExitStack() as stack:
                self._run_format(weights, stack)

    def _run_format(self, weights: str, stack: ExitStack) -> None:
        settings = self._plan.settings(self._folder, weights)
        arms: dict[str, Loaded] = {}
        reasons: dict[str, str] = {}
        for arm in self._plan.arms:
            row = report.ArmRow(weights, arm)
            _say(f"{weights} {arm}: loading")
            try:
                arms[arm] = self._load(arm, settings, stack)
                row = replace(row, facts=arms[arm].facts)
                row = self._with_perplexity(row, settings)
            except ArmFailure as failure:
                reasons[arm] = str(failure)
                row = replace(row, reason=str(failure))
            self.arm_rows.append(row)
        for case in self._plan.cases:
            self._run_case(case, weights, arms, reasons)

    def _load(self, arm: str, settings: Settings, stack: ExitStack) -> Loaded:
        child = stack.enter_context(Child(arm, settings, self._plan.timeout_s))
        return Loaded(child, child.load(settings))

    def _with_perplexity(self, row: report.ArmRow, settings: Settings) -> report.ArmRow:
        """Of the embedded model in this arm's format: random weights have none worth printing."""
        if not self._documents:
            return row
        tiny = replace(settings, folder=quality.TINY, max_num_seqs=16)
        tiny = replace(tiny, max_len=read_geometry(quality.TINY).max_len)
        try:
            with Child(row.arm, tiny, self._plan.timeout_s) as child:
                child.load(tiny)
                total = child.log_likelihood(self._documents)
        except ArmFailure as failure:
            return replace(row, perplexity_problem=str(failure))
        value = report.perplexity(total, quality.num_scored(self._documents))
        return replace(row, perplexity=value)

    def _run_case(
        self, case: Case, weights: str, arms: dict[str, Loaded], reasons: dict[str, str]
    ) -> None:
        work = requests(case, self._geometry.vocab_size)
        runs = self._rounds(case, work, arms, reasons)
        for arm in self._plan.arms:
            if not runs.get(arm):
                row = report.Row(case.name, weights, arm, reason=reasons[arm])
            else:
                reading = self._reading(arms[arm].facts)
                row = report.measured_row(case, weights, arm, runs, reading)
            self.rows.append(row)

    def _reading(self, facts: Facts) -> report.Reading:
        kv_bytes = self._geometry.kv_bytes(facts.kv_bits)
        return report.Reading(facts.weight_bytes, kv_bytes, self._read_gb_s)

    def _rounds(
        self, case: Case, work: list[Work], arms: dict[str, Loaded], reasons: dict[str, str]
    ) -> dict[str, list[Run]]:
        """Every arm once a round, in turned order every other round."""
        runs: dict[str, list[Run]] = {arm: [] for arm in arms}
        for number in range(-1, self._plan.pairs):
            order = list(arms) if number % 2 == 0 else list(arms)[::-1]
            for arm in order:
                if arm in reasons:
                    continue
                try:
                    if number < 0:
                        arms[arm].child.prepare(case)
                        arms[arm].child.run(warm_up(work))
                        continue
                    runs[arm].append(arms[arm].child.run(work))
                    _say(f"{case.name} {arm}: {report.rate_of(case, runs[arm][-1]):.1f} tok/s")
                except ArmFailure as failure:
                    reasons[arm] = f"{case.name}: {failure}"
                    runs[arm] = []
                    _say(f"{case.name} {arm}: {failure}")
        return runs


def warm_up(work: Sequence[Work]) -> list[Work]:
    """The same prompts with few tokens: what compiles for a shape has done so."""
    return [replace(w, num_output=min(w.num_output, WARM_UP_TOKENS)) for w in work]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
