"""Models with an encoder: T5 (cross attention), CLIP, and language models with a vision tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from hal.engine.config_fields import ConfigFields
from hal.errors import ModelError
from hal.kv import KVKind
from hal.planning.architectures.base import (
    Dims,
    Extras,
    architecture,
    checked,
    decoder,
    dtype,
    has_dtype,
    require,
)
from hal.planning.layers import MlpShape, attention, embedding, mlp, norms, table, vector
from hal.planning.shape import KVLayers, ModelShape, Role, Weight

ReadShape = Callable[[ConfigFields], ModelShape]

# What text_config means where it leaves a key out: exporters write only what differs from these.
_TEXT_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "gemma3_text": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "vocab_size": 262208,
    },
}


def read_t5(fields: ConfigFields) -> ModelShape:
    """Self attention remembers the answer so far, cross attention the whole input."""
    require(fields, "num_layers", "d_model", "d_kv", "d_ff", "num_heads", "vocab_size")
    num_layers = fields.positive("num_layers")
    dims = checked(
        Dims(
            model_type=fields.text("model_type"),
            hidden_size=fields.positive("d_model"),
            vocab_size=fields.positive("vocab_size"),
            num_layers=fields.positive("num_decoder_layers", default=num_layers),
            num_heads=fields.positive("num_heads"),
            num_kv_heads=fields.positive("num_heads"),
            head_dim=fields.positive("d_kv"),
            intermediate_size=fields.positive("d_ff"),
            max_position_embeddings=fields.positive("n_positions", default=512),
        ),
        fields.source,
    )
    gated = fields.text("feed_forward_proj", default="relu").startswith("gated")
    kinds = (KVKind.FULL, KVKind.CROSS)
    kv = tuple(_t5_kv(kind, dims) for kind in kinds)
    width = dims.intermediate_size
    return decoder(
        fields,
        dims,
        list(_t5_weights(fields, dims, num_layers, gated)),
        kv,
        Extras(
            rotary_dim=0,
            mlp_widths=(2 * width, width) if gated else (width, width),
            notes=("encoder-decoder: --ctx is taken for the input and for the answer, each",),
        ),
    )


def _t5_kv(kind: KVKind, dims: Dims) -> KVLayers:
    return KVLayers(
        kind=kind,
        count=dims.num_layers,
        num_kv_heads=dims.num_heads,
        key_dim=dims.head_dim,
        value_dim=dims.head_dim,
    )


def _t5_weights(
    fields: ConfigFields, dims: Dims, num_encoder: int, gated: bool
) -> Iterator[Weight]:
    width, num_decoder = dims.hidden_size, dims.num_layers
    buckets = fields.positive("relative_attention_num_buckets", default=32)
    tied = fields.flag("tie_word_embeddings", default=True)
    yield from embedding(dims.vocab_size, width, tied=tied)
    yield vector("relative_bias", buckets * dims.num_heads, 2)
    # The encoder reads the input once: no token of the answer is multiplied with it.
    encoder = [
        *attention(dims.attention(), num_encoder, "encoder"),
        *mlp(dims.mlp(gated=gated), num_encoder, "encoder.mlp"),
    ]
    yield from (replace(weight, active=0) for weight in encoder)
    yield norms("encoder.norms", width, 2 * num_encoder + 1)
    yield from attention(dims.attention(), num_decoder, "decoder")
    yield from attention(dims.attention(), num_decoder, "cross")
    yield from mlp(dims.mlp(gated=gated), num_decoder, "decoder.mlp")
    yield norms("decoder.norms", width, 3 * num_decoder + 1)


_TOWER_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A plain transformer that reads a picture (or, in CLIP, a text) at once."""

    width: int
    intermediate: int
    num_layers: int
    num_heads: int

    @classmethod
    def read(cls, fields: ConfigFields) -> Tower:
        require(fields, *_TOWER_KEYS)
        return cls(
            width=fields.positive("hidden_size"),
            intermediate=fields.positive("intermediate_size"),
            num_layers=fields.positive("num_hidden_layers"),
            num_heads=fields.positive("num_attention_heads"),
        )

    def layers(self, name: str) -> Iterator[Weight]:
        """Attention and MLP with biases, two norms; whole on every rank and never quantised."""
        dims = Dims(
            model_type="",
            hidden_size=self.width,
            vocab_size=1,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.width // self.num_heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=1,
        )
        shape = MlpShape(width=self.width, intermediate=self.intermediate, gated=False, bias=True)
        parts = [
            *attention(dims.attention(qkv_bias=True, o_bias=True), self.num_layers, name),
            *mlp(shape, self.num_layers, f"{name}.mlp"),
            norms(f"{name}.norms", self.width, 2 * self.num_layers, bias=True),
        ]
        return (_beside(part) for part in parts)


