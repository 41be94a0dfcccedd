"""`hal-info prove MODEL --devices A,B`: do devices agree on the same prompts, and where not?"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hal.cli.arguments import ENGINE_FLAGS, CommandLine, Flag, FlagGroup, engine_config
from hal.config import EngineConfig
from hal.errors import ConfigError, EngineError, HalError, RequestError
from hal.exit_status import exit_words, last_words

if TYPE_CHECKING:
    from hal.cli.info.proof import Comparison, Proof, Run
    from hal.cli.info.prove_run import Job

PROG = "hal-info prove"
EXIT_DIFFERENT = 1
DEFAULT_MAX_TOKENS = 32
# Loading a large model and the reference kernels are slow; a driver that hangs is slower.
DEFAULT_TIMEOUT_S = 3600
# Lengths of the random prompts: one token, less and more than a block, no multiples of anything.
PROMPT_LENGTHS = (1, 7, 23, 61)
_DESCRIPTION = (
    "Runs the same prompts greedily on each device, one after another in processes of their own, "
    "and compares with the first one: tokens, the first difference with its margin, and the output "
    "of every site of every layer on the same text. Exit code 1: a device differs by more than "
    "its element type explains, or failed; 2: a device or the model cannot be used."
)
_FLAGS = FlagGroup(
    "what to compare",
    (
        Flag(
            name="devices",
            help="two or more, e.g. cpu,null:gfx942,cuda; the first is what others are held to",
            metavar="A,B,...",
        ),
        Flag(
            name="prompts", help="text file, a prompt a line; default seeded tokens", convert=Path
        ),
        Flag(
            name="max-tokens",
            help="tokens of each answer",
            metavar="N",
            convert=int,
            default=DEFAULT_MAX_TOKENS,
        ),
        Flag(
            name="timeout",
            help="seconds after which a device that has not answered counts as hung",
            metavar="S",
            convert=int,
            default=DEFAULT_TIMEOUT_S,
        ),
        Flag(name="json", help="print one JSON object instead of a table", convert=None),
    ),
)
_ENGINE = replace(
    ENGINE_FLAGS, flags=tuple(flag for flag in ENGINE_FLAGS.flags if flag.name != "device")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveOptions:
    """What to compare; `config` is that of every device, its device left open."""

    config: EngineConfig
    devices: tuple[str, ...]
    prompts_file: Path | None
    max_tokens: int
    timeout_s: int = DEFAULT_TIMEOUT_S


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the proof; 1 if a device differs or failed."""
    line = CommandLine(PROG, _DESCRIPTION, [_FLAGS, _ENGINE])
    values = line.parse(argv, environ)
    options = _options(values)
    # After parsing, because these import torch.
    from hal.cli.info.proof_text import cause, render

    proof = prove(options)
    print(json.dumps(proof.as_json(), indent=2) if values.get("json") else render(proof))
    if not proof.has_failed:
        return 0
    print(f"{PROG}: {cause(proof)}", file=sys.stderr)
    return EXIT_DIFFERENT


def _options(values: Mapping[str, object]) -> ProveOptions:
    max_tokens = values.get("max_tokens", DEFAULT_MAX_TOKENS)
    assert isinstance(max_tokens, int)
    if max_tokens < 1:
        raise ConfigError(f"--max-tokens must be at least 1; got {max_tokens}")
    timeout_s = values.get("timeout", DEFAULT_TIMEOUT_S)
    assert isinstance(timeout_s, int)
    if timeout_s < 1:
        raise ConfigError(f"--timeout must be at least 1; got {timeout_s}")
    prompts_file = values.get("prompts")
    assert prompts_file is None or isinstance(prompts_file, Path)
    return ProveOptions(
        config=engine_config({k: v for k, v in values.items() if k not in ("devices", "device")}),
        devices=split_devices(str(values.get("devices", ""))),
        prompts_file=prompts_file,
        max_tokens=max_tokens,
        timeout_s=timeout_s,
    )


def split_devices(text: str) -> tuple[str, ...]:
    """ "cpu,null:h100,oom@3,cuda" -> three devices: a fault belongs to the device before it."""
    devices: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if devices and "@" in part and ":" not in part:
            devices[-1] += f",{part}"
        elif part:
            devices.append(part)
    if len(devices) < 2:
        raise ConfigError(
            f"--devices {text or 'is missing'}: give at least two, e.g. --devices cpu,null"
        )
    twice = sorted({device for device in devices if devices.count(device) > 1})
    if twice:
        raise ConfigError(f"--devices names {', '.join(twice)} twice; a device agrees with itself")
    return tuple(devices)


