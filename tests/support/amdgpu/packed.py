"""Packed instructions: two results from the halves of each operand (CDNA3 ISA, "Packed Math" and
"VOP3P Instructions")."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from amdgpu.assembly import Instruction
from amdgpu.errors import UnknownInstructionError
from amdgpu.floats import fma32, maximum, minimum
from amdgpu.operands import Operand, literal_bits, parse_operand
from amdgpu.semantics import Function, Operation, table
from amdgpu.step import Step
from amdgpu.values import Read, numpy_type, reader, spread
from amdgpu.vector import registers_of
from amdgpu.wave import Wave


def _fma16(a: Any, b: Any, c: Any) -> Any:
    # Exact in float64: 22 bits of product and the range of float16 fit in 53.
    wide = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    return wide.astype(np.float16)


# Types are those of one half.
PACKED: dict[str, Operation] = dict(
    table(
        "VOP3P Instructions",
        ("v_pk_add_f32", "f32 <- f32 f32", np.add),
        ("v_pk_mul_f32", "f32 <- f32 f32", np.multiply),
        ("v_pk_fma_f32", "f32 <- f32 f32 f32", fma32),
        ("v_pk_add_f16", "f16 <- f16 f16", np.add),
        ("v_pk_mul_f16", "f16 <- f16 f16", np.multiply),
        ("v_pk_fma_f16", "f16 <- f16 f16 f16", _fma16),
        ("v_pk_min_f16", "f16 <- f16 f16", minimum),
        ("v_pk_max_f16", "f16 <- f16 f16", maximum),
        *((f"v_pk_add_{t}", f"{t} <- {t} {t}", np.add) for t in ("u16", "i16")),
        *((f"v_pk_sub_{t}", f"{t} <- {t} {t}", np.subtract) for t in ("u16", "i16")),
        *((f"v_pk_min_{t}", f"{t} <- {t} {t}", np.minimum) for t in ("u16", "i16")),
        *((f"v_pk_max_{t}", f"{t} <- {t} {t}", np.maximum) for t in ("u16", "i16")),
        ("v_pk_mul_lo_u16", "u16 <- u16 u16", np.multiply),
        ("v_pk_mad_u16", "u16 <- u16 u16 u16", lambda a, b, c: a * b + c),
        ("v_pk_mad_i16", "i16 <- i16 i16 i16", lambda a, b, c: a * b + c),
        ("v_pk_lshlrev_b16", "u16 <- u16 u16", lambda a, b: b << (a & 15)),
        ("v_pk_lshrrev_b16", "u16 <- u16 u16", lambda a, b: b >> (a & 15)),
        ("v_pk_ashrrev_i16", "i16 <- i16 i16", lambda a, b: b >> (a & 15)),
        # The low half of one source, the high half of the other: op_sel says which of each.
        ("v_pk_mov_b32", "u32 <- u32 u32", lambda a: a.copy()),
    )
)


def decode_packed(instruction: Instruction, operation: Operation) -> Step:
    """Raises UnknownInstructionError for modifiers that the guide does not give these."""
    if instruction.modifiers.keys() - {"op_sel", "op_sel_hi", "neg_lo", "neg_hi"}:
        raise UnknownInstructionError(f"modifiers of {instruction.name}")
    target, *sources = (parse_operand(text) for text in instruction.operands)
    if len(sources) != len(operation.sources):
        raise UnknownInstructionError(f"{len(sources)} sources of {instruction.name}")
    type_name = operation.sources[0]
    low = _halves(instruction, sources, type_name, "op_sel", "neg_lo")
    high = _halves(instruction, sources, type_name, "op_sel_hi", "neg_hi")
    if instruction.name == "v_pk_mov_b32":
        low, high = low[:1], low[1:]
    compute = _both(operation.function, [h.read for h in low], [h.read for h in high])
    put = _put_pair if type_name[1:] == "32" else _put_halves
    if target.kind != "v" or target.count != (2 if put is _put_pair else 1):
        raise UnknownInstructionError(f"destination of {instruction.name}")
    return Step(
        instruction=instruction,
        execute=lambda wave: put(wave, target.index, *compute(wave)),
        reads=registers_of([half.operand for half in (*low, *high)]),
        writes=registers_of([target]),
    )


@dataclass(frozen=True, slots=True)
class _Half:
    """operand: the register that holds it; the other one of a pair is not read."""

    operand: Operand
    read: Read


def _halves(
    instruction: Instruction, sources: list[Operand], type_name: str, which: str, signs: str
) -> list[_Half]:
    """The half of each source that `which` chooses: by default the low one for low results."""
    half = _half_of_pair if type_name[1:] == "32" else _half_of_register
    default = int(which == "op_sel_hi")
    return [
        half(
            source,
            type_name,
            _flag(instruction, which, place, default),
            bool(_flag(instruction, signs, place, 0)),
        )
        for place, source in enumerate(sources)
    ]


def _flag(instruction: Instruction, name: str, place: int, default: int) -> int:
    bits = re.findall(r"[01]", instruction.modifiers.get(name, ""))
    return int(bits[place]) if bits else default


def _half_of_pair(operand: Operand, type_name: str, half: int, is_negative: bool) -> _Half:
    """A register of two. Of a constant there is only a low half."""
    if operand.kind == "literal":
        if half:
            raise UnknownInstructionError("the high half of a 32-bit constant")
        one = operand
    elif operand.count != 2:
        raise UnknownInstructionError("a packed operand that is no pair of registers")
    else:
        one = Operand(operand.kind, operand.index + half)
    return _Half(one, _negated(reader(one, type_name), is_negative))


def _half_of_register(operand: Operand, type_name: str, half: int, is_negative: bool) -> _Half:
    dtype = numpy_type(type_name)
    if operand.kind == "literal":
        # An inline constant fills the low half; the high one is the rest of its 32 bits.
        bits = literal_bits(operand.value, "u32" if isinstance(operand.value, int) else type_name)
        constant = spread(bits >> 16 * half & 0xFFFF, type_name)
        return _Half(operand, _negated(lambda wave: constant, is_negative))
    read = reader(operand, "u32")
    chosen = _negated(lambda wave: read(wave).view(dtype)[half::2], is_negative)
    return _Half(operand, chosen)


def _negated(read: Read, is_negative: bool) -> Read:
    return (lambda wave: -read(wave)) if is_negative else read


Pair = tuple[Any, Any]


def _both(function: Function, low: list[Read], high: list[Read]) -> Callable[[Wave], Pair]:
    if len(low) == 2:
        (a, b), (c, d) = low, high
        return lambda wave: (function(a(wave), b(wave)), function(c(wave), d(wave)))
    return lambda wave: (
        function(*(read(wave) for read in low)),
        function(*(read(wave) for read in high)),
    )


def _put_pair(wave: Wave, index: int, low: Any, high: Any) -> None:
    rows = wave.u32[index], wave.u32[index + 1]
    for row, value in zip(rows, (low, high), strict=True):
        np.copyto(row, value.view(np.uint32), where=wave.mask)


def _put_halves(wave: Wave, index: int, low: Any, high: Any) -> None:
    bits = low.view(np.uint16).astype(np.uint32) | high.view(np.uint16).astype(np.uint32) << 16
    np.copyto(wave.u32[index], bits, where=wave.mask)
