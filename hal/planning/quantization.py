"""Bytes of a weight as it is stored: as is, quantised in the checkpoint, or planned to be."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hal.dtypes import DType
from hal.engine.config_fields import ConfigFields
from hal.errors import ConfigError
from hal.planning.shape import Role, Weight
from hal.weights import FORMAT_NAMES, UNQUANTIZED, WEIGHT_FORMATS, WeightFormat

_WHOLE_ROW = 0
_METHODS = "gptq, awq, fp8, compressed-tensors, bitsandbytes, mxfp4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How the linear layers and experts are stored; all else stays in the model's dtype.

    group_size: inputs that share a scale; 0: one scale a row
    block_rows: rows that share a scale as well (block-wise fp8)
    scale_bits, zero_bits: of each scale and zero point; index_bits: of each input's group index
    compute: the type that the products may run in, None where only storage is quantised
    head: how the matrix that makes logits is stored, tied or not, where that is another way
    """

    name: str
    weight_bits: int
    group_size: int = _WHOLE_ROW
    block_rows: int = 1
    scale_bits: int = 16
    zero_bits: int = 0
    index_bits: int = 0
    compute: DType | None = None
    quantizes_head: bool = False
    skipped: tuple[str, ...] = ()
    head: Scheme | None = None

    def of(self, weight: Weight) -> Scheme | None:
        """How `weight` is stored; None: in the model's dtype."""
        if weight.role is Role.HEAD:
            return self if self.quantizes_head and weight.name == "head" else self.head
        if weight.role not in (Role.LINEAR, Role.EXPERT):
            return None
        is_skipped = any(re.search(pattern, weight.name) for pattern in self.skipped)
        return None if is_skipped else self

    def num_bytes(self, rows: int, columns: int) -> int:
        """Of one quantised matrix with its scales."""
        groups = -(-columns // self.group_size) if self.group_size else 1
        scales = -(-rows // self.block_rows) * groups
        bits = rows * columns * self.weight_bits
        bits += scales * (self.scale_bits + self.zero_bits) + columns * self.index_bits
        return -(-bits // 8)


def weight_bytes(weight: Weight, tp: int, dtype: DType, scheme: Scheme | None) -> int:
    """Of all copies of this weight on one of `tp` ranks."""
    rows, columns = weight.rank_rows(tp), weight.rank_columns(tp)
    stored = None if scheme is None else scheme.of(weight)
    if stored is not None:
        return stored.num_bytes(rows, columns) * weight.count
    return dtype.num_bytes(rows * columns * weight.count)


def _as_stored(format: WeightFormat, head: Scheme | None = None) -> Scheme:
    """As native kernels store it, on CPUs and accelerators alike."""
    return Scheme(
        name=str(format),
        weight_bits=format.codes.bits,
        group_size=format.group_size or _WHOLE_ROW,
        scale_bits=16 if format.group_size else 32,
        zero_bits=8 if format.has_zeros else 0,
        compute=None if format.keeps_activations else DType.INT8,
        head=head,
    )


def planned_scheme(name: str) -> Scheme | None:
    """The scheme called `name`, None for "none"; raises ConfigError."""
    if name == UNQUANTIZED:
        return None
    if name in WEIGHT_FORMATS:
        format = WEIGHT_FORMATS[name]
        return _as_stored(format, _as_stored(format.head))
    raise ConfigError(f"--quantization {name!r} is not known; choose one of {FORMAT_NAMES}")


def stored_scheme(fields: ConfigFields) -> Scheme | None:
    """How config.json says the checkpoint is quantised; raises ConfigError for unknown methods."""
    section = fields.section("quantization_config", "compression_config")
    if section is None:
        return None
    method = section.text("quant_method", default="")
    match method.replace("_", "-"):
        case "gptq":
            return _gptq(section)
        case "awq":
            bits = section.positive("bits", "w_bit", default=4)
            group = section.integer("group_size", "q_group_size", default=128)
            return Scheme(
                name=f"awq-int{bits}",
                weight_bits=bits,
                group_size=max(group, 0),
                zero_bits=bits if section.flag("zero_point", default=True) else 0,
            )
        case "fp8" | "fbgemm-fp8":
            return _fp8(section)
        case "compressed-tensors":
            return _compressed(section)
        case "bitsandbytes":
            return _bitsandbytes(section)
        case "mxfp4":
            return Scheme(
                name="mxfp4",
                weight_bits=4,
                group_size=32,
                scale_bits=8,
                skipped=(r"attention|shared|^mlp",),  # only experts are
            )
    raise ConfigError(
        f"{section.source}: quant_method {method!r} is not known to planning; known: {_METHODS}. "
        "Plan the unquantised model with --quantization int8, fp8 or int4 instead"
    )


def _gptq(section: ConfigFields) -> Scheme:
    bits = section.positive("bits")
    group = section.integer("group_size", default=-1)
    return Scheme(
        name=f"gptq-int{bits}",
        weight_bits=bits,
        group_size=max(group, 0),
        zero_bits=bits,
        index_bits=32,  # g_idx, written also where groups follow one another
        quantizes_head=section.flag("lm_head", default=False),
    )


def _fp8(section: ConfigFields) -> Scheme:
    block = section.numbers("weight_block_size")
    rows, columns = (int(block[0]), int(block[1])) if len(block) == 2 else (1, _WHOLE_ROW)
    return Scheme(
        name="fp8",
        weight_bits=8,
        group_size=columns,
        block_rows=rows,
        scale_bits=32,
        compute=DType.FLOAT8_E4M3FN,
    )


def _compressed(section: ConfigFields) -> Scheme:
    """The first group that says how weights are stored."""
    groups = section.section("config_groups") or ConfigFields({}, section.source)
    for name in groups.section_names():
        group = groups.section(name)
        weights = None if group is None else group.section("weights")
        if weights is None:
            continue
        bits = weights.positive("num_bits")
        is_float = weights.text("type", default="int") == "float"
        size = weights.optional_integer("group_size") or _WHOLE_ROW
        activations = None if group is None else group.section("input_activations")
        compute = None
        if activations is not None and bits == 8:
            compute = DType.FLOAT8_E4M3FN if is_float else DType.INT8
        return Scheme(
            name=f"compressed-tensors-{'fp' if is_float else 'int'}{bits}",
            weight_bits=bits,
            group_size=max(size, 0),
            zero_bits=0 if weights.flag("symmetric", default=True) else bits,
            compute=compute,
        )
    raise ConfigError(f"{section.source}: 'config_groups' says nothing of weights")


def _bitsandbytes(section: ConfigFields) -> Scheme:
    if section.flag("load_in_8bit", default=False):
        return Scheme(name="bitsandbytes-int8", weight_bits=8, scale_bits=32, compute=DType.INT8)
    # A second quantisation leaves 8 bits a scale, and a float32 for 256 of them.
    is_double = section.flag("bnb_4bit_use_double_quant", default=False)
    kind = section.text("bnb_4bit_quant_type", default="fp4")
    return Scheme(
        name=f"bitsandbytes-{kind}",
        weight_bits=4,
        group_size=64,
        scale_bits=9 if is_double else 32,
    )
