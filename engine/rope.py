"""Rotary position frequencies for every scaling that checkpoints ask for, in float64 on the host.

Sources: RoPE (Su et al. 2021), linear interpolation (kaiokendev 2023), dynamic NTK (bloc97 and
emozilla 2023), YaRN (Peng et al. 2023), LongRoPE (Ding et al. 2024), Llama 3.1's published rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from hal.engine.config_fields import ConfigFields
from hal.errors import ModelError, UnsupportedError

Float64Array = npt.NDArray[np.float64]


class RopeKind(StrEnum):
    """The values of `rope_type` in config.json (`su` is LongRoPE's older name)."""

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary settings; `attention_factor` None means the scaling's own rule."""

    theta: float = 10_000.0
    kind: RopeKind = RopeKind.DEFAULT
    max_position_embeddings: int
    original_max_position: int
    partial_rotary_factor: float = 1.0
    factor: float = 1.0
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def rotary_dim(self, head_dim: int) -> int:
        """How many leading elements of a head are rotated."""
        return int(head_dim * self.partial_rotary_factor)


@dataclass(frozen=True, slots=True)
class RopeFrequencies:
    """inv_freq [rotary_dim / 2], and the scale of both cos and sin."""

    inv_freq: Float64Array
    attention_scaling: float


def rope_frequencies(rope: RopeConfig, head_dim: int, max_len: int) -> RopeFrequencies:
    """Frequencies for sequences of up to `max_len` tokens.

    `dynamic` and `longrope` depend on the length; they are fixed once for the longest sequence
    that will be served, so that a token's rotation never depends on its batch neighbours.
    """
    dim = rope.rotary_dim(head_dim)
    match rope.kind:
        case RopeKind.DEFAULT:
            return RopeFrequencies(_inverse(rope.theta, dim), 1.0)
        case RopeKind.LINEAR:
            return RopeFrequencies(_inverse(rope.theta, dim) / rope.factor, 1.0)
        case RopeKind.DYNAMIC:
            return RopeFrequencies(_inverse(_dynamic_theta(rope, dim, max_len), dim), 1.0)
        case RopeKind.LLAMA3:
            return RopeFrequencies(_llama3(rope, _inverse(rope.theta, dim)), 1.0)
        case RopeKind.YARN:
            return RopeFrequencies(_yarn(rope, dim), _yarn_attention(rope))
        case RopeKind.LONGROPE:
            return RopeFrequencies(_longrope(rope, dim, max_len), _longrope_attention(rope))


def _inverse(theta: float, dim: int) -> Float64Array:
    exponents = np.arange(0, dim, 2, dtype=np.float64) / dim
    return np.asarray(theta**-exponents, dtype=np.float64)


def _dynamic_theta(rope: RopeConfig, dim: int, max_len: int) -> float:
    stretch = max(max_len, rope.max_position_embeddings) / rope.max_position_embeddings
    scale = rope.factor * stretch - (rope.factor - 1)
    return float(rope.theta * scale ** (dim / (dim - 2)))


def _llama3(rope: RopeConfig, inv_freq: Float64Array) -> Float64Array:
    # How many turns a pair makes over the original context decides whether it is stretched.
    turns = rope.original_max_position * inv_freq / (2 * math.pi)
    band = rope.high_freq_factor - rope.low_freq_factor
    keep = np.clip((turns - rope.low_freq_factor) / band, 0.0, 1.0)
    return keep * inv_freq + (1 - keep) * inv_freq / rope.factor


def _yarn(rope: RopeConfig, dim: int) -> Float64Array:
    inv_freq = _inverse(rope.theta, dim)
    low = _yarn_dim(rope, dim, rope.beta_fast)
    high = _yarn_dim(rope, dim, rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the published code's guard against a ramp without width
    ramp = np.clip((np.arange(dim // 2, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
    return ramp * inv_freq / rope.factor + (1 - ramp) * inv_freq


def _yarn_dim(rope: RopeConfig, dim: int, num_turns: float) -> float:
    """The (fractional) pair that turns `num_turns` times over the original context."""
    wavelength = rope.original_max_position / (num_turns * 2 * math.pi)
    return dim * math.log(wavelength) / (2 * math.log(rope.theta))


def _yarn_attention(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(rope: RopeConfig, dim: int, max_len: int) -> Float64Array:
    is_long = max_len > rope.original_max_position
    factors = np.asarray(rope.long_factor if is_long else rope.short_factor, dtype=np.float64)
    if factors.shape != (dim // 2,):
        name = "long_factor" if is_long else "short_factor"
        raise ModelError(f"longrope: {name} has {factors.size} entries; {dim // 2} are needed")
    return _inverse(rope.theta, dim) / factors


def _longrope_attention(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position))


def read_rope(
    fields: ConfigFields, max_position_embeddings: int, default_theta: float = 10_000.0
) -> RopeConfig:
    """Rotary settings of a config.json, in either generation of keys."""
    # transformers writes rope_parameters (theta inside) since version 5, rope_scaling before.
    scaling = fields.section("rope_parameters", "rope_scaling") or ConfigFields({}, fields.source)
    kind = _rope_kind(scaling)
    theta = scaling.number("rope_theta", default=fields.number("rope_theta", default=default_theta))
    partial = scaling.number(
        "partial_rotary_factor", default=fields.number("partial_rotary_factor", default=1.0)
    )
    original = fields.positive(
        "original_max_position_embeddings",
        default=scaling.positive(
            "original_max_position_embeddings", default=max_position_embeddings
        ),
    )
    rope = RopeConfig(
        theta=theta,
        kind=kind,
        max_position_embeddings=max_position_embeddings,
        original_max_position=original,
        partial_rotary_factor=partial,
        factor=_factor(scaling, kind, max_position_embeddings / original),
        attention_factor=scaling.optional_number("attention_factor"),
        low_freq_factor=scaling.number("low_freq_factor", default=1.0),
        high_freq_factor=scaling.number("high_freq_factor", default=4.0),
        beta_fast=scaling.number("beta_fast", default=32.0),
        beta_slow=scaling.number("beta_slow", default=1.0),
        mscale=scaling.number("mscale", default=0.0),
        mscale_all_dim=scaling.number("mscale_all_dim", default=0.0),
        truncate=scaling.flag("truncate", default=True),
        short_factor=scaling.numbers("short_factor"),
        long_factor=scaling.numbers("long_factor"),
    )
    _check_rope(rope, scaling.source)
    return rope


def _rope_kind(scaling: ConfigFields) -> RopeKind:
    if scaling.section_names():
        names = ", ".join(scaling.section_names())
        raise UnsupportedError(
            f"{scaling.source}: not supported yet: rotary settings per layer type ({names})"
        )
    name = scaling.text("rope_type", "type", default="default")
    name = {"su": "longrope"}.get(name, name)
    if name not in set(RopeKind):
        known = ", ".join(RopeKind)
        raise UnsupportedError(
            f"{scaling.source}: not supported yet: rope_type {name!r}; known: {known}"
        )
    return RopeKind(name)


def _factor(scaling: ConfigFields, kind: RopeKind, implied: float) -> float:
    """The stretch; YaRN and LongRoPE may leave it to the ratio of the two context lengths."""
    if kind is RopeKind.DEFAULT:
        return 1.0
    if kind in (RopeKind.YARN, RopeKind.LONGROPE):
        return scaling.number("factor", default=implied)
    return scaling.number("factor")


def _check_rope(rope: RopeConfig, source: str) -> None:
    if rope.theta <= 1 or rope.factor <= 0:
        raise ModelError(
            f"{source}: rope_theta {rope.theta:g} must be above 1 "
            f"and factor {rope.factor:g} above 0"
        )
    if not 0 < rope.partial_rotary_factor <= 1:
        raise ModelError(
            f"{source}: partial_rotary_factor {rope.partial_rotary_factor:g} is not in (0, 1]"
        )
    if rope.kind is RopeKind.LLAMA3 and rope.high_freq_factor <= rope.low_freq_factor:
        raise ModelError(
            f"{source}: high_freq_factor {rope.high_freq_factor:g} must be above "
            f"low_freq_factor {rope.low_freq_factor:g}"
        )
