"""Operands of vector instructions as arrays [64]: how they are read and how results are written."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amdgpu.errors import UnknownInstructionError
from amdgpu.operands import Operand, literal_bits
from amdgpu.wave import LANES, Mask, Wave, bits_of, mask_of

Values = NDArray[Any]
Read = Callable[[Wave], Values]
# mask: lanes to write; None: all.
Write = Callable[[Wave, Values, Mask | None], None]
Bits = NDArray[np.uint32]

# First byte and number of bytes of what SDWA selects.
_SELECTIONS = {
    "DWORD": (0, 4),
    "WORD_0": (0, 2),
    "WORD_1": (2, 2),
    **{f"BYTE_{n}": (n, 1) for n in range(4)},
}


def numpy_type(type_name: str) -> np.dtype[Any]:
    """Of "f32", "u64", …"""
    return np.dtype(f"{type_name[0]}{int(type_name[1:]) // 8}")


@lru_cache(maxsize=8192)
def spread(bits: int, type_name: str = "u32") -> Values:
    """A scalar in every lane, read-only; of 16 bits from the low half."""
    dtype = numpy_type(type_name)
    raw = np.full(LANES, bits & ((1 << 8 * dtype.itemsize) - 1), f"u{dtype.itemsize}")
    raw.flags.writeable = False
    return raw.view(dtype)


def reader(operand: Operand, type_name: str) -> Read:
    """With its modifiers; raises UnknownInstructionError where operand and type do not fit."""
    if type_name == "lanes":
        return _mask_reader(operand)
    dtype = numpy_type(type_name)
    _check_width(operand, dtype.itemsize)
    if operand.kind == "literal":
        constant = spread(_modified_bits(operand, type_name), type_name)
        return lambda wave: constant
    plain = _plain_reader(operand, type_name)
    if not (operand.is_negative or operand.is_absolute):
        return plain
    return _with_sign(plain, operand, dtype.itemsize)


def _check_width(operand: Operand, itemsize: int) -> None:
    if operand.kind == "name" or (operand.kind != "literal" and operand.count != -(-itemsize // 4)):
        what = operand.text or f"{operand.count} registers"
        raise UnknownInstructionError(f"{what} for an operand of {itemsize} bytes")


def _mask_reader(operand: Operand) -> Read:
    if operand.kind == "literal":
        constant = mask_of(int(operand.value) & ((1 << LANES) - 1))
        return lambda wave: constant
    if operand.kind != "s" or operand.count != 2:
        raise UnknownInstructionError("a mask of lanes that is no pair of scalar registers")
    index = operand.index
    return lambda wave: mask_of(wave.read64(index))


def _modified_bits(operand: Operand, type_name: str) -> int:
    bits, sign = literal_bits(operand.value, type_name), 1 << int(type_name[1:]) - 1
    bits = bits & ~sign if operand.is_absolute else bits
    return bits ^ sign if operand.is_negative else bits


def _plain_reader(operand: Operand, type_name: str) -> Read:
    index, dtype = operand.index, numpy_type(type_name)
    if operand.kind == "s":
        if dtype.itemsize == 8:
            return lambda wave: spread(wave.read64(index), type_name)
        return lambda wave: spread(wave.scalar[index], type_name)
    match type_name:
        case "u32":
            return lambda wave: wave.u32[index]
        case "i32":
            return lambda wave: wave.i32[index]
        case "f32":
            return lambda wave: wave.f32[index]
    if dtype.itemsize == 2:
        return lambda wave: wave.u32[index].view(dtype)[::2]
    return lambda wave: joined(wave.u32[index], wave.u32[index + 1]).view(dtype)


def joined(low: Bits, high: Bits) -> Values:
    """uint64 of two registers."""
    halves = np.empty((LANES, 2), np.uint32)
    halves[:, 0] = low
    halves[:, 1] = high
    return np.asarray(halves.view(np.uint64).ravel())


def _with_sign(plain: Read, operand: Operand, itemsize: int) -> Read:
    kind = np.dtype(f"u{itemsize}").type
    sign = kind(1 << 8 * itemsize - 1)

    def read(wave: Wave) -> Values:
        value = plain(wave)
        bits = value.view(kind)
        if operand.is_absolute:
            bits = bits & ~sign
        if operand.is_negative:
            bits = bits ^ sign
        return np.asarray(bits.view(value.dtype))

    return read


def half_reader(operand: Operand, type_name: str) -> Read:
    """The upper 16 bits of a register, as op_sel chooses them."""
    shifted = _shifted(reader(_unsigned(operand), "u32"), 16)
    dtype = numpy_type(type_name)
    return _with_sign(lambda wave: shifted(wave).view(dtype)[::2], operand, 2)


def _unsigned(operand: Operand) -> Operand:
    return Operand(operand.kind, operand.index, operand.count, operand.value, operand.text)


def _shifted(read: Read, shift: int) -> Read:
    return lambda wave: read(wave) >> np.uint32(shift)


def selected_reader(operand: Operand, type_name: str, selection: str) -> Read:
    """The bytes that SDWA selects, extended to the type; its modifiers apply after that."""
    first, num_bytes = _SELECTIONS[selection]
    read = reader(_unsigned(operand), "u32")
    dtype = numpy_type(type_name)
    left = np.uint32(32 - 8 * (first + num_bytes))
    right = 32 - 8 * num_bytes

    def extended(wave: Wave) -> Values:
        bits = read(wave) << left
        if operand.is_sign_extended:
            return (bits.view(np.int32) >> right).view(np.uint32)
        return bits >> np.uint32(right)

    if dtype.itemsize == 2:
        return _with_sign(lambda wave: extended(wave).view(dtype)[::2], operand, 2)
    return _with_sign(lambda wave: extended(wave).view(dtype), operand, 4)


def writer(operand: Operand, type_name: str) -> Write:
    """Results of 16 bits clear the upper half, as gfx9 does for all but a few of op_sel's."""
    if type_name == "lanes":
        return _mask_writer(operand)
    dtype, index = numpy_type(type_name), operand.index
    _check_width(operand, dtype.itemsize)
    if operand.kind != "v":
        raise UnknownInstructionError("a vector result in a scalar register")
    match type_name:
        case "u32":
            return lambda wave, value, mask: _put(wave.u32[index], value, mask)
        case "i32":
            return lambda wave, value, mask: _put(wave.i32[index], value, mask)
        case "f32":
            return lambda wave, value, mask: _put(wave.f32[index], value, mask)
    if dtype.itemsize == 2:
        return lambda wave, value, mask: _put(
            wave.u32[index], value.view(np.uint16).astype(np.uint32), mask
        )
    return lambda wave, value, mask: _put_pair(wave, index, value, mask)


