"""A proof for people: one row a device, then what is to be said about differences."""

from __future__ import annotations

from collections.abc import Iterator

from hal.cli.info.columns import wrapped
from hal.cli.info.proof import Comparison, Divergence, Proof, SiteDifference, Verdict
from hal.cli.info.prove_run import RunFacts
from hal.memory import format_bytes


def render(proof: Proof) -> str:
    """Table and notes."""
    return "\n".join((*_table(proof), "", *_notes(proof)))


def cause(proof: Proof) -> str:
    """The first device that differs or failed, in one line."""
    bad = next(c for c in proof.comparisons if c.verdict in (Verdict.DIFFER, Verdict.FAILED))
    if bad.verdict is Verdict.FAILED:
        return f"{bad.spec} failed: {bad.reason}"
    reference = proof.runs[0].spec
    details = (
        [_site_text(bad.first_site, "first site beyond its limit: ")] if bad.first_site else []
    )
    details += [_divergence_text(d) for d in bad.divergences[:1]]
    return f"{bad.spec} differs from {reference}: {'; '.join(details)}"


def _table(proof: Proof) -> Iterator[str]:
    by_spec = {c.spec: c for c in proof.comparisons}
    yield (
        f"{'device':<20} {'dtype':<9} {'equal tokens':>13} {'weights':>11} {'KV cache':>11} "
        f"{'tokens/s':>9}  verdict"
    )
    for run in proof.runs:
        comparison = by_spec.get(run.spec)
        verdict = "standard" if comparison is None else str(comparison.verdict)
        yield f"{_run_columns(run, comparison)}  {verdict}"
    for comparison in proof.comparisons:
        if comparison.verdict is Verdict.FAILED:
            yield f"{comparison.spec:<20} {'':<57}  {comparison.verdict}"


def _run_columns(run: RunFacts, comparison: Comparison | None) -> str:
    equal = "" if comparison is None else f"{comparison.num_equal}/{comparison.num_tokens}"
    rate = sum(map(len, run.answers)) / run.seconds
    return (
        f"{run.spec:<20} {run.dtype:<9} {equal:>13} {format_bytes(run.weights_bytes):>11} "
        f"{format_bytes(run.kv_bytes):>11} {rate:>9.1f}"
    )


def _notes(proof: Proof) -> Iterator[str]:
    for run in proof.runs:
        levels = ", ".join(f"{count} {level}" for level, count in run.levels.items())
        yield wrapped(
            f"{run.spec}: {run.name}, {run.arch}; sites: {levels}; "
            f"{format_bytes(run.allocated_bytes)} allocated"
        )
    for comparison in proof.comparisons:
        for line in _comparison_lines(comparison):
            yield wrapped(f"{comparison.spec}: {line}")
    lengths = ", ".join(str(len(prompt)) for prompt in proof.prompts)
    yield wrapped(
        f"{len(proof.prompts)} prompts of {lengths} tokens, greedy. Rates are of one run in one "
        "batch and no benchmark."
    )


def _comparison_lines(comparison: Comparison) -> Iterator[str]:
    if comparison.reason:
        yield comparison.reason
    yield from (_divergence_text(divergence) for divergence in comparison.divergences)
    if comparison.first_site is not None:
        yield _site_text(comparison.first_site, "first site beyond its limit: ")
    elif comparison.worst_site is not None:
        yield _site_text(comparison.worst_site, "every site is within its limit; the nearest: ")


def _divergence_text(d: Divergence) -> str:
    bound = "at least " if d.is_bound else ""
    return (
        f"prompt {d.prompt}: token {d.token} is {d.actual}, expected {d.expected}, "
        f"{bound}{d.regret:.3g} nats likelier (the margin to the second was {d.margin:.3g})"
    )


def _site_text(site: SiteDifference, what: str) -> str:
    return f"{what}{site.site}, relative difference {site.error:.2g}, limit {site.limit:.2g}"
