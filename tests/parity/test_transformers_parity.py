"""Every architecture against transformers on tiny random checkpoints, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_checkpoints import ARCHITECTURES, make_checkpoint

from hal.build import BuiltEngine, build_engine
from hal.config import EngineConfig
from hal.engine.request import Request
from hal.sampling_params import SamplingParams

pytestmark = pytest.mark.parity

NUM_STEPS = 64
PROMPTS = (
    tuple(range(5, 40)),
    (9, 8, 7),
    (100, 200, 300, 20) * 12,
    (1,),
    tuple(range(5, 40)) + (77, 78),  # shares two full blocks with the first
)
# Greedy tokens may part ways only where the oracle itself cannot tell its top two apart.
TIE = 1e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "llama-linear": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    },
    "llama-yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "llama-dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    },
    "llama-bias": {"attention_bias": True, "mlp_bias": True},
    "llama-untied": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 24},
    "mistral-full": {"sliding_window": None},
    "qwen2": {},
    "qwen2-tied": {"tie_word_embeddings": True},
    "qwen3": {},
    "mixtral": {},
    "mixtral-window": {"sliding_window": 24},
    "mixtral-fused": {"original_format": False},
    "qwen3_moe": {},
    "qwen3_moe-norm": {"norm_topk_prob": True, "attention_bias": True},
    "qwen3_moe-fused": {"original_format": False, "moe_intermediate_size": 40},
    "qwen3_moe-sparse": {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "gpt2": {},
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder and transformers' float32 model of it."""

    folder: Path
    oracle: transformers.PreTrainedModel


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    name: str = request.param
    arch = max(filter(name.startswith, ARCHITECTURES), key=len)
    folder = make_checkpoint(tmp_path_factory.mktemp(name), arch, **VARIANTS[name])
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Checkpoint(folder, oracle.eval())


def build(checkpoint: Checkpoint, device: str, **settings: Any) -> BuiltEngine:
    """An engine small enough for a laptop; float32 unless told."""
    base: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 8, "max_model_len": 128}
    return build_engine(
        EngineConfig(model=str(checkpoint.folder), device=device, **{**base, **settings})
    )


def greedy(built: BuiltEngine, prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Generate NUM_STEPS tokens for all prompts at once, checking the block bookkeeping."""
    params = SamplingParams(temperature=0.0, max_tokens=NUM_STEPS, ignore_eos=True)
    tokens: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        request = Request(request_id=str(index), prompt_token_ids=prompt, params=params)
        built.engine.add(request)
        tokens[str(index)] = []
    while built.engine.has_work:
        for output in built.engine.step():
            assert output.error is None
            tokens[output.request_id].extend(output.token_ids)
        built.engine.scheduler.blocks.check()
    assert built.engine.stats().num_blocks_used == 0
    return list(tokens.values())


def assert_greedy(checkpoint: Checkpoint, prompt: tuple[int, ...], tokens: list[int]) -> None:
    """Every token is the oracle's argmax given the tokens before it, or a true tie with it."""
    assert len(tokens) == NUM_STEPS
    with torch.no_grad():
        logits = checkpoint.oracle(torch.tensor([[*prompt, *tokens]])).logits[0].double()
    for position, token in enumerate(tokens, start=len(prompt) - 1):
        row = logits[position]
        regret = float(row.max() - row[token])
        assert regret < TIE, f"token {position - len(prompt) + 1}: {regret:.2e} below the best"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="whole"),
        pytest.param({"max_num_batched_tokens": 16}, id="chunked"),
        pytest.param({"block_size": 8, "prefix_caching": False}, id="no-prefix"),
        pytest.param({"memory": "160MiB", "max_num_seqs": 3}, id="few-slots"),
    ],
)
def test_greedy_tokens_equal(
    checkpoint: Checkpoint, device_name: str, settings: dict[str, Any]
) -> None:
    built = build(checkpoint, device_name, **settings)
    for prompt, tokens in zip(PROMPTS, greedy(built, PROMPTS), strict=True):
        assert_greedy(checkpoint, prompt, tokens)


def test_prefix_hits_change_nothing(checkpoint: Checkpoint, device_name: str) -> None:
    built = build(checkpoint, device_name)
    first = greedy(built, PROMPTS)
    hits = built.engine.stats().num_prefix_hits
    second = greedy(built, PROMPTS)
    assert built.engine.stats().num_prefix_hits > hits
    for prompt, tokens in zip(PROMPTS, second, strict=True):
        assert_greedy(checkpoint, prompt, tokens)
    assert [len(tokens) for tokens in first] == [len(tokens) for tokens in second]


def last_logits(built: BuiltEngine, prompt: tuple[int, ...]) -> torch.Tensor:
    """Logits of the prompt's last token, from one prefill."""
    runner = built.runner
    params = SamplingParams(temperature=0.0, max_tokens=1)
    built.engine.add(Request(request_id="logits", prompt_token_ids=prompt, params=params))
    while built.engine.has_work:
        built.engine.step()
    return torch.from_numpy(built.device.download(runner.sampler.logits.rows(1))).double()[0]


def test_bfloat16_error_is_no_more_than_transformers_own(
    checkpoint: Checkpoint, device_name: str
) -> None:
    """Against float32 on the same rounded weights: ours <= 1.5 x what transformers' bf16 loses."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=torch.bfloat16
    ).eval()
    exact = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=torch.bfloat16
    ).float()
    built = build(checkpoint, device_name, dtype="bfloat16", prefix_caching=False)
    our_error, their_error, norm = 0.0, 0.0, 0.0
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            oracle = exact(ids).logits[0, -1].double()
            their_error += float((theirs(ids).logits[0, -1].double() - oracle).square().sum())
            our_error += float((last_logits(built, prompt) - oracle).square().sum())
            norm += float(oracle.square().sum())
    assert their_error > 0.0
    assert our_error**0.5 <= 1.5 * their_error**0.5, (
        f"relative error {(our_error / norm) ** 0.5:.2e}, "
        f"transformers {(their_error / norm) ** 0.5:.2e}"
    )
