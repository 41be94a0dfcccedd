"""--quantization from the setting to the tokens, on the device under test and on the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from high_water import HighWater, held_bytes
from safetensors.torch import load_file, save_file

from hal.build import BuiltEngine, build_engine
from hal.config import EngineConfig
from hal.engine.request import Request
from hal.errors import WeightsError
from hal.sampling_params import SamplingParams
from hal.select import Level
from hal.weights import WEIGHT_FORMATS

Maker = Callable[..., Path]

PROMPTS = (tuple(range(5, 40)), (9, 8, 7), (100, 200, 300, 20) * 12)
NUM_STEPS = 32
# Kernels round activations alike but not bit for bit, and a code that falls the other way moves a
# logit by about a hundredth here. Below this gap the two best tokens may change places.
MARGIN = 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens, and before each how far the second best was behind."""

    tokens: list[int]
    gaps: list[float]


def build(folder: Path, device: str, quantization: str, **settings: object) -> BuiltEngine:
    base: dict[str, object] = {"max_num_seqs": 4, "max_model_len": 128, "dtype": "float32"}
    return build_engine(
        EngineConfig(
            model=str(folder),
            device=device,
            quantization=quantization,
            **{**base, **settings},  # type: ignore[arg-type]
        )
    )


def greedy(built: BuiltEngine) -> list[Answer]:
    params = SamplingParams(temperature=0.0, max_tokens=NUM_STEPS, ignore_eos=True, logprobs=2)
    answers = {str(i): Answer([], []) for i in range(len(PROMPTS))}
    for index, prompt in enumerate(PROMPTS):
        built.engine.add(Request(request_id=str(index), prompt_token_ids=prompt, params=params))
    while built.engine.has_work:
        for output in built.engine.step():
            assert output.error is None
            answers[output.request_id].tokens.extend(output.token_ids)
            for row in output.logprobs:
                answers[output.request_id].gaps.append(row.top_logprobs[0] - row.top_logprobs[1])
    return list(answers.values())


