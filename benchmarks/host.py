"""What scheduling and block management cost on one core, without any model.

    PYTHONPATH=.pkg python benchmarks/host.py
    PYTHONPATH=.pkg python benchmarks/host.py --only steps --nano-vllm ~/nano-vllm

CPU time of the one thread, so that a busy machine counts less; arms of a ratio take turns.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import host_blocks
import host_pool
import host_steps
import record
from host_steps import CASES, EngineSteps, NanoSteps, OurSteps, step_us

from hal.cache_policy import POLICY_NAMES


@dataclass(frozen=True, slots=True)
class Row:
    """One measure; `reason` says why it has no value."""

    measure: str
    case: str
    unit: str
    value: record.Spread | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """largest_*: sizes at which the measures end, for a quick look."""

    rounds: int
    largest_seqs: int
    largest_blocks: int
    nano_vllm: Path | None


def repeated(rounds: int, measure: Callable[[], float]) -> record.Spread:
    return record.spread([measure() for _ in range(rounds)])


def steps(options: Options) -> Iterator[Row]:
    """Scheduler and block manager per running sequence, arrays out."""
    unit = "us per sequence and step"
    best: dict[int, float] = {}
    for num_seqs in (1, 64, 1000, 10_000, 100_000):
        if num_seqs > options.largest_seqs:
            continue
        (found,) = step_us([OurSteps(num_seqs).step], num_seqs, options.rounds)
        best[num_seqs] = min(found)
        yield Row("schedule+update", f"{num_seqs} sequences", unit, record.spread(found))
    if options.largest_seqs >= 10_000:
        largest = max(best)
        slope = 1 + math.log(best[largest] / best[1000]) / math.log(largest / 1000)
        case = f"1000 to {largest} sequences"
        yield Row("log-log slope", case, "", record.spread([slope]))
    for name, params in CASES.items():
        for num_seqs in (64, 1024):
            (found,) = step_us([EngineSteps(num_seqs, params).step], num_seqs, options.rounds)
            case = f"{name}, {num_seqs} sequences"
            yield Row("engine step, with an Output per token", case, unit, record.spread(found))


def nano(options: Options) -> Iterator[Row]:
    """The same against nano-vllm's scheduler in this process."""
    if options.nano_vllm is None:
        yield Row("against nano-vllm", "", "", None, "skipped: no --nano-vllm PATH to a checkout")
        return
    for num_seqs in (1000, 10_000):
        if num_seqs > options.largest_seqs:
            continue
        try:
            peer = NanoSteps(num_seqs, options.nano_vllm)
        except (ImportError, FileNotFoundError) as error:
            yield Row("against nano-vllm", "", "", None, f"skipped: {error}")
            return
        arms = [OurSteps(num_seqs).step, peer.step]
        ours, theirs = step_us(arms, num_seqs, options.rounds)
        case = f"{num_seqs} sequences"
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        yield Row("nano-vllm", case, "us per sequence and step", record.spread(theirs))
        yield Row("times as fast as nano-vllm", case, "", record.spread(ratios))


def blocks(options: Options) -> Iterator[Row]:
    for num_blocks in host_blocks.sizes(options.largest_blocks):
        found = [host_blocks.block_ns(num_blocks) for _ in range(options.rounds)]
        for name in found[0]:
            values = record.spread([costs[name] for costs in found])
            yield Row(name, f"{num_blocks} blocks", "ns per block", values)


def cache(options: Options) -> Iterator[Row]:
    size = options.largest_blocks
    manager, tokens = host_blocks.cached_manager(size)
    for prompt_blocks in host_blocks.PROMPT_BLOCKS:
        measure = partial(host_blocks.match_ns, manager, tokens, prompt_blocks)
        case = f"prompts of {prompt_blocks} blocks, {size} in the table"
        values = repeated(options.rounds, measure)
        yield Row("prefix hash + match", case, "ns per cached token", values)
    for name in POLICY_NAMES:
        measure = partial(host_blocks.eviction_ns, size, name, size // 4)
        values = repeated(min(options.rounds, 3), measure)
        yield Row("eviction", f"{name}, {size} cached blocks", "ns per victim", values)
    values = record.spread([host_blocks.metadata_bytes(min(size, 262_144))])
    yield Row("metadata", "all blocks cached", "bytes per block", values)


def pool(options: Options) -> Iterator[Row]:
    values = record.spread([host_pool.occupancy(1000)])
    yield Row("live slots of allocated", "ShareGPT-like, block 16", "share", values)
    found = host_pool.overcommit(1000, 64)
    case = f"2 x, {found.num_preemptions} preemptions"
    yield Row("throughput at overcommit", case, "of that without", record.spread([found.ratio]))
    num_seqs = min(1000, options.largest_seqs)
    arms = [OurSteps(num_seqs, prefix_caching=on).step for on in (True, False)]
    cached, plain = step_us(arms, num_seqs, 2 * options.rounds)
    costs = host_pool.measured_costs()
    device_us = costs.fixed_s / num_seqs * 1e6 + costs.token_s * 1e6
    extra = [on - off for on, off in zip(cached, plain, strict=True)]
    case = f"0 % hits, {num_seqs} sequences"
    yield Row("prefix cache", case, "us more per sequence and step", record.spread(extra))
    taxes = [100 * us / (device_us + off) for us, off in zip(extra, plain, strict=True)]
    yield Row("prefix cache tax", f"{case}, CPU step costs", "% of a step", record.spread(taxes))


MEASURES = {"steps": steps, "nano": nano, "blocks": blocks, "cache": cache, "pool": pool}


def line(row: Row) -> str:
    name = f"{row.measure}, {row.case}" if row.case else row.measure
    if row.value is None:
        return f"{name}: {row.reason}\n"
    value = row.value
    spread = f" ({value.lowest:g} to {value.highest:g})" if value.runs > 1 else ""
    return f"{name}: {value.median:g} {row.unit}{spread}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=MEASURES, action="append", help="may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--largest-seqs", type=int, default=100_000)
    parser.add_argument("--largest-blocks", type=int, default=1_024_000)
    parser.add_argument("--nano-vllm", type=Path, metavar="PATH", help="a checkout to compare with")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "host.json")
    given = parser.parse_args()
    options = Options(
        rounds=given.rounds,
        largest_seqs=given.largest_seqs,
        largest_blocks=given.largest_blocks,
        nano_vllm=given.nano_vllm,
    )
    report = record.header("host")
    rows = []
    for name in given.only or MEASURES:
        for row in MEASURES[name](options):
            rows.append(asdict(row))
            sys.stdout.write(line(row))
            sys.stdout.flush()
    report["block_size"] = host_steps.BLOCK_SIZE
    record.write(given.out, {**report, "rows": rows})


if __name__ == "__main__":
    main()
