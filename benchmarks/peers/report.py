"""Rates, ratios and the table: pure functions of what the runs gave."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import record

from peers.cases import Case, Kind
from peers.child import Run
from peers.environments import OURS
from peers.protocol import Facts

LOADED = 0.25  # cores that others kept busy: beyond it a row is marked


@dataclass(frozen=True, slots=True)
class Row:
    """One arm in one case. Without runs, `reason` says why.

    ratio: our rate over this arm's, round by round; None in our own row
    bytes_per_token: weights and keys and values read for one decoded token; None outside decode
    bound_s: the least that its products take at the measured `bound_peak`, see peers.bound;
    bound_share: that over the median; None outside prefill and mixed cases
    same_tokens: share of requests whose first tokens are ours
    """

    case: str
    weights: str
    arm: str
    reason: str = ""
    seconds: record.Spread | None = None
    tokens_per_s: record.Spread | None = None
    ratio: record.Spread | None = None
    bytes_per_token: float | None = None
    gb_s: float | None = None
    read_share: float | None = None
    bound_peak: str | None = None
    bound_s: float | None = None
    bound_share: float | None = None
    same_tokens: float | None = None
    other_cpu: float | None = None


@dataclass(frozen=True, slots=True)
class ArmRow:
    """What one arm is in one weight format."""

    weights: str
    arm: str
    reason: str = ""
    facts: Facts | None = None
    perplexity: float | None = None
    perplexity_problem: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a decoded token costs to read: of weights once a step, of the KV cache its own.

    ceilings_gb_s: what the memory gave right before each round
    """

    weight_bytes: int
    kv_bytes_per_context_token: int
    ceilings_gb_s: Sequence[float]

    def bytes_per_token(self, case: Case) -> float | None:
        if case.kind is not Kind.DECODE:
            return None
        own = self.kv_bytes_per_context_token * case.mean_context
        return self.weight_bytes / case.num_requests + own

    def shares(self, case: Case, rates: Sequence[float]) -> list[float]:
        """Bytes a second over the ceiling of the same round."""
        read = self.bytes_per_token(case)
        pairs = zip(rates, self.ceilings_gb_s, strict=False)
        return [] if read is None else [read * rate / 1e9 / ceiling for rate, ceiling in pairs]


def seconds_of(case: Case, run: Run) -> float:
    """The part of the run that the case is about."""
    if case.kind is Kind.PREFILL:
        return run.first_s
    return run.total_s - run.first_s if case.kind is Kind.DECODE else run.total_s


def rate_of(case: Case, run: Run) -> float:
    """Tokens a second: prompt tokens for prefill, new ones otherwise."""
    tokens = {
        Kind.DECODE: run.decode_tokens,
        Kind.PREFILL: sum(length.prompt for length in case.lengths),
        Kind.MIXED: sum(length.output for length in case.lengths),
    }[case.kind]
    return tokens / seconds_of(case, run)


def pair_ratios(case: Case, ours: Sequence[Run], theirs: Sequence[Run]) -> list[float]:
    """Above 1: we are faster. Rounds that one arm did not finish are left out."""
    pairs = zip(ours, theirs, strict=False)
    return [rate_of(case, mine) / rate_of(case, other) for mine, other in pairs]


def agreement(ours: Sequence[Run], theirs: Sequence[Run]) -> float | None:
    if not ours or not theirs:
        return None
    pairs = list(zip(ours[0].first_tokens, theirs[0].first_tokens, strict=True))
    return sum(mine == other for mine, other in pairs) / len(pairs)


def measured_row(
    case: Case, weights: str, arm: str, runs: Mapping[str, Sequence[Run]], reading: Reading
) -> Row:
    own, ours = runs[arm], runs.get(OURS, ())
    each = [rate_of(case, run) for run in own]
    rates = record.spread(each)
    read = reading.bytes_per_token(case)
    gb_s = None if read is None else read * rates.median / 1e9
    shares = reading.shares(case, each)
    ratios = [] if arm == OURS else pair_ratios(case, ours, own)
    return Row(
        case=case.name,
        weights=weights,
        arm=arm,
        seconds=record.spread([seconds_of(case, run) for run in own]),
        tokens_per_s=rates,
        ratio=record.spread(ratios) if ratios else None,
        bytes_per_token=read,
        gb_s=gb_s,
        read_share=statistics.median(shares) if shares else None,
        same_tokens=None if arm == OURS else agreement(ours, own),
        other_cpu=statistics.median(run.other_cpu for run in own),
    )


def perplexity(log_likelihood: float, num_tokens: int) -> float:
    return math.exp(-log_likelihood / num_tokens)


def arm_table(rows: Sequence[ArmRow]) -> list[str]:
    """Formats: how much is read, how coarse the logits are, what it costs in quality."""
    lines = [
        f"{'weights':<8} {'arm':<17} {'MB/token':>9} {'logits':>7} {'KV':>5} "
        f"{'perplexity':>11}  engine"
    ]
    for row in rows:
        head = f"{row.weights:<8} {row.arm:<17}"
        if row.facts is None:
            lines.append(f"{head} missing: {row.reason}")
            continue
        facts = row.facts
        quality = "not measured" if row.perplexity is None else f"{row.perplexity:.4f}"
        notes = [facts.engine, facts.note, row.perplexity_problem]
        lines.append(
            f"{head} {facts.weight_bytes / 1e6:9.1f} {_bits(facts.logits_bits):>7} "
            f"{facts.kv_bits:5g} {quality:>11}  {'; '.join(note for note in notes if note)}"
        )
    return lines


def case_table(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"{'case':<13} {'weights':<8} {'arm':<17} {'tok/s':>8} {'(low - high)':>18} "
        f"{'ours/arm':>9} {'(low - high)':>15} {'MB/token':>9} {'GB/s':>6} {'of read':>7} "
        f"{'bound s':>12} {'of bound':>8} {'same':>5} {'others':>7}"
    ]
    return [*lines, *(_line(row) for row in rows)]


def _line(row: Row) -> str:
    head = f"{row.case:<13} {row.weights:<8} {row.arm:<17}"
    if row.tokens_per_s is None:
        return f"{head} missing: {row.reason}"
    rate, ratio = row.tokens_per_s, row.ratio
    read = None if row.bytes_per_token is None else row.bytes_per_token / 1e6
    mark = "!" if row.other_cpu is not None and row.other_cpu > LOADED else ""
    cells = [
        f"{rate.median:8.1f} {_range(rate, 1):>18}",
        f"{_number(ratio.median if ratio else None, 2):>9} {_range(ratio, 2):>15}",
        f"{_number(read, 1):>9} {_number(row.gb_s, 1):>6} {_share(row.read_share):>7}",
        f"{_bound(row):>12} {_share(row.bound_share):>8}",
        f"{_share(row.same_tokens):>5} {_number(row.other_cpu, 2) + mark:>7}",
    ]
    return " ".join([head, *cells])


def _range(spread: record.Spread | None, digits: int) -> str:
    return "" if spread is None else f"({spread.lowest:.{digits}f} - {spread.highest:.{digits}f})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _bound(row: Row) -> str:
    return "-" if row.bound_s is None else f"{row.bound_s:.2f} {row.bound_peak}"


def _bits(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:g}"


def as_json(rows: Sequence[Row | ArmRow]) -> list[dict[str, object]]:
    """NaN, which JSON has no word for, becomes null."""
    return [_clean(asdict(row)) for row in rows]


def _clean(values: dict[str, object]) -> dict[str, object]:
    return {
        key: _clean(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and math.isnan(value)
        else value
        for key, value in values.items()
    }
