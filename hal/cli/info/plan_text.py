"""The plan for people: a ledger with a bar, what else fits, rates that are upper bounds."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from hal.memory import format_bytes, memory_budget
from hal.planning.compare import Comparison, Row
from hal.planning.report import Part, PlanReport
from hal.planning.roofline import Rate
from hal.planning.sizing import Basis

_WIDTH = 100
_BAR_WIDTH = 90
_VALUE_COLUMN = 56
_OPTIONAL = ("others", "left alone", "not used")  # not shown where they are nothing
_FILLS = {
    "weights": "█",
    "KV cache": "▓",
    "activations": "▒",
    "logits": "▒",
    "graphs": "▒",
    "communicator": "▒",
    "bookkeeping": "▒",
    "not used": "░",
    "left alone": "·",
    "others": "x",
}
_BASIS = {
    Basis.ENGINE: "engine: summed as start-up sums, from the kernels chosen for this device",
    Basis.CONFIG: "config: shapes derived from config.json",
}


def render(report: PlanReport) -> str:
    """At most 100 columns."""
    blocks = [
        _head(report),
        _ledger(report),
        _capacity(report),
        _rates(report),
        _notes(report.notes),
        _remedies(report),
    ]
    return "\n\n".join("\n".join(lines) for lines in map(list, blocks) if lines)


def render_comparison(comparison: Comparison) -> str:
    """A table with a row for each device, then why the others do not fit."""
    header = ("device", "fits", "weights", "KV a token", "full", "typical", "longest", "decode <=")
    table = [header, *(_cells(row) for row in comparison.rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    lines = [_title(comparison)]
    lines += ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in table]
    lines = [line.rstrip() for line in lines]
    reasons = [line for row in comparison.rows if not row.fits for line in _reason(row)]
    legend = (
        "bytes are of one device; full, typical: sequences that fit at once; longest: ctx of one; "
        "decode: upper bound in tokens/s, all sequences together"
    )
    return "\n".join([*lines, "", *_wrapped(legend, ""), *([""] if reasons else []), *reasons])


def bar(parts: Sequence[Part], width: int = _BAR_WIDTH) -> str:
    """`width` columns shared by bytes; a part of less than a column may have none."""
    total = sum(part.num_bytes for part in parts)
    drawn, end = "", 0
    for part in parts:
        end += part.num_bytes
        drawn += _FILLS[part.name] * (round(width * end / total) - len(drawn))
    return drawn


def _marker(report: PlanReport) -> str:
    """An arrow under the bar, where what --memory gives ends."""
    total = sum(part.num_bytes for part in report.parts())
    column = round(_BAR_WIDTH * memory_budget(report.inputs) / total)
    text = f"--memory {report.inputs.request}"
    if column > _BAR_WIDTH // 2:
        return f"{text} ^".rjust(column)
    return f"{'^':>{column}} {text}"


def _head(report: PlanReport) -> Iterator[str]:
    model, shape, resolved = report.model, report.model.shape, report.sized.resolved
    verdict = "fits" if report.fits else "DOES NOT FIT"
    used, share = report.parallel.used, "ranks on" if report.is_host else "x"
    count = f"{used} {share} " if used > 1 else ""
    yield f"{model.name} on {count}{report.device.capabilities.name}: {verdict}"
    stored = f", {model.stored.name} in the checkpoint" if model.stored else ""
    active = shape.active_parameters
    is_sparse = report.sized.pools and active < 0.7 * shape.num_parameters
    share = "" if not is_sparse else f" ({_count(active)} a token)"
    name = shape.architecture or shape.model_type
    yield f"  {name}, {_count(shape.num_parameters)} parameters{share}{stored}, {resolved.dtype}"
    concurrency = report.settings.concurrency
    wanted = "one sequence" if concurrency is None else f"{concurrency} sequences at once"
    yield f"  asked: {wanted} of {resolved.max_model_len} tokens; typical {report.typical}"
    yield from _wrapped(report.device.reason, "")
    yield f"  {_BASIS[report.basis]}"


def _ledger(report: PlanReport) -> Iterator[str]:
    memory, parts = report.inputs.memory, report.parts()
    used = report.parallel.used
    each = f"each of {used} ranks" if used > 1 else "the device"
    yield f"memory of {each}: {format_bytes(memory.total_bytes)} {memory.kind}"
    yield f"  {bar(parts)}"
    if not report.fits:
        yield f"  {_marker(report)}"
    for part in parts:
        if part.num_bytes or part.name not in _OPTIONAL:
            share = 100 * part.num_bytes / max(1, memory.total_bytes)
            fill = _FILLS[part.name]
            yield f"  {fill} {part.name:<13}{format_bytes(part.num_bytes):>12}{share:>7.1f} %"
    needed, budget = report.inputs.needed_bytes, memory_budget(report.inputs)
    gives = f"--memory {report.inputs.request} gives {format_bytes(budget)}"
    yield f"  needed {format_bytes(needed)}, {gives}"


def _capacity(report: PlanReport) -> Iterator[str]:
    capacity, settings = report.capacity, report.settings
    length = report.sized.resolved.max_model_len
    if not report.sized.pools:
        yield "nothing is remembered between steps: no limit on sequences"
    else:
        per_token = report.inputs.kv_bytes_per_block / report.inputs.block_size
        yield f"KV cache: {format_bytes(round(per_token))} a token"
        yield _line(f"most sequences of {length} tokens at once", capacity.sequences_full)
        yield _line(
            f"most sequences of {report.typical} tokens at once", capacity.sequences_typical
        )
        if settings.concurrency and settings.concurrency > 1:
            yield _line(f"longest ctx for {settings.concurrency} at once", capacity.longest_ctx)
        yield _line("longest ctx for one", _with_limit(report))
    yield from _parallel(report)


def _line(what: str, value: object) -> str:
    return f"  {what:<{_VALUE_COLUMN}}{value}"


def _with_limit(report: PlanReport) -> str:
    longest = report.capacity.longest_ctx_one
    limit = report.model.shape.max_position_embeddings
    return f"{longest} (the model's limit)" if longest == limit else str(longest)


def _parallel(report: PlanReport) -> Iterator[str]:
    parallel = report.parallel
    if len(parallel.legal) == 1:
        return
    legal = ", ".join(str(tp) for tp in parallel.legal)
    name = "ranks" if report.is_host else report.device.name
    if parallel.smallest is None:
        yield f"  no number of {name} fits (legal: {legal})"
    else:
        link = report.device.link_between(parallel.smallest)
        links = () if report.device.profile is None else report.device.profile.links
        most = max((known.max_devices for known in links), default=1)
        apart = parallel.smallest > 1 and link is None
        beyond = f" (only {most} share a link)" if apart else ""
        fewest = f"fewest {name} that fit (legal: {legal})"
        yield _line(fewest, parallel.smallest) + beyond
    for reason in parallel.reasons:
        yield f"    {reason}"


def _rates(report: PlanReport) -> Iterator[str]:
    if not report.rates:
        return
    yield "UPPER BOUNDS of the rates, from published peaks with nothing else to do; runs are slower"
    for rate in report.rates:
        yield f"  {_rate(rate)}"


def _rate(rate: Rate) -> str:
    if rate.what == "prefill":
        what = f"prefill, prompts of {rate.num_tokens} tokens"
    else:
        plural = "sequence" if rate.num_seqs == 1 else "sequences"
        what = f"decode, {rate.num_seqs} {plural} of {rate.num_tokens} tokens"
    return f"{what:<48}<= {_rounded(rate.tokens_per_s):>9} tokens/s, bound by {rate.bound}"


def _notes(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        yield "notes"
    for note in notes:
        yield from _wrapped(note, "- ")


def _remedies(report: PlanReport) -> Iterator[str]:
    if report.fits:
        return
    yield "to make it fit, any one of" if report.remedies else "nothing known makes it fit"
    for remedy in report.remedies:
        yield f"  - {remedy.text}"


def _wrapped(text: str, bullet: str) -> list[str]:
    first = f"  {bullet}"
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first))


def _title(comparison: Comparison) -> str:
    shape, settings = comparison.model.shape, comparison.settings
    length = settings.ctx or shape.max_position_embeddings
    count = settings.concurrency or 1
    return f"{comparison.model.name}, {_count(shape.num_parameters)} parameters: {count} x {length}"


def _cells(row: Row) -> tuple[str, ...]:
    report = row.report
    if report is None:
        return (row.device, "no", *("-" for _ in range(6)))
    decode = [rate for rate in report.rates if rate.what == "decode"]
    best = max(decode, key=lambda rate: rate.num_seqs, default=None)
    per_token = report.inputs.kv_bytes_per_block / report.inputs.block_size
    return (
        row.device,
        "yes" if report.fits else "no",
        format_bytes(report.inputs.weights_bytes),
        format_bytes(round(per_token)),
        str(report.capacity.sequences_full),
        str(report.capacity.sequences_typical),
        str(report.capacity.longest_ctx_one),
        "-" if best is None else f"{_rounded(best.tokens_per_s)} ({best.num_seqs}x)",
    )


def _reason(row: Row) -> list[str]:
    error = row.error if row.report is None else row.report.error
    assert error is not None, "only rows that do not fit are asked"
    return _wrapped(f"{row.device}: {error}", "")


def _count(number: int) -> str:
    """1.24 B, 71 M."""
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _rounded(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
