"""Engines on Triton's kernels, interpreted, answer as the reference does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from triton_interpreter import answer, greedy_tokens, interpreters

from hal.kernels.triton.program import is_installed

Maker = Callable[..., Path]

pytestmark = pytest.mark.skipif(not is_installed(), reason="triton is not installed")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with interpreters() as processes:
        yield processes


@pytest.mark.parametrize(
    ("arch", "profile", "settings"),
    [
        ("llama", "h100", {"quantization": "int4", "kv_cache_dtype": "fp8"}),
        ("mixtral", "h100", {"quantization": "int8", "kv_cache_dtype": "int8"}),
        ("qwen3_moe", "mi300x", {}),
    ],
)
def test_tokens_are_those_of_the_reference(
    tiny_checkpoint: Maker,
    pool: ProcessPoolExecutor,
    arch: str,
    profile: str,
    settings: dict[str, Any],
) -> None:
    folder = tiny_checkpoint(arch)
    wanted = {**settings, "dtype": "bfloat16", "strict": True}
    found = pool.submit(answer, folder, profile, wanted)
    reference = greedy_tokens(folder, "null", {**settings, "dtype": "bfloat16"})
    assert found.result(timeout=300) == reference
