"""A kernel's text as steps: every instruction decoded once."""

from __future__ import annotations

from collections.abc import Callable

from amdgpu.assembly import Assembly, Instruction
from amdgpu.cdna4 import decode_cdna4
from amdgpu.control import decode_control
from amdgpu.errors import EmulationError, UnknownInstructionError
from amdgpu.global_access import decode_global
from amdgpu.lanes import decode_lanes
from amdgpu.lds_access import decode_lds
from amdgpu.matrix import NotModelled
from amdgpu.mixed import decode_mixed
from amdgpu.packed import PACKED, decode_packed
from amdgpu.scalar import SCALAR, decode_scalar
from amdgpu.scratch import decode_scratch
from amdgpu.semantics import Operation
from amdgpu.step import NONE, Step
from amdgpu.vector import base_name, decode_vector
from amdgpu.vector_float import FLOAT
from amdgpu.vector_integer import INTEGER
from amdgpu.wave import Wave

ARCHS = ("gfx942", "gfx950")
_TABLES: tuple[tuple[dict[str, Operation], Callable[[Instruction, Operation], Step]], ...] = (
    (SCALAR, decode_scalar),
    ({**FLOAT, **INTEGER}, decode_vector),
    (PACKED, decode_packed),
)


def decode(assembly: Assembly) -> list[Step]:
    """One step for each instruction. An instruction that nobody knows stops only who reaches it:
    kernels hold code for firmware and cases that a launch never meets."""
    return [_decoded(instruction, assembly) for instruction in assembly.instructions]


def unknown_instructions(assembly: Assembly) -> list[str]:
    """What would stop a wave that reaches it, with line numbers."""
    found: list[str] = []
    for instruction in assembly.instructions:
        try:
            _decode_strictly(instruction, assembly)
        except UnknownInstructionError as error:
            found.append(f"line {instruction.line}: {instruction.text}: {error.what}")
    return found


def _decoded(instruction: Instruction, assembly: Assembly) -> Step:
    try:
        return _decode_strictly(instruction, assembly)
    except UnknownInstructionError as error:
        return Step(instruction=instruction, execute=_raiser(error), reads=NONE)


def _raiser(error: EmulationError) -> Callable[[Wave], None]:
    def execute(_: Wave) -> None:
        raise error

    return execute


def _decode_strictly(instruction: Instruction, assembly: Assembly) -> Step:
    try:
        found = _decode_one(instruction, assembly)
    except (NotModelled, ValueError, KeyError, IndexError) as error:
        # Operands of another number or kind than the row has.
        raise UnknownInstructionError(f"{type(error).__name__}: {error}") from error
    if found is None:
        raise UnknownInstructionError(f"no row for {instruction.name} on {assembly.arch}")
    return found


def _decode_one(instruction: Instruction, assembly: Assembly) -> Step | None:
    name = base_name(instruction.name)
    for rows, decoder in _TABLES:
        if operation := rows.get(name):
            return decoder(instruction, operation)
    return (
        decode_control(instruction, assembly.labels)
        or decode_lds(instruction)
        or decode_global(instruction)
        or decode_scratch(instruction)
        or decode_mixed(instruction)
        or decode_lanes(instruction, assembly.arch)
        or (decode_cdna4(instruction) if assembly.arch == "gfx950" else None)
    )
