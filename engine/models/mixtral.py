"""Mixtral: Mistral's layers with a mixture of experts in place of the MLP.

Source: Jiang et al. 2024. Checkpoints have a tensor for each expert, or since transformers 5, which
renames them, one for all experts of a layer.
"""

from __future__ import annotations

from hal.engine.layers.builder import Builder
from hal.engine.layers.decoder import Decoder
from hal.engine.layers.experts import EXPERT, ExpertNames, Experts
from hal.engine.models.llama import llama_like


def build(build: Builder) -> Decoder:
    """The whole model."""
    return llama_like(build, _experts)


def _experts(build: Builder, layer: int) -> Experts:
    block = f"model.layers.{layer}.block_sparse_moe"
    expert = f"{block}.experts.{EXPERT}"
    split = ExpertNames(
        router=f"{block}.gate.weight",
        up=(f"{expert}.w1.weight", f"{expert}.w3.weight"),
        down=(f"{expert}.w2.weight",),
    )
    return Experts(build, (split, fused_names(f"model.layers.{layer}.mlp")))


def fused_names(mlp: str) -> ExpertNames:
    """How transformers 5 names the experts of any architecture."""
    return ExpertNames(
        router=f"{mlp}.gate.weight",
        up=(f"{mlp}.experts.gate_up_proj",),
        down=(f"{mlp}.experts.down_proj",),
    )