def _beside(weight: Weight) -> Weight:
    """A weight of a tower: no token of the answer is multiplied with it."""
    whole = vector(weight.name, weight.rows)
    return replace(weight, role=Role.OTHER, parallel=whole.parallel, heads=0, active=0)


def vision_weights(fields: ConfigFields) -> Iterator[Weight]:
    """A CLIP or SigLIP vision tower."""
    is_siglip = fields.text("model_type", default="").startswith("siglip")
    tower = Tower.read(fields)
    patch = fields.positive("patch_size")
    num_patches = (fields.positive("image_size") // patch) ** 2
    yield _beside(vector("vision.patches", tower.width * 3 * patch * patch))
    if is_siglip:
        yield _beside(vector("vision.patches.bias", tower.width))
    else:
        yield _beside(vector("vision.class", tower.width))
        yield _beside(norms("vision.norm_before", tower.width, 1, bias=True))
    yield _beside(table("vision.positions", num_patches + (not is_siglip), tower.width))
    yield from tower.layers("vision")
    yield _beside(norms("vision.norm_after", tower.width, 1, bias=True))


def read_clip(fields: ConfigFields) -> ModelShape:
    """Two towers and no text generated, so nothing is remembered."""
    text, vision = _section(fields, "text_config"), _section(fields, "vision_config")
    tower = Tower.read(text)
    vocab_size = text.positive("vocab_size", default=49408)
    positions = text.positive("max_position_embeddings", default=77)
    joint = fields.positive("projection_dim", default=512)
    vision_width = vision.positive("hidden_size")
    weights = [
        table("text.embedding", vocab_size, tower.width),
        table("text.positions", positions, tower.width),
        *tower.layers("text"),
        norms("text.norm", tower.width, 1, bias=True),
        *vision_weights(vision),
        _beside(vector("projections", joint * (tower.width + vision_width) + 1)),
    ]
    dims = Dims(
        model_type="clip",
        hidden_size=tower.width,
        vocab_size=vocab_size,
        num_layers=tower.num_layers,
        num_heads=tower.num_heads,
        num_kv_heads=tower.num_heads,
        head_dim=tower.width // tower.num_heads,
        intermediate_size=tower.intermediate,
        max_position_embeddings=positions,
    )
    width = tower.intermediate
    note = "clip embeds texts and pictures and generates nothing: no KV cache"
    extras = Extras(rotary_dim=0, mlp_widths=(width, width), notes=(note,))
    return decoder(fields, dims, weights, (), extras)


def read_with_vision(fields: ConfigFields, read_text: ReadShape) -> ModelShape:
    """text_config read by `read_text`, and the vision tower and projector beside it."""
    text = _section(fields, "text_config")
    model_type = text.text("model_type", default="llama")
    shape = read_text(
        text.with_defaults({"model_type": model_type}).with_defaults(
            _TEXT_DEFAULTS.get(model_type, {})
        )
    )
    vision = fields.section("vision_config")
    outer = fields.text("model_type", default="")
    beside = _vision(outer, vision, shape.hidden_size)
    dtype_source = fields if fields.first("dtype", "torch_dtype") is not None else text
    return replace(
        shape,
        model_type=outer,
        architecture=architecture(fields),
        dtype=dtype(dtype_source),
        has_dtype=has_dtype(dtype_source),
        weights=(*shape.weights, *beside.weights),
        notes=(*shape.notes, beside.note),
    )


@dataclass(frozen=True, slots=True)
class _Vision:
    weights: tuple[Weight, ...]
    note: str


def _vision(outer: str, vision: ConfigFields | None, width: int) -> _Vision:
    known = vision is not None and vision.text("model_type", default="") in (
        "clip_vision_model",
        "siglip_vision_model",
    )
    if not known or vision is None or outer not in ("llava", "gemma3"):
        return _Vision((), "the vision tower is not counted: only its text model is planned")
    tower_width = vision.positive("hidden_size")
    projector: tuple[Weight, ...]
    if outer == "llava":
        projector = (
            _beside(vector("projector.1", width * (tower_width + 1))),
            _beside(vector("projector.2", width * (width + 1))),
        )
    else:
        projector = (_beside(vector("projector", tower_width * (width + 1))),)
    note = "a picture's tokens count as context; the vision tower is whole on every device"
    return _Vision((*vision_weights(vision), *projector), note)


def _section(fields: ConfigFields, key: str) -> ConfigFields:
    section = fields.section(key)
    if section is None:
        raise ModelError(f"{fields.source}: {key!r} must be an object; it is missing")
    return section