def _put(row: Values, value: Values, mask: Mask | None) -> None:
    if mask is None:
        row[:] = value
    else:
        np.copyto(row, value, where=mask)


def _put_pair(wave: Wave, index: int, value: Values, mask: Mask | None) -> None:
    halves = np.ascontiguousarray(value).view(np.uint32).reshape(LANES, 2)
    _put(wave.u32[index], halves[:, 0], mask)
    _put(wave.u32[index + 1], halves[:, 1], mask)


def _mask_writer(operand: Operand) -> Write:
    if operand.kind != "s" or operand.count != 2:
        raise UnknownInstructionError("a mask of lanes that is no pair of scalar registers")
    index = operand.index

    def write(wave: Wave, value: Values, mask: Mask | None) -> None:
        found = value if mask is None else value & mask
        wave.write_scalars(index, 2, bits_of(found))

    return write


def placed_writer(operand: Operand, selection: str, unused: str) -> Write:
    """SDWA's destination: some bytes of the register, the others 0, sign or as they were."""
    first, num_bytes = _SELECTIONS[selection]
    index, shift = operand.index, np.uint32(8 * first)
    field = np.uint32((1 << 8 * num_bytes) - 1)

    def write(wave: Wave, value: Values, mask: Mask | None) -> None:
        kind = f"u{value.dtype.itemsize}"
        bits = (value.view(kind).astype(np.uint32) & field) << shift
        if unused == "UNUSED_PRESERVE":
            bits |= wave.u32[index] & ~(field << shift)
        _put(wave.u32[index], bits, mask)

    if unused not in ("UNUSED_PAD", "UNUSED_PRESERVE"):
        raise UnknownInstructionError(f"dst_unused:{unused}")
    return write
