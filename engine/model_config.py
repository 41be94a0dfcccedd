"""What a checkpoint's config.json says about the model, with every default filled in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hal.dtypes import DType, parse_dtype
from hal.engine.config_fields import ConfigFields
from hal.engine.experts_config import ExpertsConfig, read_experts
from hal.engine.rope import RopeConfig, read_rope
from hal.errors import ModelError, UnsupportedError

CONFIG_FILE = "config.json"

_MAX_LAYERS = 10_000  # a damaged number must not become a list of that length


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One decoder-only model. `rope` is None where positions are learned embeddings.

    windows[i] is the number of latest positions that layer i sees, its own included (None: all).
    dtype is what the checkpoint declares; float32 where it says nothing.
    """

    model_type: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float
    activation: str
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    rope: RopeConfig | None
    dtype: DType
    experts: ExpertsConfig | None = None

    def has_experts(self, layer: int) -> bool:
        """Whether they stand in the place of the layer's MLP."""
        return self.experts is not None and self.experts.layers[layer]

    def of_layers(self, layers: Sequence[int]) -> ModelConfig:
        """The same model made of some of its layers, in any order."""
        experts = self.experts
        if experts is not None:
            experts = replace(experts, layers=tuple(experts.layers[i] for i in layers))
        windows = tuple(self.windows[i] for i in layers)
        return replace(self, num_layers=len(layers), windows=windows, experts=experts)


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What a key means when config.json leaves it out: transformers' value for that model_type."""

    max_position_embeddings: int = 2048
    num_kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: hidden_size / num_heads
    qkv_bias: bool = False
    qk_norm: bool = False
    activation: str = "silu"
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    has_window: bool = False
    sliding_window: int | None = None
    has_window_layers: bool = False


_DEFAULTS = {
    "llama": _Defaults(),
    "mistral": _Defaults(
        max_position_embeddings=4096 * 32, num_kv_heads=8, has_window=True, sliding_window=4096
    ),
    "mixtral": _Defaults(
        max_position_embeddings=4096 * 32,
        num_kv_heads=8,
        norm_eps=1e-5,
        rope_theta=1e6,
        has_window=True,
    ),
    "qwen2": _Defaults(
        max_position_embeddings=32768,
        num_kv_heads=32,
        qkv_bias=True,
        has_window=True,
        sliding_window=4096,
        has_window_layers=True,
    ),
    "qwen3": _Defaults(
        max_position_embeddings=32768,
        num_kv_heads=32,
        head_dim=128,
        qk_norm=True,
        has_window=True,
        sliding_window=4096,
        has_window_layers=True,
    ),
    "qwen3_moe": _Defaults(max_position_embeddings=32768, num_kv_heads=4, qk_norm=True),
}

_WITH_BIASES = ("llama", "qwen3", "qwen3_moe")


def read_model_config(folder: Path, supported: Collection[str]) -> ModelConfig:
    """Parse `folder`/config.json.

    Raises ModelError when the model_type is not in `supported` or a key is missing or wrong, and
    UnsupportedError for a setting of a supported model that is not honoured yet.
    """
    return parse_model_config(ConfigFields.read(folder / CONFIG_FILE), supported)


def parse_model_config(fields: ConfigFields, supported: Collection[str]) -> ModelConfig:
    """`read_model_config` of a config.json that was read already."""
    model_type = fields.text("model_type")
    if model_type not in supported:
        known = ", ".join(sorted(supported))
        raise ModelError(f"{fields.source}: model_type {model_type!r} is not one of: {known}")
    _refuse_quantized(fields)
    config = _read_gpt2(fields) if model_type == "gpt2" else _read_llama_like(fields, model_type)
    _check_heads(config, fields.source)
    return config


