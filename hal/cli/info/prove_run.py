"""One device's part of `hal-info prove`: runs the prompts, writes what it saw to a file.

As a module (`python -m hal.cli.info.prove_run JOB`) it is a child process, so that each device has
the machine for itself and a driver that crashes is the result of that device alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hal.build import BuiltEngine, build_engine
from hal.config import EngineConfig
from hal.engine.layers.tap import tap_layers
from hal.engine.request import FinishReason, Output, Request
from hal.errors import EngineError, HalError
from hal.parent_process import die_with_parent
from hal.sampling_params import MAX_LOGPROBS, SamplingParams
from hal.tensor import Tensor

MARK = "hal-prove:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a child does. `follow` are the texts (prompt and answer) of the first device: traced as
    they stand, so that every device sees the same tokens. Empty: trace the own answers."""

    config: dict[str, Any]
    prompts: list[list[int]]
    max_tokens: int
    follow: list[list[int]] = field(default_factory=list)
    arrays: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One device's run, but for the arrays. Bytes are the plan's; allocated_bytes the device's."""

    spec: str
    name: str
    arch: str
    dtype: str
    answers: list[list[int]]
    weights_bytes: int
    kv_bytes: int
    allocated_bytes: int
    levels: dict[str, int]
    num_steps: int
    seconds: float


Trace = dict[str, NDArray[np.float32]]
"""Site -> its outputs at the traced positions, [num_positions, hidden_size]."""


class Tracer:
    """Keeps the rows of every site, step after step."""

    def __init__(self, built: BuiltEngine) -> None:
        self._device = built.device
        self._rows: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
        self.is_on = False
        built.decoder.replace_layers(partial(tap_layers, observe=self._observe))

    def take(self) -> Trace:
        """What was seen since the last call."""
        taken = {name: np.concatenate(rows) for name, rows in self._rows.items()}
        self._rows.clear()
        return taken

    def _observe(self, name: str, out: Tensor) -> None:
        if self.is_on:
            self._rows[name].append(np.array(self._device.download(out), dtype=np.float32))


def run_job(job: Job) -> tuple[RunFacts, dict[str, NDArray[Any]]]:
    """Generate, then trace; returns the facts and the arrays by name."""
    built = build_engine(config_of(job.config))
    tracer = Tracer(built)
    _generate(built, [[0]], 1)  # compiles and touches what the first step would
    started = time.perf_counter()
    steps_before = built.engine.stats().num_steps
    outputs = _generate(built, job.prompts, job.max_tokens)
    seconds = time.perf_counter() - started
    num_steps = built.engine.stats().num_steps - steps_before
    answers = [[t for o in each for t in o.token_ids] for each in outputs]
    arrays = _logprob_arrays(outputs)
    texts = job.follow or [p + a for p, a in zip(job.prompts, answers, strict=True)]
    tracer.is_on = True
    for index, text in enumerate(texts):
        _generate(built, [text], 1)
        for site, rows in tracer.take().items():
            arrays[f"trace/{index}/{site}"] = rows[: len(text)]
    return _facts(built, answers, num_steps, seconds), arrays


def config_of(values: dict[str, Any]) -> EngineConfig:
    """An EngineConfig that went through JSON."""
    given = dict(values)
    given["kernel"] = tuple(given["kernel"])
    given["chat_template"] = None
    return EngineConfig(**given)


def config_as_json(config: EngineConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name != "chat_template"}


def _generate(
    built: BuiltEngine, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[list[Output]]:
    """Greedy answers to all prompts in one batch, with the most likely tokens of every position."""
    params = SamplingParams(
        temperature=0.0,
        max_tokens=max_tokens,
        ignore_eos=True,
        logprobs=min(MAX_LOGPROBS, built.model.vocab_size),
    )
    for index, prompt in enumerate(prompts):
        built.engine.add(
            Request(request_id=str(index), prompt_token_ids=tuple(prompt), params=params)
        )
    outputs: list[list[Output]] = [[] for _ in prompts]
    while built.engine.has_work:
        for output in built.engine.step():
            if output.finish_reason is FinishReason.ERROR:
                raise EngineError(
                    f"prompt {output.request_id}: {output.error}", code=output.error_code
                )
            outputs[int(output.request_id)].append(output)
    return outputs


def _logprob_arrays(outputs: Sequence[Sequence[Output]]) -> dict[str, NDArray[Any]]:
    """Per prompt: the most likely ids and their log probabilities, [num_tokens, K]."""
    arrays: dict[str, NDArray[Any]] = {}
    for index, each in enumerate(outputs):
        positions = [logprobs for output in each for logprobs in output.logprobs]
        arrays[f"top_ids/{index}"] = np.array([p.top_ids for p in positions], dtype=np.int32)
        arrays[f"top_logprobs/{index}"] = np.array(
            [p.top_logprobs for p in positions], dtype=np.float32
        )
    return arrays


def _facts(
    built: BuiltEngine, answers: list[list[int]], num_steps: int, seconds: float
) -> RunFacts:
    caps = built.device.capabilities
    levels: dict[str, int] = defaultdict(int)
    for selection in built.selections:
        levels[str(selection.level)] += 1
    return RunFacts(
        spec=built.resolved.config.device,
        name=caps.name,
        arch=caps.arch,
        dtype=str(built.resolved.dtype),
        answers=answers,
        weights_bytes=built.plan.weights_bytes,
        kv_bytes=built.plan.kv_bytes,
        allocated_bytes=built.device.allocated_bytes(),
        levels=dict(levels),
        num_steps=num_steps,
        seconds=seconds,
    )


def main(job_file: str) -> int:
    """Read the job, write its arrays, print its facts; an expected error is the last line."""
    job = Job(**json.loads(Path(job_file).read_text(encoding="utf-8")))
    try:
        facts, arrays = run_job(job)
    except HalError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    np.savez(job.arrays, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle
    sys.stdout.write(f"\n{MARK}{json.dumps(asdict(facts))}\n")
    return 0


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    sys.exit(main(sys.argv[1]))
