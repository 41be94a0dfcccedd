"""What config.json says about a mixture of experts, by each architecture's own keys."""

from __future__ import annotations

from dataclasses import dataclass

from hal.engine.config_fields import ConfigFields
from hal.errors import ModelError, UnsupportedError

WITH_EXPERTS = ("mixtral", "qwen3_moe")

# An expert that every token meets, by the names that architectures and their derivatives use.
_SHARED = (
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "n_shared_experts",
    "num_shared_experts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """intermediate_size: of one expert; norm_topk_prob: a token's weights are scaled to sum to 1.

    layers[i]: whether layer i has experts; where not, it has one MLP.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    norm_topk_prob: bool
    layers: tuple[bool, ...]


def read_experts(fields: ConfigFields, model_type: str, num_layers: int) -> ExpertsConfig | None:
    """None where no layer has any; raises ModelError, and UnsupportedError naming the key."""
    if model_type not in WITH_EXPERTS:
        return None
    for key in _SHARED:
        if fields.first(key):
            raise UnsupportedError(
                f"{fields.source}: not supported yet: {key}={fields.first(key)!r}; the experts of "
                f"{model_type} are all chosen by the router"
            )
    num_experts = fields.positive(
        "num_local_experts", "num_experts", default=8 if model_type == "mixtral" else 128
    )
    top_k = fields.positive("num_experts_per_tok", default=2 if model_type == "mixtral" else 8)
    if top_k > num_experts:
        raise ModelError(
            f"{fields.source}: 'num_experts_per_tok' is {top_k}; there are {num_experts} experts"
        )
    read = _read_mixtral if model_type == "mixtral" else _read_qwen3
    return read(fields, num_experts, top_k, num_layers)


def _read_mixtral(
    fields: ConfigFields, num_experts: int, top_k: int, num_layers: int
) -> ExpertsConfig:
    return ExpertsConfig(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=fields.positive("intermediate_size"),
        norm_topk_prob=True,
        layers=(True,) * num_layers,
    )


def _read_qwen3(
    fields: ConfigFields, num_experts: int, top_k: int, num_layers: int
) -> ExpertsConfig | None:
    """Experts in every decoder_sparse_step-th layer, but not in mlp_only_layers."""
    if fields.flag("use_sliding_window", default=False):
        raise UnsupportedError(
            f"{fields.source}: not supported yet: use_sliding_window=true in a model with experts; "
            "set it to false where texts are shorter than 'sliding_window'"
        )
    step = fields.positive("decoder_sparse_step", default=1)
    dense = fields.numbers("mlp_only_layers")
    layers = tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers))
    if not any(layers):
        return None
    return ExpertsConfig(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=fields.positive("moe_intermediate_size", default=768),
        norm_topk_prob=fields.flag("norm_topk_prob", default=False),
        layers=layers,
    )
