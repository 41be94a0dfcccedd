"""LDS instructions (CDNA3 ISA, "Data Share Operations" and "LDS Instructions"; CDNA4 ISA for the
transposing reads)."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from amdgpu.assembly import Instruction
from amdgpu.crosslane import bpermute, parse_swizzle, permute, swizzle, transpose_b16
from amdgpu.errors import PendingReadError, UndefinedReadError, UnknownInstructionError
from amdgpu.global_access import Form, put_loaded, taken
from amdgpu.lds import Region
from amdgpu.operands import Operand, parse_operand
from amdgpu.step import Step
from amdgpu.vector import registers_of
from amdgpu.wave import Access, Wave

_READS = {
    "u8": Form(1),
    "i8": Form(1, True),
    "u16": Form(2),
    "i16": Form(2, True),
    "b32": Form(4),
    "b64": Form(8),
    "b96": Form(12),
    "b128": Form(16),
    "u8_d16": Form(1, is_half=True),
    "u8_d16_hi": Form(1, is_half=True, is_high=True),
    "u16_d16": Form(2, is_half=True),
    "u16_d16_hi": Form(2, is_half=True, is_high=True),
}
_WRITES = {
    "b8": Form(1),
    "b16": Form(2),
    "b32": Form(4),
    "b64": Form(8),
    "b96": Form(12),
    "b128": Form(16),
    "b8_d16_hi": Form(1, is_high=True),
    "b16_d16_hi": Form(2, is_high=True),
}


def decode_lds(instruction: Instruction) -> Step | None:
    """None where the mnemonic is not one of LDS."""
    if not instruction.name.startswith("ds_"):
        return None
    if instruction.name in ("ds_swizzle_b32", "ds_bpermute_b32", "ds_permute_b32"):
        return _moving(instruction)
    for modifier in instruction.modifiers:
        if modifier not in ("offset", "offset0", "offset1"):
            raise UnknownInstructionError(f"modifier {modifier} of {instruction.name}")
    operands = [parse_operand(text) for text in instruction.operands]
    if instruction.name == "ds_read_b64_tr_b16":
        return _read_transposed(instruction, operands)
    found = re.fullmatch(r"ds_(read|write)(2st64|2)?_(\w+)", instruction.name)
    if found is None:
        return None
    action, pairs, what = found.groups()
    forms = _READS if action == "read" else _WRITES
    if what not in forms or (pairs and what not in ("b32", "b64")):
        return None
    form = forms[what]
    offsets = _offsets(instruction, form, pairs)
    if action == "read":
        return _read(instruction, form, operands, offsets)
    return _write(instruction, form, operands, offsets)


def _offsets(instruction: Instruction, form: Form, pairs: str | None) -> list[int]:
    """In bytes, of each element; of pairs counted in elements, or in 64 of them."""
    given = {key: int(value, 0) for key, value in instruction.modifiers.items()}
    if not pairs:
        return [given.get("offset", 0)]
    unit = form.num_bytes * (64 if pairs == "2st64" else 1)
    return [given.get(f"offset{n}", 0) * unit for n in range(2)]


def _read(
    instruction: Instruction, form: Form, operands: list[Operand], offsets: list[int]
) -> Step:
    target, address = operands
    per_element = form.num_registers
    if target.kind != "v" or target.count != per_element * len(offsets):
        raise UnknownInstructionError(f"destination of {instruction.name}")
    written = registers_of([target])

    def execute(wave: Wave) -> None:
        start = wave.u32[address.index][wave.mask]
        found = [_bytes(wave, _places(start, offset), form.num_bytes) for offset in offsets]
        if len(start):
            for number, raw in enumerate(found):
                data = raw.view(np.uint32) if form.num_bytes >= 4 else raw
                put_loaded(wave, target.index + number * per_element, form, data, wave.mask)
        wave.issue("lgkm", Access(instruction.line, written))

    reads = registers_of([address]) | (written if form.is_half else frozenset())
    return Step(instruction=instruction, execute=execute, reads=reads, writes=written)


def _check_loaded(wave: Wave, offsets: NDArray[np.int64], num_bytes: int) -> None:
    """LDS that vector memory loads into belongs to the load until a wait for VM_CNT."""
    loads = [(access, region) for access in wave.counters.vm for region in access.lds]
    for access, region in loads:
        low, high = region.first_byte, region.last_byte
        if ((offsets <= high) & (offsets + num_bytes > low)).any():
            raise PendingReadError(
                f"bytes {low} to {high} of LDS belong to the load of line {access.line}, which no "
                "s_waitcnt has waited for"
            )


def _places(start: NDArray[np.uint32], offset: int) -> NDArray[np.int64]:
    """Base and offset add up in 32 bits: LLVM makes bases below 0 (its test ds-sub-offset.ll)."""
    return (start + np.uint32(offset)).astype(np.int64)


def _bytes(wave: Wave, offsets: NDArray[np.int64], num_bytes: int) -> NDArray[np.uint8]:
    if wave.counters.vm:
        _check_loaded(wave, offsets, num_bytes)
    missing = wave.lds.undefined(offsets, num_bytes)
    if missing.any():
        raise UndefinedReadError(
            f"wave {wave.number} reads byte {int(offsets[missing.argmax()])} of LDS, where nothing "
            "was written"
        )
    return wave.lds.read(wave.number, offsets, num_bytes)


def _write(
    instruction: Instruction, form: Form, operands: list[Operand], offsets: list[int]
) -> Step:
    address, *data = operands
    if len(data) != len(offsets) or any(d.count != form.num_registers for d in data):
        raise UnknownInstructionError(f"data of {instruction.name}")

    def execute(wave: Wave) -> None:
        start = wave.u32[address.index][wave.mask]
        regions: list[Region] = []
        for operand, offset in zip(data, offsets, strict=True):
            value = taken(wave, operand.index, form, wave.mask)
            regions.append(wave.lds.write(wave.number, _places(start, offset), value))
        wave.issue("lgkm", Access(instruction.line, frozenset(), lds=tuple(regions)))

    return Step(instruction=instruction, execute=execute, reads=registers_of(operands))


def _read_transposed(instruction: Instruction, operands: list[Operand]) -> Step:
    target, address = operands
    offset = int(instruction.modifiers.get("offset", "0"), 0)
    written = registers_of([target])

    def execute(wave: Wave) -> None:
        if not wave.is_full:
            raise UnknownInstructionError(f"{instruction.name} with disabled lanes")
        raw = _bytes(wave, _places(wave.u32[address.index], offset), 8)
        words = transpose_b16(np.ascontiguousarray(raw.view(np.uint32).T))
        wave.vector[target.index : target.index + 2] = words
        wave.issue("lgkm", Access(instruction.line, written))

    return Step(
        instruction=instruction, execute=execute, reads=registers_of([address]), writes=written
    )


def _moving(instruction: Instruction) -> Step:
    """Between lanes, by LDS's network; no memory is touched, but LGKM_CNT counts it."""
    operands = [parse_operand(text) for text in instruction.operands]
    target, *sources = operands
    text = instruction.modifiers.get("offset", "0")
    written = registers_of([target])
    offset = parse_swizzle(text)

    def execute(wave: Wave) -> None:
        rows = [wave.u32[operand.index] for operand in sources]
        if instruction.name == "ds_swizzle_b32":
            result = swizzle(rows[0], offset, wave.mask)
        elif instruction.name == "ds_bpermute_b32":
            result = bpermute(rows[0], rows[1], offset, wave.mask)
        else:
            result = permute(rows[0], rows[1], offset, wave.mask)
        np.copyto(wave.u32[target.index], result, where=wave.mask)
        wave.issue("lgkm", Access(instruction.line, written))

    return Step(
        instruction=instruction, execute=execute, reads=registers_of(sources), writes=written
    )
