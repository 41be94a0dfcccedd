"""--deterministic with weights of codes: a sequence's bits, whatever runs beside it and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hal import LLM, SamplingParams
from hal.errors import SelectionError

Maker = Callable[..., Path]

RUNS = (
    ("int8", "bfloat16"),
    ("int4", "bfloat16"),
    ("int4-g64-asym", "bfloat16"),
    ("fp8", "bfloat16"),
    ("fp8", "float32"),
    ("int4-a16", "bfloat16"),
    ("int4-asym-a16", "float32"),
)
PROMPT = [(7 * i) % 300 + 5 for i in range(45)]
# Fewer and more tokens in a step than the kernels' tiles hold, and sequences that come and go.
NEIGHBOURS = ([9, 8, 7], [11] * 70, [(5 * i) % 200 + 9 for i in range(20)])
NUM_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens, and the log-probabilities of the best few at each, which are the logits' bits."""

    tokens: tuple[int, ...]
    logprobs: tuple[tuple[tuple[int, float], ...], ...]


@pytest.fixture
def threads_left_alone() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def answer(
    folder: Path, quantization: str, *, beside: bool, threads: int, chunk: int, dtype: str
) -> Answer:
    prompts = [PROMPT, *NEIGHBOURS] if beside else [PROMPT]
    params = [
        SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS - i, ignore_eos=True, logprobs=5)
        for i in range(len(prompts))
    ]
    with LLM(
        model=str(folder),
        device="cpu",
        dtype=dtype,
        quantization=quantization,
        deterministic=True,
        threads=threads,
        max_num_seqs=4,
        max_model_len=128,
        max_num_batched_tokens=chunk,
        show_progress=False,
    ) as llm:
        (output, *_) = llm.generate([{"prompt_token_ids": p} for p in prompts], params)
    best = output.outputs[0].logprobs
    assert best is not None
    rows = tuple(tuple((token, row[token].logprob) for token in sorted(row)) for row in best)
    return Answer(tuple(output.outputs[0].token_ids), rows)


@pytest.mark.usefixtures("threads_left_alone")
@pytest.mark.parametrize(("quantization", "dtype"), RUNS)
@pytest.mark.parametrize("arch", ["llama", "mixtral"])
def test_a_sequence_has_the_same_bits_in_any_company(
    tiny_checkpoint: Maker, arch: str, quantization: str, dtype: str
) -> None:
    folder = tiny_checkpoint(arch)
    try:
        alone = answer(folder, quantization, beside=False, threads=1, chunk=128, dtype=dtype)
    except SelectionError as error:
        pytest.skip(error.message)
    assert len(alone.tokens) == NUM_TOKENS
    for threads, chunk, beside in ((2, 128, True), (1, 7, True), (2, 7, False)):
        again = answer(
            folder, quantization, beside=beside, threads=threads, chunk=chunk, dtype=dtype
        )
        assert again == alone, f"{threads} threads, steps of {chunk} tokens, company: {beside}"
