"""Scratch instructions: registers that a kernel spilled, words of each lane's own (CDNA3 ISA,
"Flat Memory Instructions", private memory)."""

from __future__ import annotations

import re

import numpy as np

from amdgpu.assembly import Instruction
from amdgpu.errors import OutOfBoundsError, UndefinedReadError, UnknownInstructionError
from amdgpu.operands import Operand, parse_operand
from amdgpu.step import Step
from amdgpu.vector import registers_of
from amdgpu.wave import Access, Wave

_NAME = re.compile(r"scratch_(load|store)_dword(?:x(\d))?")


def decode_scratch(instruction: Instruction) -> Step | None:
    """At constant offsets, as spilling makes them; None where the mnemonic is none of these."""
    found = _NAME.fullmatch(instruction.name)
    if found is None:
        return None
    is_load, count = found[1] == "load", int(found[2] or 1)
    operands = [parse_operand(text) for text in instruction.operands]
    data, *address = operands if is_load else [operands[1], operands[0], operands[2]]
    if data.kind != "v" or data.count != count or any(a.text != "off" for a in address):
        raise UnknownInstructionError(f"operands of {instruction.name}")
    first, rest = divmod(int(instruction.modifiers.get("offset", "0"), 0), 4)
    if rest or instruction.modifiers.keys() - {"offset"}:
        raise UnknownInstructionError(f"modifiers of {instruction.name}")
    return _load(instruction, data, first) if is_load else _store(instruction, data, first)


def _check(wave: Wave, first: int, count: int) -> range:
    if first + count > len(wave.scratch):
        raise OutOfBoundsError(
            f"{4 * count} bytes at {4 * first} of {4 * len(wave.scratch)} bytes of scratch"
        )
    return range(first, first + count)


def _load(instruction: Instruction, data: Operand, first: int) -> Step:
    written = registers_of([data])

    def execute(wave: Wave) -> None:
        for number, place in enumerate(_check(wave, first, data.count)):
            if wave.exec & ~wave.scratch_defined[place]:
                raise UndefinedReadError(f"byte {4 * place} of scratch, where nothing was written")
            np.copyto(wave.u32[data.index + number], wave.scratch[place], where=wave.mask)
        wave.issue("vm", Access(instruction.line, written))

    return Step(instruction=instruction, execute=execute, writes=written)


def _store(instruction: Instruction, data: Operand, first: int) -> Step:
    def execute(wave: Wave) -> None:
        for number, place in enumerate(_check(wave, first, data.count)):
            np.copyto(wave.scratch[place], wave.u32[data.index + number], where=wave.mask)
            wave.scratch_defined[place] |= wave.exec
        wave.issue("vm", Access(instruction.line, frozenset()))

    return Step(instruction=instruction, execute=execute, reads=registers_of([data]))