def prove(options: ProveOptions) -> Proof:
    """Run every device, the first one first. Raises HalError where that one cannot run."""
    from hal.cli.info.proof import Proof, compare, failed
    from hal.cli.info.target import find_target

    for device in options.devices:
        find_target(device)  # a device that cannot be used is refused before anything runs
    prompts = _prompts(options)
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="hal-prove-") as folder:
        jobs = _jobs(options, prompts, Path(folder))
        reference = run_child(
            next(jobs), options.timeout_s
        )  # nothing can be held to one that fails
        runs = [reference]
        follow = [p + a for p, a in zip(prompts, reference.facts.answers, strict=True)]
        for device, job in zip(options.devices[1:], jobs, strict=True):
            try:
                other = run_child(replace(job, follow=follow), options.timeout_s)
            except HalError as error:
                comparisons.append(failed(device, error.message))
                continue
            runs.append(other)
            comparisons.append(compare(reference, other))
    return Proof(
        model=options.config.model,
        prompts=tuple(map(tuple, prompts)),
        runs=tuple(r.facts for r in runs),
        comparisons=tuple(comparisons),
    )


def _jobs(options: ProveOptions, prompts: list[list[int]], folder: Path) -> Iterator[Job]:
    """Whole prompts, no shared blocks: every device computes every token, in the same order."""
    from hal.cli.info.prove_run import Job, config_as_json

    longest = max(map(len, prompts)) + options.max_tokens + 1
    for index, device in enumerate(options.devices):
        config = replace(
            options.config,
            device=device,
            prefix_caching=False,
            max_num_seqs=len(prompts),
            max_model_len=options.config.max_model_len or longest,
        )
        yield Job(
            config=config_as_json(config),
            prompts=prompts,
            max_tokens=options.max_tokens,
            arrays=str(folder / f"{index}.npz"),
        )


def _prompts(options: ProveOptions) -> list[list[int]]:
    from hal.engine.checkpoint import resolve_model
    from hal.engine.model_config import read_model_config
    from hal.engine.models import MODELS
    from hal.engine.tokenizer import Tokenizer

    folder = resolve_model(options.config.model, offline=options.config.offline)
    model = read_model_config(folder, MODELS.keys())
    room = (options.config.max_model_len or model.max_position_embeddings) - options.max_tokens - 1
    if room < 1:
        raise ConfigError(
            f"--max-tokens {options.max_tokens} leaves no room for a prompt in a context of "
            f"{room + options.max_tokens + 1} tokens; lower it"
        )
    if options.prompts_file is None:
        rng = random.Random(options.config.seed)
        lengths = sorted({min(length, room) for length in PROMPT_LENGTHS})
        return [[rng.randrange(model.vocab_size) for _ in range(n)] for n in lengths]
    try:
        lines = options.prompts_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {options.prompts_file}: {error}") from error
    tokenizer = Tokenizer.load(folder)
    prompts = [list(tokenizer.encode(line)) for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"--prompts {options.prompts_file} has no prompt")
    too_long = next((i for i, p in enumerate(prompts, 1) if len(p) > room), None)
    if too_long is not None:
        raise RequestError(
            f"prompt {too_long} has {len(prompts[too_long - 1])} tokens; with --max-tokens "
            f"{options.max_tokens} at most {room} fit"
        )
    return prompts


def run_child(job: Job, timeout_s: float) -> Run:
    """Run one device's job; raises HalError with the child's cause, or that it hangs."""
    import numpy as np

    from hal.cli.info.proof import Run
    from hal.cli.info.prove_run import MARK, RunFacts

    job_file = Path(job.arrays).with_suffix(".json")
    job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    module = ("-m", "hal.cli.info.prove_run")
    command = [sys.executable, "-P", *module, str(job_file), str(os.getpid())]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"no answer within {timeout_s:g} s: it hangs, or --timeout is too short"
        ) from error
    said = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not said:
        raise _failure(done.returncode, done.stderr)
    facts = RunFacts(**json.loads(said[-1].removeprefix(MARK)))
    with np.load(job.arrays) as arrays:
        return Run(facts, dict(arrays))


def _failure(code: int, stderr: str) -> EngineError:
    """The child's own last words, which start with its code where it has one."""
    last = last_words(stderr) or "no message"
    if code < 0:
        last = f"the process died with {exit_words(code)}: {last}"
    return EngineError(last)
