"""Tiny models as checkpoints, with the names and keys of their architecture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hal.conformance.stage import Float64, host_dtype
from hal.conformance.tiny_models import MAX_POSITIONS, LayerWeights, TinyModel, TinyShape


def write_model(model: TinyModel, folder: Path) -> None:
    """A model folder: config.json and model.safetensors in the model's dtype."""
    from safetensors.torch import save_file

    folder.joinpath("config.json").write_text(json.dumps(config_of(model)), encoding="utf-8")
    kind = host_dtype(model.dtype)
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(values)).to(kind)
        for name, values in tensors_of(model)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def config_of(model: TinyModel) -> dict[str, object]:
    """config.json, with the keys that checkpoints of this model_type have."""
    shape = model.shape
    shared: dict[str, object] = {
        "model_type": shape.model_type,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.is_tied,
        "dtype": str(model.dtype),
    }
    if shape.is_gpt2:
        return shared | {
            "n_embd": shape.hidden_size,
            "n_head": shape.num_heads,
            "n_layer": shape.num_layers,
            "n_inner": shape.intermediate_size,
            "n_positions": MAX_POSITIONS,
            "layer_norm_epsilon": shape.norm_eps,
        }
    return (
        shared
        | _expert_keys(shape)
        | {
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": MAX_POSITIONS,
            "rms_norm_eps": shape.norm_eps,
            "rope_theta": shape.rope_theta,
            "sliding_window": shape.window,
        }
    )


def _expert_keys(shape: TinyShape) -> dict[str, object]:
    if not shape.num_experts:
        return {}
    keys: dict[str, object] = {"num_experts_per_tok": shape.top_k}
    if shape.model_type == "mixtral":
        return keys | {"num_local_experts": shape.num_experts}
    return keys | {
        "num_experts": shape.num_experts,
        "moe_intermediate_size": shape.intermediate_size,
        "mlp_only_layers": list(shape.dense_layers),
        "norm_topk_prob": shape.norms_top_k,
    }


Named = Iterator[tuple[str, Float64]]


def tensors_of(model: TinyModel) -> Named:
    """Every tensor by its name in a checkpoint of this model_type."""
    yield from _gpt2_tensors(model) if model.shape.is_gpt2 else _llama_tensors(model)


def _llama_tensors(model: TinyModel) -> Named:
    shape = model.shape
    yield "model.embed_tokens.weight", model.tokens
    if not shape.is_tied:
        yield "lm_head.weight", model.head
    yield "model.norm.weight", model.final_norm.weight
    q_rows, kv_rows = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    for index, layer in enumerate(model.layers):
        at = f"model.layers.{index}"
        yield f"{at}.input_layernorm.weight", layer.attention_norm.weight
        yield f"{at}.post_attention_layernorm.weight", layer.mlp_norm.weight
        first = 0
        for name, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
            part = slice(first, first + rows)
            yield f"{at}.self_attn.{name}_proj.weight", layer.qkv.weight[part]
            if layer.qkv.bias is not None:
                yield f"{at}.self_attn.{name}_proj.bias", layer.qkv.bias[part]
            first += rows
        yield f"{at}.self_attn.o_proj.weight", layer.output.weight
        if layer.q_norm is not None and layer.k_norm is not None:
            yield f"{at}.self_attn.q_norm.weight", layer.q_norm
            yield f"{at}.self_attn.k_norm.weight", layer.k_norm
        yield from _mlp_tensors(layer, at, shape.model_type == "mixtral")


def _mlp_tensors(layer: LayerWeights, at: str, is_mixtral: bool) -> Named:
    block = f"{at}.block_sparse_moe" if is_mixtral else f"{at}.mlp"
    names = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    if layer.router is not None:
        yield f"{block}.gate.weight", layer.router.weight
    for index, mlp in enumerate(layer.mlps):
        prefix = block if layer.router is None else f"{block}.experts.{index}"
        assert mlp.gate is not None
        for name, product in zip(names, (mlp.gate, mlp.up, mlp.down), strict=True):
            yield f"{prefix}.{name}.weight", product.weight


def _gpt2_tensors(model: TinyModel) -> Named:
    assert model.positions is not None
    yield "transformer.wte.weight", model.tokens
    yield "transformer.wpe.weight", model.positions
    yield from _with_bias("transformer.ln_f", model.final_norm.weight, model.final_norm.bias)
    for index, layer in enumerate(model.layers):
        at = f"transformer.h.{index}"
        for name, norm in (("ln_1", layer.attention_norm), ("ln_2", layer.mlp_norm)):
            yield from _with_bias(f"{at}.{name}", norm.weight, norm.bias)
        for name, product in (
            ("attn.c_attn", layer.qkv),
            ("attn.c_proj", layer.output),
            ("mlp.c_fc", layer.mlps[0].up),
            ("mlp.c_proj", layer.mlps[0].down),
        ):
            # This architecture stores [inputs, outputs].
            yield from _with_bias(f"{at}.{name}", product.weight.T, product.bias)


def _with_bias(name: str, weight: Float64, bias: Float64 | None) -> Named:
    assert bias is not None
    yield f"{name}.weight", weight
    yield f"{name}.bias", bias
