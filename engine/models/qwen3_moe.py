"""Qwen3-MoE: Qwen3's layers with a mixture of experts, and plain MLPs in the layers that
decoder_sparse_step and mlp_only_layers leave dense.

Source: Yang et al. 2025. Checkpoint layouts are as of Mixtral, under other names.
"""

from __future__ import annotations

from hal.engine.layers.builder import Builder
from hal.engine.layers.decoder import Decoder, MlpLike
from hal.engine.layers.experts import EXPERT, ExpertNames, Experts
from hal.engine.models.llama import gated_mlp, llama_like
from hal.engine.models.mixtral import fused_names


def build(build: Builder) -> Decoder:
    """The whole model."""
    return llama_like(build, _mlp)


def _mlp(build: Builder, layer: int) -> MlpLike:
    if not build.config.has_experts(layer):
        return gated_mlp(build, layer)
    mlp = f"model.layers.{layer}.mlp"
    expert = f"{mlp}.experts.{EXPERT}"
    split = ExpertNames(
        router=f"{mlp}.gate.weight",
        up=(f"{expert}.gate_proj.weight", f"{expert}.up_proj.weight"),
        down=(f"{expert}.down_proj.weight",),
    )
    return Experts(build, (split, fused_names(mlp)))