def _read_llama_like(fields: ConfigFields, model_type: str) -> ModelConfig:
    defaults = _DEFAULTS.get(model_type, _Defaults())
    hidden_size = fields.positive("hidden_size")
    num_heads = fields.positive("num_attention_heads")
    num_layers = _num_layers(fields, "num_hidden_layers")
    head_dim = fields.positive("head_dim", default=defaults.head_dim or hidden_size // num_heads)
    max_position = fields.positive(
        "max_position_embeddings", default=defaults.max_position_embeddings
    )
    has_bias = model_type in _WITH_BIASES and fields.flag("attention_bias", default=False)
    return ModelConfig(
        model_type=model_type,
        architecture=_architecture(fields),
        vocab_size=fields.positive("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, defaults, num_heads),
        head_dim=head_dim,
        max_position_embeddings=max_position,
        norm_eps=fields.number("rms_norm_eps", default=defaults.norm_eps),
        activation=fields.text("hidden_act", default=defaults.activation),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        qkv_bias=defaults.qkv_bias or has_bias,
        o_bias=has_bias,
        mlp_bias=model_type == "llama" and fields.flag("mlp_bias", default=False),
        qk_norm=defaults.qk_norm,
        windows=_windows(fields, defaults, num_layers),
        rope=read_rope(fields, max_position, defaults.rope_theta),
        dtype=_dtype(fields),
        experts=read_experts(fields, model_type, num_layers),
    )


def _read_gpt2(fields: ConfigFields) -> ModelConfig:
    if not fields.flag("scale_attn_weights", default=True):
        raise _not_yet(fields, "scale_attn_weights=false")
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if fields.flag(key, default=False):
            raise _not_yet(fields, f"{key}=true")
    hidden_size = fields.positive("n_embd", "hidden_size")
    num_heads = fields.positive("n_head", "num_attention_heads")
    num_layers = _num_layers(fields, "n_layer", "num_hidden_layers")
    return ModelConfig(
        model_type="gpt2",
        architecture=_architecture(fields),
        vocab_size=fields.positive("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive("n_inner", default=4 * hidden_size),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=fields.positive(
            "n_positions", "max_position_embeddings", default=1024
        ),
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5),
        activation=fields.text("activation_function", default="gelu_new"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=True),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        qk_norm=False,
        windows=(None,) * num_layers,
        rope=None,
        dtype=_dtype(fields),
    )


def _num_layers(fields: ConfigFields, *keys: str) -> int:
    num_layers = fields.positive(*keys)
    if num_layers > _MAX_LAYERS:
        raise ModelError(
            f"{fields.source}: {num_layers} layers; at most {_MAX_LAYERS} are possible"
        )
    return num_layers


def _architecture(fields: ConfigFields) -> str:
    architectures = fields.texts("architectures")
    return architectures[0] if architectures else ""


def _num_kv_heads(fields: ConfigFields, defaults: _Defaults, num_heads: int) -> int:
    # A written null means "as many as heads"; a key left out means the model_type's default.
    if fields.has("num_key_value_heads"):
        return fields.positive("num_key_value_heads", default=num_heads)
    return defaults.num_kv_heads or num_heads


def _dtype(fields: ConfigFields) -> DType:
    # transformers writes "dtype" since version 5, "torch_dtype" before.
    return parse_dtype(fields.text("dtype", "torch_dtype", default="float32"))


def _windows(fields: ConfigFields, defaults: _Defaults, num_layers: int) -> tuple[int | None, ...]:
    if not defaults.has_window:
        return (None,) * num_layers
    window = fields.optional_integer("sliding_window")
    if window is None and not fields.has("sliding_window"):
        window = defaults.sliding_window
    if window is not None and window <= 0:
        raise ModelError(f"{fields.source}: 'sliding_window' must be above 0; it is {window}")
    if not defaults.has_window_layers:
        return (window,) * num_layers
    if not fields.flag("use_sliding_window", default=False):
        window = None
    return _layer_windows(fields, window, num_layers)


def _layer_windows(
    fields: ConfigFields, window: int | None, num_layers: int
) -> tuple[int | None, ...]:
    layer_types = fields.texts("layer_types")
    if not layer_types:
        first = fields.integer("max_window_layers", default=28)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if len(layer_types) != num_layers:
        raise ModelError(
            f"{fields.source}: 'layer_types' has {len(layer_types)} entries for {num_layers} layers"
        )
    unknown = set(layer_types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise _not_yet(fields, f"layer types {', '.join(sorted(unknown))}")
    if window is None and "sliding_attention" in layer_types:
        raise ModelError(
            f"{fields.source}: 'layer_types' has sliding_attention, but sliding_window is null or "
            "use_sliding_window is false"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _check_heads(config: ModelConfig, source: str) -> None:
    if config.num_heads % config.num_kv_heads:
        raise ModelError(
            f"{source}: {config.num_heads} attention heads cannot share "
            f"{config.num_kv_heads} key/value heads evenly"
        )
    if config.head_dim * config.num_heads != config.hidden_size and config.model_type == "gpt2":
        raise ModelError(
            f"{source}: hidden size {config.hidden_size} is not a multiple of "
            f"{config.num_heads} heads"
        )
    if config.rope is not None and config.head_dim % 2:
        raise ModelError(f"{source}: head_dim {config.head_dim} is odd; rotation needs pairs")


def _refuse_quantized(fields: ConfigFields) -> None:
    section = fields.section("quantization_config")
    if section is not None:
        method = section.text("quant_method", default="an unnamed method")
        raise _not_yet(fields, f"a checkpoint quantized with {method}")


def _not_yet(fields: ConfigFields, what: str) -> UnsupportedError:
    return UnsupportedError(f"{fields.source}: not supported yet: {what}")