@pytest.mark.parametrize("quantization", ["int8", "int4", "int4-g128", "fp8", "int4-asym-a16"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2", "mixtral", "qwen3_moe"])
def test_tokens_are_those_of_the_reference(
    tiny_checkpoint: Maker, device_name: str, arch: str, quantization: str
) -> None:
    """Equal up to the first token whose best two the reference itself can hardly tell apart."""
    folder = tiny_checkpoint(arch)
    here = greedy(build(folder, device_name, quantization))
    reference = greedy(build(folder, "null", quantization))
    compared = 0
    for answer, expected in zip(here, reference, strict=True):
        for index, (token, wanted) in enumerate(zip(answer.tokens, expected.tokens, strict=True)):
            if token != wanted:
                gap = expected.gaps[index]
                assert gap < MARGIN, f"token {index}: {token} for {wanted}, ahead by {gap:.3f}"
                break
            compared += 1
    assert compared > NUM_STEPS, "too few tokens before the first tie to mean anything"


def test_quantised_tokens_are_not_the_unquantised(tiny_checkpoint: Maker, device_name: str) -> None:
    """The setting reaches the kernels: int4 of random weights must show."""
    folder = tiny_checkpoint("llama")
    plain, int4 = (greedy(build(folder, device_name, q)) for q in ("none", "int4"))
    assert [a.tokens for a in plain] != [a.tokens for a in int4]


@pytest.mark.parametrize("quantization", WEIGHT_FORMATS)
def test_planned_bytes_are_allocated_bytes(
    tiny_checkpoint: Maker, device_name: str, quantization: str
) -> None:
    built = build(tiny_checkpoint("gpt2"), device_name, quantization)
    plan = built.plan
    planned = plan.weights_bytes + plan.activation_bytes + plan.logits_bytes + plan.kv_bytes
    assert built.device.allocated_bytes() == pytest.approx(planned, rel=0.01)
    unquantized = build(tiny_checkpoint("gpt2"), device_name, "none").plan
    assert plan.weights_bytes < 0.5 * unquantized.weights_bytes


def test_explain_names_the_format_and_the_head(tiny_checkpoint: Maker, device_name: str) -> None:
    built = build(tiny_checkpoint("llama"), device_name, "int4-g64")
    choice = next(c for c in built.resolved.choices if c.name == "quantization")
    assert (choice.value, "logits is int8" in choice.reason) == ("int4-g64", True)
    stored = {
        selection.op: selection.problem.weights
        for selection in built.selections
        if selection.op in ("linear", "mlp_block", "attention_block", "vocab")
    }
    assert stored == {
        "linear": WEIGHT_FORMATS["int4-g64"],
        "mlp_block": WEIGHT_FORMATS["int4-g64"],
        "attention_block": WEIGHT_FORMATS["int4-g64"],
        "vocab": WEIGHT_FORMATS["int8"],
    }


def test_tied_embeddings_are_stored_once(tiny_checkpoint: Maker, device_name: str) -> None:
    tied = build(tiny_checkpoint("llama", tie_word_embeddings=True), device_name, "int8").plan
    untied = build(tiny_checkpoint("llama", tie_word_embeddings=False), device_name, "int8").plan
    # Alone, the embedding is only looked up and keeps its 4 bytes an element.
    assert untied.weights_bytes - tied.weights_bytes == 384 * 64 * 4


@pytest.mark.parametrize("profile", ["h100", "mi300x"])
@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_an_accelerator_stores_codes_and_multiplies_them(
    tiny_checkpoint: Maker, profile: str, quantization: str
) -> None:
    folder = tiny_checkpoint("llama", dtype="bfloat16")
    built = build(folder, f"null:{profile}", quantization, dtype="auto")
    assert built.posed is not None
    chosen = {s.op: s.kernel.name for s in built.posed.selections if hasattr(s.problem, "weights")}
    assert (chosen["linear"], chosen["vocab"]) == ("triton", "triton")
    assert all(s.level is Level.NATIVE for s in built.posed.selections)
    plain = build(folder, f"null:{profile}", "none", dtype="auto").posed
    assert plain is not None
    assert built.posed.plan.weights_bytes < 0.7 * plain.plan.weights_bytes
    reference = build(folder, "null", quantization, dtype="bfloat16")
    assert [a.tokens for a in greedy(built)] == [a.tokens for a in greedy(reference)]


def test_weights_that_are_not_finite_are_refused(
    tiny_checkpoint: Maker, device_name: str, tmp_path: Path
) -> None:
    """A code would hide them."""
    folder = copy_with_nan(tiny_checkpoint("llama"), tmp_path / "nan")
    for quantization in ("int8", "int4", "fp8", "int4-asym-a16"):
        with pytest.raises(WeightsError, match="1 rows of a weight hold NaN"):
            build(folder, device_name, quantization)


def copy_with_nan(folder: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.nan
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
EXPERTS = {**WIDE, "intermediate_size": 1024, "num_local_experts": 5, "num_experts_per_tok": 2}


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize(
    ("arch", "sizes"),
    [("llama", WIDE), ("mixtral", EXPERTS), ("mixtral", {**EXPERTS, "original_format": False})],
    ids=["llama", "mixtral", "mixtral-fused"],
)
def test_loading_streams_tensor_by_tensor(
    tiny_checkpoint: Maker, arch: str, sizes: dict[str, object], quantization: str
) -> None:
    """Pages beyond the plan: a fifth of the quantised size and one tensor, as stored.

    A tensor of all experts is larger than that, but stays where the file is mapped.
    """
    folder = tiny_checkpoint(arch, dtype="bfloat16", **sizes)
    build(tiny_checkpoint("llama"), "cpu", quantization)  # code and libraries are no part of it
    before, watch = held_bytes(), HighWater()
    config = EngineConfig(
        model=str(folder), device="cpu", quantization=quantization, max_num_seqs=1, max_model_len=64
    )
    built = build_engine(config, watch)
    on_disk = (folder / "model.safetensors").stat().st_size
    largest = 4096 * 1024 * 2
    growth = max(watch.highest, held_bytes()) - before
    plan = built.plan
    beside = plan.activation_bytes + plan.logits_bytes + plan.kv_bytes
    assert plan.weights_bytes < 0.6 * on_disk
    assert growth < 1.2 * plan.weights_bytes + largest + beside
