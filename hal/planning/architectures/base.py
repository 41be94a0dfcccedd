"""What the readers of all architectures share: common keys, and the shape they end in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hal.dtypes import DType, parse_dtype
from hal.engine.config_fields import ConfigFields
from hal.errors import ModelError
from hal.kv import KVKind
from hal.planning.layers import AttentionShape, MlpShape
from hal.planning.shape import KVLayers, ModelShape, Weight

MAX_LAYERS = 10_000  # a damaged number must not become a list of that length


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """The sizes that every decoder has."""

    model_type: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int

    def attention(
        self, *, qkv_bias: bool = False, o_bias: bool = False, q_norm: int = 0, k_norm: int = 0
    ) -> AttentionShape:
        return AttentionShape(
            width=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            q_norm=q_norm,
            k_norm=k_norm,
        )

    def mlp(self, *, gated: bool = True, bias: bool = False) -> MlpShape:
        return MlpShape(
            width=self.hidden_size, intermediate=self.intermediate_size, gated=gated, bias=bias
        )


def require(fields: ConfigFields, *keys: str) -> None:
    """Raises ModelError naming every key that is missing; "a/b" is there when one of them is."""
    missing = [key for key in keys if fields.first(*key.split("/")) is None]
    if missing:
        model_type = fields.text("model_type", default="")
        named = f"; model_type {model_type!r} needs them" if model_type else ""
        raise ModelError(f"{fields.source} lacks {', '.join(missing)}{named}")


def checked(dims: Dims, source: str) -> Dims:
    """`dims`, if heads and layers make sense; raises ModelError."""
    if dims.num_layers > MAX_LAYERS:
        raise ModelError(f"{source}: {dims.num_layers} layers; at most {MAX_LAYERS} are possible")
    if dims.num_heads % dims.num_kv_heads:
        raise ModelError(
            f"{source}: {dims.num_heads} attention heads cannot share "
            f"{dims.num_kv_heads} key/value heads evenly"
        )
    if dims.head_dim < 1:
        raise ModelError(
            f"{source}: hidden size {dims.hidden_size} is smaller than {dims.num_heads} heads"
        )
    return dims


def kv_layers(dims: Dims, windows: Sequence[int | None]) -> tuple[KVLayers, ...]:
    """One entry for each window that occurs, in order of first appearance."""
    return tuple(
        KVLayers(
            kind=KVKind.FULL if window is None else KVKind.SLIDING,
            count=list(windows).count(window),
            num_kv_heads=dims.num_kv_heads,
            key_dim=dims.head_dim,
            value_dim=dims.head_dim,
            window=window,
        )
        for window in dict.fromkeys(windows)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What most decoders leave at these values."""

    rotary_dim: int | None = None  # None: the whole head
    mlp_widths: tuple[int, ...] | None = None  # None: gate, up and the activated product
    whole_widths: tuple[int, ...] = ()
    cut_sizes: tuple[int, ...] | None = None  # None: the MLP's width
    guess: str = ""
    notes: tuple[str, ...] = ()


def decoder(
    fields: ConfigFields,
    dims: Dims,
    weights: Iterable[Weight],
    kv: tuple[KVLayers, ...],
    extras: Extras = Extras(),
) -> ModelShape:
    """The shape of a decoder whose layers have ordinary heads."""
    q = dims.num_heads * dims.head_dim
    qkv = q + 2 * dims.num_kv_heads * dims.head_dim
    width = dims.intermediate_size
    mlp_widths = (2 * width, width) if extras.mlp_widths is None else extras.mlp_widths
    return ModelShape(
        model_type=dims.model_type,
        architecture=architecture(fields),
        hidden_size=dims.hidden_size,
        vocab_size=dims.vocab_size,
        num_layers=dims.num_layers,
        num_heads=dims.num_heads,
        num_kv_heads=dims.num_kv_heads,
        cut_sizes=(width,) if extras.cut_sizes is None else extras.cut_sizes,
        max_position_embeddings=dims.max_position_embeddings,
        dtype=dtype(fields),
        has_dtype=has_dtype(fields),
        weights=tuple(weights),
        kv=kv,
        dense_widths=(qkv, q, *mlp_widths),
        whole_widths=extras.whole_widths,
        attention_dim=2 * q,
        rotary_dim=dims.head_dim if extras.rotary_dim is None else extras.rotary_dim,
        guess=extras.guess,
        notes=extras.notes,
    )


def architecture(fields: ConfigFields) -> str:
    names = fields.texts("architectures")
    return names[0] if names else ""


def dtype(fields: ConfigFields) -> DType:
    # transformers writes "dtype" since version 5, "torch_dtype" before.
    return parse_dtype(fields.text("dtype", "torch_dtype", default="float32"))


def has_dtype(fields: ConfigFields) -> bool:
    return fields.first("dtype", "torch_dtype") is not None


def rotary_dim(fields: ConfigFields, head_dim: int, default: float = 1.0) -> int:
    """How many leading elements of a head are rotated."""
    rope = fields.section("rope_parameters")
    factor = fields.optional_number("partial_rotary_factor", "rotary_pct")
    if factor is None and rope is not None:
        factor = rope.optional_number("partial_rotary_factor")
    return int(head_dim * (default if factor is None else factor))
