"""V_FMA_MIX: products whose operands are float32 or halves of registers (CDNA3 ISA, "VOP3P
Instructions": op_sel_hi says float16, op_sel which half)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from amdgpu.assembly import Instruction
from amdgpu.errors import UnknownInstructionError
from amdgpu.floats import fma32
from amdgpu.operands import Operand, parse_operand
from amdgpu.step import NONE, Step
from amdgpu.values import Read, half_reader, placed_writer, reader, writer
from amdgpu.vector import registers_of
from amdgpu.wave import Wave

# Where the result goes: all of the register as float32, or one half of it as float16.
_FORMS = {"v_fma_mix_f32": "", "v_fma_mixlo_f16": "WORD_0", "v_fma_mixhi_f16": "WORD_1"}


def decode_mixed(instruction: Instruction) -> Step | None:
    """None where the mnemonic is none of these."""
    if instruction.name not in _FORMS:
        return None
    if instruction.modifiers.keys() - {"op_sel", "op_sel_hi"}:
        raise UnknownInstructionError(f"modifiers of {instruction.name}")
    target, *sources = (parse_operand(text) for text in instruction.operands)
    is_half, is_high = (
        re.findall(r"[01]", instruction.modifiers.get(name, "[0,0,0]"))
        for name in ("op_sel_hi", "op_sel")
    )
    a, b, c = (
        _reader(source, half == "1", high == "1")
        for source, half, high in zip(sources, is_half, is_high, strict=True)
    )
    selection = _FORMS[instruction.name]
    write = (
        placed_writer(target, selection, "UNUSED_PRESERVE") if selection else writer(target, "f32")
    )

    def execute(wave: Wave) -> None:
        result: Any = fma32(a(wave), b(wave), c(wave))
        write(wave, result.astype(np.float16) if selection else result, wave.mask)

    written = registers_of([target])
    return Step(
        instruction=instruction,
        execute=execute,
        reads=registers_of(sources) | (written if selection else NONE),
        writes=written,
    )


def _reader(operand: Operand, is_half: bool, is_high: bool) -> Read:
    if not is_half:
        return reader(operand, "f32")
    read = half_reader(operand, "f16") if is_high else reader(operand, "f16")
    return lambda wave: read(wave).astype(np.float32)
