"""Random-weight checkpoints in real shapes, with a byte-level BPE trained on the spot.

    python benchmarks/models.py qwen2.5-0.5b /tmp/models

Weights are drawn shard by shard, so that an 8B checkpoint never stands in memory as a whole.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

SHARD_BYTES = 1 << 30
TOKENIZER_SIZE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of one published model, as its config.json has them."""

    model_type: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float
    is_tied: bool
    qkv_bias: bool
    max_position_embeddings: int = 8192


SHAPES = {
    "warm-up": Shape(
        model_type="llama",
        architecture="LlamaForCausalLM",
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=256,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        rope_theta=1e4,
        is_tied=True,
        qkv_bias=False,
    ),
    "qwen2.5-0.5b": Shape(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        rope_theta=1e6,
        is_tied=True,
        qkv_bias=True,
    ),
    "llama-3.2-1b": Shape(
        model_type="llama",
        architecture="LlamaForCausalLM",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        rope_theta=5e5,
        is_tied=True,
        qkv_bias=False,
    ),
    "llama-3-8b": Shape(
        model_type="llama",
        architecture="LlamaForCausalLM",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        rope_theta=5e5,
        is_tied=False,
        qkv_bias=False,
    ),
}


def config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": [shape.architecture],
        "model_type": shape.model_type,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.hidden_size // shape.num_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "max_position_embeddings": shape.max_position_embeddings,
        "tie_word_embeddings": shape.is_tied,
        "use_sliding_window": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
    }


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the checkpoint, in file order."""
    hidden, wide = shape.hidden_size, shape.intermediate_size
    kv_rows = hidden // shape.num_heads * shape.num_kv_heads
    yield "model.embed_tokens.weight", (shape.vocab_size, hidden)
    for index in range(shape.num_layers):
        prefix = f"model.layers.{index}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        for name, rows in (("q", hidden), ("k", kv_rows), ("v", kv_rows)):
            yield f"{prefix}.self_attn.{name}_proj.weight", (rows, hidden)
            if shape.qkv_bias:
                yield f"{prefix}.self_attn.{name}_proj.bias", (rows,)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (wide, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (wide, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, wide)
    yield "model.norm.weight", (hidden,)
    if not shape.is_tied:
        yield "lm_head.weight", (shape.vocab_size, hidden)


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Scaled so that activations keep their size from layer to layer."""
    values = torch.empty(shape, dtype=torch.bfloat16)
    if name.endswith("norm.weight"):
        return values.normal_(1.0, 0.1, generator=generator)
    return values.normal_(0.0, 0.7 * shape[-1] ** -0.5, generator=generator)


def write_weights(shape: Shape, folder: Path) -> None:
    generator = torch.Generator().manual_seed(20)
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    total = 0

    def flush() -> None:
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, size in tensor_shapes(shape):
        shard[name] = random_tensor(name, size, generator)
        total += shard[name].nbytes
        if sum(t.nbytes for t in shard.values()) >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    listing = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing))


def write_tokenizer(folder: Path) -> None:
    """A small byte-level BPE: every text can be encoded; ids above its size are never made."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([path.read_text() for path in _texts()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|begin|>", "eos_token": "<|end|>"})
    )


def _texts() -> list[Path]:
    repository = Path(__file__).resolve().parent.parent
    return sorted(repository.glob("docs/**/*.md")) + [Path(__file__)]


def make_model(name: str, parent: Path) -> Path:
    """Write the checkpoint unless it is there already; returns its folder."""
    folder = parent / name
    if (folder / "model.safetensors.index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name]
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))
    write_tokenizer(folder)
    write_weights(shape, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("parent", type=Path, help="folder that gets a folder of that name")
    arguments = parser.parse_args()
    sys.stdout.write(f"{make_model(arguments.name, arguments.parent)}\n")


if __name__ == "__main__":
    main()
