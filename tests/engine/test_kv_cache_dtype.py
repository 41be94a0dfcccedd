"""--kv-cache-dtype from the setting to the logits, here and on the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from hal.build import BuiltEngine, build_engine
from hal.config import EngineConfig
from hal.dtypes import DType
from hal.engine.request import Request
from hal.errors import SelectionError
from hal.kv import KV_FORMATS
from hal.sampling_params import SamplingParams
from hal.select import Level

Maker = Callable[..., Path]
Prompt = tuple[int, ...]

PROMPTS: tuple[Prompt, ...] = (tuple(range(5, 40)), (9, 8, 7), (100, 200, 300, 20) * 12)
HEAD_DIM = 16  # of the tiny checkpoints
# A code is off by half a unit at most, max|x| / 254, so a key or value by this share of its length.
CODE_ERROR = HEAD_DIM**0.5 / 254
# Errors of values average and those of keys shift weights by as much: a few layers add up to less
# than twice the worst of one.
LIMIT = 2 * CODE_ERROR


def build(folder: Path, device: str, **settings: object) -> BuiltEngine:
    base: dict[str, object] = {
        "max_num_seqs": 4,
        "max_model_len": 128,
        "dtype": "bfloat16",
        "kv_cache_dtype": "int8",
    }
    given = {**base, "model": str(folder), "device": device, **settings}
    return build_engine(EngineConfig(**given))  # type: ignore[arg-type]  # it checks its fields


def logits(built: BuiltEngine, prompt: Prompt) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Behind the prompt."""
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    built.engine.add(Request(request_id="one", prompt_token_ids=prompt, params=params))
    while built.engine.has_work:
        assert all(output.error is None for output in built.engine.step())
    row = built.device.download(built.runner.sampler.logits.rows(1))
    return np.array(row, dtype=np.float64)


def answers(built: BuiltEngine, prompts: Sequence[Prompt]) -> list[list[tuple[int, float]]]:
    """Each prompt's 16 greedy tokens with their log-probabilities."""
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=1)
    found: dict[str, list[tuple[int, float]]] = {str(i): [] for i in range(len(prompts))}
    for index, prompt in enumerate(prompts):
        built.engine.add(Request(request_id=str(index), prompt_token_ids=prompt, params=params))
    while built.engine.has_work:
        for output in built.engine.step():
            rows = zip(output.token_ids, output.logprobs, strict=True)
            found[output.request_id] += [(token, row.logprob) for token, row in rows]
    return list(found.values())


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gpt2", "mixtral"])
def test_logits_move_by_no_more_than_the_codes_do(
    tiny_checkpoint: Maker, device_name: str, arch: str
) -> None:
    folder = tiny_checkpoint(arch)
    settings = {"dtype": "float32", "prefix_caching": False}
    plain = build(folder, device_name, kv_cache_dtype="auto", **settings)
    codes = build(folder, device_name, **settings)
    for prompt in PROMPTS:
        expected = logits(plain, prompt)
        moved = np.linalg.norm(logits(codes, prompt) - expected) / np.linalg.norm(expected)
        assert 1e-6 < moved < LIMIT, f"{moved:.2%} behind {len(prompt)} tokens"


def test_logits_are_those_of_the_reference(tiny_checkpoint: Maker, device_name: str) -> None:
    """The same codes, so only the rounding of bfloat16 is between them."""
    folder = tiny_checkpoint("llama")
    here, reference = (build(folder, device) for device in (device_name, "null"))
    for prompt in PROMPTS:
        expected = logits(reference, prompt)
        error = np.linalg.norm(logits(here, prompt) - expected) / np.linalg.norm(expected)
        assert error < 0.02


def test_neither_neighbours_nor_chunks_change_a_bit(
    tiny_checkpoint: Maker, device_name: str
) -> None:
    folder = tiny_checkpoint("llama")
    settings = {"deterministic": True, "prefix_caching": False}
    try:
        together = answers(build(folder, device_name, **settings), PROMPTS)
    except SelectionError as error:
        pytest.skip(str(error))
    built = build(folder, device_name, max_num_batched_tokens=16, **settings)
    assert [answers(built, [prompt])[0] for prompt in PROMPTS] == together


def test_cached_prefixes_are_the_same_codes(tiny_checkpoint: Maker, device_name: str) -> None:
    """A second request reads the blocks of the first."""
    built = build(tiny_checkpoint("llama"), device_name)
    prompt = PROMPTS[2]
    first, second = logits(built, prompt), logits(built, prompt)
    assert built.engine.stats().num_prefix_hits > 0
    assert np.linalg.norm(second - first) < 0.02 * np.linalg.norm(first)


def test_planned_bytes_are_allocated_bytes(tiny_checkpoint: Maker, device_name: str) -> None:
    folder = tiny_checkpoint("llama")
    codes = build(folder, device_name)
    plain = build(folder, device_name, kv_cache_dtype="auto")
    assert codes.plan.num_blocks == plain.plan.num_blocks
    assert codes.plan.kv_bytes / plain.plan.kv_bytes == (HEAD_DIM + 2) / (2 * HEAD_DIM)
    for built in (codes, plain):
        plan = built.plan
        planned = plan.weights_bytes + plan.activation_bytes + plan.logits_bytes + plan.kv_bytes
        assert built.device.allocated_bytes() == pytest.approx(planned, rel=0.01)


def test_explain_names_the_dtype(tiny_checkpoint: Maker, device_name: str) -> None:
    built = build(tiny_checkpoint("llama"), device_name)
    (attention,) = (s for s in built.selections if s.op == "attention")
    assert attention.problem.kv_dtype is DType.INT8
    assert all("int8" in r.reason for r in attention.rejected if r.kernel == "sdpa")


@pytest.mark.parametrize("profile", ["h100", "mi300x"])
@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_an_accelerator_reads_codes_natively(tiny_checkpoint: Maker, profile: str, kv: str) -> None:
    folder = tiny_checkpoint("llama")
    built = build(folder, f"null:{profile}", kv_cache_dtype=kv, strict=True)
    assert built.posed is not None
    (attention,) = (s for s in built.posed.selections if s.op == "attention")
    assert (attention.kernel.name, attention.level) == ("triton", Level.NATIVE)
    assert attention.problem.kv_dtype is KV_FORMATS[kv]
    plain = build(folder, f"null:{profile}", kv_cache_dtype="auto")
    assert plain.posed is not None
    ratio = built.posed.plan.kv_bytes / plain.posed.plan.kv_bytes
    assert ratio == (HEAD_DIM + 2) / (2 * HEAD_DIM)


def test_fp8_codes_cost_little(tiny_checkpoint: Maker, device_name: str) -> None:
    """3 bits behind the leading one: off by a sixteenth at most, values of all sizes alike."""
    folder = tiny_checkpoint("llama")
    fp8, plain = (build(folder, device_name, kv_cache_dtype=kv) for kv in ("fp8", "auto"))
    expected = logits(plain, PROMPTS[0])
    error = np.linalg.norm(logits(fp8, PROMPTS[0]) - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 1 / 16
