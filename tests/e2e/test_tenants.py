"""Two keys of one server share its model and nothing else."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from fake_serving import serving

from hal.cli.serve import main

PROMPT = "A prompt of more than one block of tokens: " + "the quick brown fox jumps. " * 8


def test_cached_prefixes_are_found_by_their_own_key_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "keys.toml")
    keys = []
    for name in ("one", "two"):
        assert main(["keys", "add", file, name]) == 0
        keys.append(capsys.readouterr().out.strip())
    with serving(["hal-tiny", "--device", "cpu", "--api-keys", file]) as server:
        server.wait_ready()

        def num_cached(key: str) -> int:
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
                usage = client.completions.create(
                    model="hal-tiny", prompt=PROMPT, max_tokens=1
                ).usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            return usage.prompt_tokens_details.cached_tokens or 0

        one, two = keys
        assert num_cached(one) == 0
        assert num_cached(one) > 0
        assert num_cached(two) == 0
        assert num_cached(two) > 0
