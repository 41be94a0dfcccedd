"""One file per architecture, named after its model_type; the registry is this table."""

from __future__ import annotations

from collections.abc import Callable

from hal.engine.layers.builder import Builder
from hal.engine.layers.decoder import Decoder
from hal.engine.models import gpt2, llama, mistral, mixtral, qwen2, qwen3, qwen3_moe

MODELS: dict[str, Callable[[Builder], Decoder]] = {
    "gpt2": gpt2.build,
    "llama": llama.build,
    "mistral": mistral.build,
    "mixtral": mixtral.build,
    "qwen2": qwen2.build,
    "qwen3": qwen3.build,
    "qwen3_moe": qwen3_moe.build,
}
