"""Selections as rows that people and programs read: every site, its kernel, and why no other.

One form serves the command line, Python, HTTP, error texts and the tables of the docs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from hal.evidence.rows import Evidence
from hal.problem import describe
from hal.select import OPS, Kernel, Level, Regime, Rejection, Selection, Selector

EvidenceOf = Callable[[str, str, Kernel], Evidence]
"""(arch, op, kernel) -> what is shown, as `hal.evidence.evidence_of` has it."""

_REFERENCE_COST = "the specification in plain torch: right, not fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """One site. `num_uses` places of the model share it; `cost` is empty where it runs native.

    evidence: a level; proof: what compiled or ran the kernel for that, and when; "" of `reference`
    """

    op: str
    problem: str
    num_uses: int
    kernel: str
    level: Level
    cost: str
    evidence: str
    proof: str
    regimes: tuple[Regime, ...]
    reason: str
    rejected: tuple[Rejection, ...]

    def as_json(self) -> dict[str, object]:
        return {
            **asdict(self),
            "regimes": [asdict(regime) for regime in self.regimes],
            "rejected": [{**asdict(r), "flag": r.flag(self.op)} for r in self.rejected],
        }

    def lines(self) -> Iterator[str]:
        """The site in words: two columns of indent more for what belongs to a line above."""
        uses = f"  ({self.num_uses} x)" if self.num_uses > 1 else ""
        shape = f": {self.problem}" if self.problem else ""
        yield f"{self.op}{shape}{uses}"
        cost = f"; {self.cost}" if self.cost else ""
        shown = f"{self.evidence}, {self.proof}" if self.proof else self.evidence
        yield f"  runs {self.kernel} [{self.level}, evidence: {shown}]: {self.reason}{cost}"
        if len(self.regimes) > 1:
            yield from (f"    {regime}" for regime in self.regimes)
        yield from (f"  {rejection.line(self.op)}" for rejection in self.rejected)


def site_reports(selector: Selector, evidence_of: EvidenceOf) -> tuple[SiteReport, ...]:
    """Every site that was selected so far, in order."""
    arch = selector.caps.arch
    return tuple(
        site_report(s, evidence_of(arch, s.op, s.kernel), selector.num_uses(s), selector)
        for s in selector.report()
    )


def level_counts(sites: Sequence[SiteReport]) -> dict[str, int]:
    """How many sites run on which level."""
    return {str(level): sum(site.level is level for site in sites) for level in Level}


def emulation_ledger(sites: Sequence[SiteReport]) -> tuple[str, ...]:
    """Each kernel that is not native, said once with what it costs."""
    lines = (
        f"{site.op} runs {site.kernel} ({site.level}): {site.cost}"
        for site in sites
        if site.level is not Level.NATIVE
    )
    return tuple(dict.fromkeys(lines))


def site_report(
    selection: Selection, evidence: Evidence, num_uses: int = 1, selector: Selector | None = None
) -> SiteReport:
    """One Selection as a row; with its selector, a fallback names the formats that need none."""
    return SiteReport(
        op=selection.op,
        problem=describe(selection.problem),
        num_uses=num_uses,
        kernel=selection.kernel.name,
        level=selection.level,
        cost=_cost(selection, selector),
        evidence=str(evidence.level),
        proof=evidence.proof,
        regimes=selection.kernel.traits.regimes(selection.problem),
        reason=selection.reason,
        rejected=selection.rejected,
    )


def _cost(selection: Selection, selector: Selector | None) -> str:
    if selection.level is Level.NATIVE:
        return ""
    fallback = _REFERENCE_COST if selection.level is Level.REFERENCE else ""
    cost = selection.kernel.traits.cost or fallback
    if selector is None:
        return cost
    op = OPS[selection.op]
    formats = selector.running_formats(op, selection.problem, natively=True)
    return f"{cost}; native here: --quantization {', '.join(formats)}" if formats else cost
