"""Vector instructions that gfx950 has and gfx942 lacks: rows cite the "CDNA4 ISA" guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from amdgpu.assembly import Instruction
from amdgpu.numbers import bf16_of_f32, f16_of_f32
from amdgpu.semantics import Operation, table
from amdgpu.step import Step
from amdgpu.vector import base_name, decode_vector


def _packed(low: Any, high: Any) -> Any:
    return low.astype(np.uint32) | high.astype(np.uint32) << 16


_ROWS: dict[str, Operation] = dict(
    table(
        "CDNA4 ISA, VOP3A & VOP3B Instructions",
        (
            "v_cvt_pk_bf16_f32",
            "u32 <- f32 f32",
            lambda a, b: _packed(bf16_of_f32(a), bf16_of_f32(b)),
        ),
        ("v_cvt_pk_f16_f32", "u32 <- f32 f32", lambda a, b: _packed(f16_of_f32(a), f16_of_f32(b))),
    )
)
_BITOP3 = {"v_bitop3_b32": "u32", "v_bitop3_b16": "u16"}


def decode_cdna4(instruction: Instruction) -> Step | None:
    """None where the mnemonic is none of these."""
    name = base_name(instruction.name)
    if name in _ROWS:
        return decode_vector(instruction, _ROWS[name])
    if name not in _BITOP3:
        return None
    kind = _BITOP3[name]
    modifiers = dict(instruction.modifiers)
    function = _truth_table(int(modifiers.pop("bitop3", "0"), 0))
    operation = Operation(name, (kind,), (kind,) * 3, function, "CDNA4 ISA, VOP3A & VOP3B")
    return decode_vector(replace(instruction, modifiers=modifiers), operation)


def _truth_table(bits: int) -> Callable[[Any, Any, Any], Any]:
    """Bit 4 a + 2 b + c of `bits` is the result for bits a, b and c of the sources."""

    def function(a: Any, b: Any, c: Any) -> Any:
        found = np.zeros_like(a)
        for case in range(8):
            if bits >> case & 1:
                found |= (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
        return found

    return function
