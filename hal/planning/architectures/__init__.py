"""From config.json to a ModelShape, one reader a family; the registry is this table."""

from __future__ import annotations

from collections.abc import Callable

from hal.engine.config_fields import ConfigFields
from hal.planning.architectures import encoders, experts, gpt, llama_like
from hal.planning.architectures.usual import read_usual
from hal.planning.shape import ModelShape

_WITH_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")

READERS: dict[str, Callable[[ConfigFields], ModelShape]] = {
    **{name: llama_like.read_dense for name in llama_like.TRAITS if name not in _WITH_EXPERTS},
    **{name: llama_like.read_experts for name in _WITH_EXPERTS},
    "gpt2": gpt.read_gpt2,
    "gpt_bigcode": gpt.read_gpt_bigcode,
    "gptj": gpt.read_gptj,
    "gpt_neox": gpt.read_gpt_neox,
    "falcon": gpt.read_falcon,
    "deepseek_v2": experts.read_deepseek,
    "deepseek_v3": experts.read_deepseek,
    "dbrx": experts.read_dbrx,
    "t5": encoders.read_t5,
    "clip": encoders.read_clip,
}


def read_shape(fields: ConfigFields) -> ModelShape:
    """The shape of any config; raises ModelError naming the keys that are missing or wrong."""
    model_type = fields.text("model_type", default="")
    reader = READERS.get(model_type)
    if reader is not None:
        return reader(fields)
    if fields.section("text_config") is not None:
        return encoders.read_with_vision(fields, read_shape)
    return read_usual(fields)
