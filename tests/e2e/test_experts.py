"""A model with experts as a user meets it: from Python and over HTTP, the same words."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from fake_serving import serving
from tiny_checkpoints import make_checkpoint

from hal import LLM, SamplingParams

PROMPT = "The quick brown fox jumps over"
NUM_TOKENS = 24


@pytest.mark.parametrize(
    ("arch", "quantization"), [("mixtral", "none"), ("qwen3_moe", "int8")], ids=str
)
def test_served_words_are_those_of_the_python_interface(
    tmp_path: Path, device_name: str, arch: str, quantization: str
) -> None:
    folder = make_checkpoint(tmp_path, arch)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    with LLM(str(folder), device=device_name, quantization=quantization, max_num_seqs=4) as llm:
        (result,) = llm.generate(PROMPT, params)
    expected = result.outputs[0].text
    assert len(result.outputs[0].token_ids) == NUM_TOKENS
    flags = ["--device", device_name, "--quantization", quantization, "--max-num-seqs", "4"]
    with serving([str(folder), *flags, "--threads", "1", "--offline"]) as server:
        server.wait_ready()
        sites = {kernel["op"]: kernel for kernel in server.get("/hal/plan").json()["kernels"]}
        assert sites["moe_block"]["reason"]
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            (model,) = client.models.list().data
            done = client.completions.create(
                model=model.id,
                prompt=PROMPT,
                temperature=0,
                max_tokens=NUM_TOKENS,
                extra_body={"ignore_eos": True},
            )
    assert done.choices[0].text == expected
