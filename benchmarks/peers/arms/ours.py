"""hal itself, stepped as its server steps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import hal
from hal.build import BuiltEngine, build_engine
from hal.config import EngineConfig
from hal.engine.request import Output, Request
from hal.errors import UnsupportedError
from hal.llm import engine_config
from hal.sampling_params import SamplingParams
from peers.cases import Case, Work
from peers.checkpoint import read_geometry
from peers.protocol import (
    Document,
    Facts,
    Generated,
    NotSupportedError,
    Settings,
    Stopwatch,
    serve,
)


class Ours:
    """One engine, without shared prefixes: every run computes all of its prompts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._built = _build(_config(settings))
        self._scorer: BuiltEngine | None = None

    def facts(self) -> Facts:
        geometry = read_geometry(self._settings.folder)
        bits = _logits_bits(self._built)
        untied = 0 if geometry.is_tied else 2 * geometry.embedding_values
        # The rotary table is as long as the context, and a step reads one row of it.
        rotary = 4 * self._settings.max_len * geometry.head_dim
        return Facts(
            engine=f"hal {hal.__version__}",
            weight_bytes=self._built.plan.weights_bytes - untied - rotary,
            logits_bits=bits,
            kv_bits=8 if self._settings.kv == "int8" else 16,
            note=f"{self._settings.weights}, logits {'bf16' if bits == 16 else f'int{bits}'}",
        )

    def prepare(self, case: Case) -> None:
        pass

    def run(self, work: Sequence[Work]) -> Generated:
        engine = self._built.engine
        for index, w in enumerate(work):
            engine.add(_request(index, w.prompt, w.num_output))
        tokens: list[list[int]] = [[] for _ in work]
        watch = Stopwatch(len(work))
        while engine.has_work:
            for output in engine.step():
                index = int(output.request_id)
                tokens[index] += output.token_ids
                watch.saw(index, len(output.token_ids))
            watch.end_step()
        return watch.stop(tokens)

    def log_likelihood(self, document: Document) -> float:
        """Each scored token is forced by a bias; its log probability is the model's own."""
        if self._scorer is None:
            config = dataclasses.replace(_config(self._settings), prefix_caching=True)
            self._scorer = _build(config)
        engine = self._scorer.engine
        for position in range(document.start, len(document.ids)):
            engine.add(_request(position, document.ids[:position], 1, forced=document.ids))
        total = 0.0
        while engine.has_work:
            total += sum(_log_probability(output, document) for output in engine.step())
        return total


def _config(settings: Settings) -> EngineConfig:
    values: dict[str, object] = {
        "device": "cpu",
        "dtype": "bfloat16",
        "max_model_len": settings.max_len,
        "max_num_seqs": settings.max_num_seqs,
        "prefix_caching": False,
        "threads": settings.threads,
        "kv_cache_dtype": settings.kv,
    }
    if settings.weights != "bf16":
        values["quantization"] = settings.weights
    try:
        return engine_config(str(settings.folder), values)
    except UnsupportedError as error:
        raise NotSupportedError(error.message) from error


def _logits_bits(built: BuiltEngine) -> int:
    """Of the matrix as its kernel was bound to it: unquantised problems name no format."""
    problems = [s.problem for s in built.selections if getattr(s.problem, "makes_logits", False)]
    weights = getattr(problems[0], "weights", None)
    return 16 if weights is None else int(weights.codes.bits)


def _build(config: EngineConfig) -> BuiltEngine:
    try:
        return build_engine(config)
    except UnsupportedError as error:
        raise NotSupportedError(error.message) from error


def _request(
    index: int, prompt: tuple[int, ...], num_output: int, forced: tuple[int, ...] = ()
) -> Request:
    """Greedy, exactly `num_output` long; with `forced`, its token at `index` whatever its odds."""
    params = SamplingParams(
        temperature=0.0,
        max_tokens=num_output,
        ignore_eos=True,
        logprobs=0 if forced else None,
        logit_bias={forced[index]: 100.0} if forced else {},
    )
    return Request(request_id=str(index), prompt_token_ids=prompt, params=params)


def _log_probability(output: Output, document: Document) -> float:
    (position,) = output.logprobs
    wanted = document.ids[int(output.request_id)]
    if position.token_id != wanted:
        raise RuntimeError(f"token {wanted} was not forced: its logit is over 100 below the best")
    return position.logprob


if __name__ == "__main__":
    serve(Ours)
