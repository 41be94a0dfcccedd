"""Instructions over lanes: reads and writes of single ones, swaps and matrix products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from amdgpu.assembly import Instruction
from amdgpu.crosslane import permlane_swap
from amdgpu.errors import UnknownInstructionError
from amdgpu.matrix import MATRIX_BY_ARCH, MatrixOp
from amdgpu.operands import Operand, parse_operand
from amdgpu.step import Step
from amdgpu.vector import base_name, moves, registers_of
from amdgpu.wave import ALL_LANES, LANES, Wave


def decode_lanes(instruction: Instruction, arch: str) -> Step | None:
    """None where the mnemonic is none of these."""
    name = base_name(instruction.name)
    if op := MATRIX_BY_ARCH.get(arch, {}).get(name):
        return _matrix(instruction, op)
    if name in ("v_permlane16_swap_b32", "v_permlane32_swap_b32") and arch == "gfx950":
        return _swap(instruction, int(name[10:12]))
    simple = {
        "v_readfirstlane_b32": _read_first_lane,
        "v_readlane_b32": _read_lane,
        "v_writelane_b32": _write_lane,
    }
    if name not in simple or instruction.modifiers:
        return None
    return simple[name](instruction, [parse_operand(text) for text in instruction.operands])


def _read_first_lane(instruction: Instruction, operands: list[Operand]) -> Step:
    target, source = operands

    def first(wave: Wave) -> int:
        return (wave.exec & -wave.exec).bit_length() - 1 if wave.exec else 0

    def execute(wave: Wave) -> None:
        wave.write_scalars(target.index, 1, int(wave.u32[source.index][first(wave)]))

    return Step(
        instruction=instruction,
        execute=execute,
        writes=registers_of([target]),
        crossing=registers_of([source]),
        crossing_lanes=lambda wave: 1 << first(wave),
    )


def _lane_number(operand: Operand) -> Callable[[Wave], int]:
    if operand.kind == "literal":
        number = int(operand.value) % LANES
        return lambda wave: number
    return lambda wave: wave.scalar[operand.index] % LANES


def _read_lane(instruction: Instruction, operands: list[Operand]) -> Step:
    target, source, which = operands
    lane = _lane_number(which)

    def execute(wave: Wave) -> None:
        wave.write_scalars(target.index, 1, int(wave.u32[source.index][lane(wave)]))

    return Step(
        instruction=instruction,
        execute=execute,
        reads=registers_of([which]),
        writes=registers_of([target]),
        crossing_lanes=lambda wave: 1 << lane(wave),
        passes=moves(target, source),
    )


def _write_lane(instruction: Instruction, operands: list[Operand]) -> Step:
    target, source, which = operands
    lane = _lane_number(which)

    def execute(wave: Wave) -> None:
        is_constant = source.kind == "literal"
        value = int(source.value) if is_constant else wave.scalar[source.index]
        wave.u32[target.index][lane(wave)] = value & 0xFFFFFFFF

    return Step(
        instruction=instruction,
        execute=execute,
        reads=registers_of([which]),
        writes=registers_of([target]),
        lanes_written=lambda wave: 1 << lane(wave),
        passes=moves(target, source),
    )


def _swap(instruction: Instruction, width: int) -> Step:
    one, other = (parse_operand(text) for text in instruction.operands)
    touched = registers_of([one, other])

    def execute(wave: Wave) -> None:
        swapped = permlane_swap(wave.u32[one.index], wave.u32[other.index], width, wave.mask)
        wave.u32[one.index][:] = swapped.vdst
        wave.u32[other.index][:] = swapped.vsrc

    return Step(instruction=instruction, execute=execute, reads=touched, writes=touched)


def _matrix(instruction: Instruction, op: MatrixOp) -> Step:
    """EXEC is ignored. The accumulated operand may be a constant, in every element the same."""
    target, a, b, c = (parse_operand(text) for text in instruction.operands)
    if instruction.modifiers.keys() - {"cbsz", "abid", "blgp"}:
        raise UnknownInstructionError(f"modifiers of {instruction.name}")
    cbsz, abid, blgp = (
        int(instruction.modifiers.get(key, "0"), 0) for key in ("cbsz", "abid", "blgp")
    )
    counts = (target.count, a.count, b.count)
    if counts != (op.d_registers, op.a_registers, op.b_registers):
        raise UnknownInstructionError(f"registers of {instruction.name}")
    constant = np.zeros((op.d_registers, LANES), np.uint32)
    if c.kind == "literal" and c.value != 0:
        raise UnknownInstructionError(f"a constant other than 0 in {instruction.name}")

    def rows(wave: Wave, operand: Operand) -> np.ndarray[tuple[int, int], np.dtype[np.uint32]]:
        return wave.vector[operand.index : operand.index + operand.count]

    def execute(wave: Wave) -> None:
        total = constant if c.kind == "literal" else rows(wave, c)
        rows(wave, target)[:] = op(rows(wave, a), rows(wave, b), total, cbsz, abid, blgp)

    return Step(
        instruction=instruction,
        execute=execute,
        writes=registers_of([target]),
        crossing=registers_of([a, b, c]),
        crossing_lanes=lambda wave: ALL_LANES,
        lanes_written=lambda wave: ALL_LANES,
    )
