"""Vector instructions: a row of the table, operands and modifiers become one closure.

What a mnemonic's suffix names (_e32, _e64, _sdwa, _dpp) says how operands are read and written:
CDNA3 ISA, "Vector ALU Operations", sections on SDWA, DPP and on input and output modifiers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np

from amdgpu.assembly import Instruction
from amdgpu.crosslane import NOBODY, Dpp, parse_dpp
from amdgpu.errors import UnknownInstructionError
from amdgpu.operands import VCC, Operand, parse_operand
from amdgpu.semantics import Function, Operation, Shift
from amdgpu.step import NONE, Step
from amdgpu.values import (
    Read,
    Values,
    Write,
    half_reader,
    numpy_type,
    placed_writer,
    reader,
    selected_reader,
    spread,
    writer,
)
from amdgpu.wave import LANES, Mask, Wave, bits_of

_SUFFIX = re.compile(r"_(e32|e64|sdwa|dpp|e64_dpp)$")
_DPP = re.compile(r"quad_perm|row_\w+|wave_\w+|bank_mask|bound_ctrl")
_KNOWN = {"dst_sel", "dst_unused", "src0_sel", "src1_sel", "clamp", "op_sel"}


def base_name(name: str) -> str:
    """Without the suffix of the encoding."""
    return _SUFFIX.sub("", name)


def decode_vector(instruction: Instruction, operation: Operation) -> Step:
    """Raises UnknownInstructionError for operands or modifiers that the row does not have."""
    dpp = parse_dpp(f"{k}:{v}" for k, v in instruction.modifiers.items() if _DPP.fullmatch(k))
    for modifier in instruction.modifiers:
        if modifier not in _KNOWN and not _DPP.fullmatch(modifier):
            raise UnknownInstructionError(f"modifier {modifier} of {instruction.name}")
    results, sources, types = _typed_operands(instruction, operation)
    places = range(len(sources))
    reads = [_source(instruction, n, sources[n], types[n]) for n in places]
    writes = [
        _result(instruction, operand, t, len(sources))
        for operand, t in zip(results, operation.results, strict=True)
    ]
    function = _clamped(operation) if "clamp" in instruction.modifiers else operation.function
    if isinstance(function, Shift) and sources[0].kind == "literal" and dpp is None:
        # The distance is known: shift by it, with the limit applied now.
        distance = spread(int(sources[0].value) & function.limit, types[1])
        function, reads = function.ufunc, [reads[1], lambda wave: distance]
    passes = {} if instruction.modifiers else _passes(operation, results, sources)
    step = Step(
        instruction=instruction,
        execute=_in_place(function, reads, results, operation, instruction)
        or _execute(function, reads, writes),
        reads=registers_of(sources).difference(passes.values()) | _preserved(instruction, results),
        writes=registers_of(results),
        passes=passes,
    )
    return step if dpp is None else _with_dpp(step, dpp, sources, types[0], function, reads, writes)


def registers_of(operands: Sequence[Operand]) -> frozenset[int]:
    return frozenset(r for operand in operands for r in operand.registers)


def moves(target: Operand, source: Operand) -> dict[int, int]:
    """Registers of `target` and where each comes from; none for constants."""
    return dict(zip(target.registers, source.registers, strict=False))


def _passes(operation: Operation, results: list[Operand], sources: list[Operand]) -> dict[int, int]:
    if operation.name.startswith(("v_mov_b", "v_accvgpr_")):
        return moves(results[0], sources[0])
    if operation.name in ("v_mad_u64_u32", "v_mad_i64_i32") and sources[2].kind != "literal":
        # Of products of which 32 bits count, the upper half of what is added may be anything.
        other = registers_of(sources[:2]) | set(sources[2].registers[:1])
        found = {results[0].registers[1]: sources[2].registers[1]}
        return {} if other & set(found.values()) else found
    return {}


def _typed_operands(
    instruction: Instruction, operation: Operation
) -> tuple[list[Operand], list[Operand], list[str]]:
    """Results, sources with those that are implied, and the sources' types."""
    operands = [parse_operand(text) for text in instruction.operands]
    num_results = len(operation.results)
    implied = {"vcc": Operand("s", VCC, 2), "dst": operands[0]}
    num_written = sum(t not in implied for t in operation.sources)
    if len(operands) != num_results + num_written:
        raise UnknownInstructionError(f"{len(operands)} operands of {instruction.name}")
    results, sources = operands[:num_results], operands[num_results:]
    sources += [implied[t] for t in operation.sources if t in implied]
    names = {"vcc": "lanes", "dst": operation.results[0]}
    return results, sources, [names.get(t, t) for t in operation.sources]


def _source(instruction: Instruction, place: int, operand: Operand, type_name: str) -> Read:
    if (selection := instruction.modifiers.get(f"src{place}_sel")) and type_name != "lanes":
        return selected_reader(operand, type_name, selection)
    if operand.is_sign_extended:
        raise UnknownInstructionError(f"sext() in {instruction.name}")
    if _op_sel(instruction, place):
        if type_name[1:] != "16":
            raise UnknownInstructionError(f"op_sel of an operand of type {type_name}")
        return half_reader(operand, type_name)
    return reader(operand, type_name)


def _op_sel(instruction: Instruction, place: int) -> bool:
    bits = re.findall(r"[01]", instruction.modifiers.get("op_sel", ""))
    return place < len(bits) and bits[place] == "1"


def _result(instruction: Instruction, operand: Operand, type_name: str, num_sources: int) -> Write:
    if selection := instruction.modifiers.get("dst_sel"):
        return placed_writer(operand, selection, instruction.modifiers["dst_unused"])
    if "op_sel" in instruction.modifiers and type_name[1:] == "16":
        is_high = _op_sel(instruction, num_sources)
        return placed_writer(operand, f"WORD_{int(is_high)}", "UNUSED_PRESERVE")
    return writer(operand, type_name)


def _preserved(instruction: Instruction, results: list[Operand]) -> frozenset[int]:
    """Where part of the destination stays as it was."""
    is_preserved = instruction.modifiers.get("dst_unused") == "UNUSED_PRESERVE"
    return registers_of(results) if is_preserved or "op_sel" in instruction.modifiers else NONE


def _execute(function: Function, reads: list[Read], writes: list[Write]) -> Callable[[Wave], None]:
    """Forms of one result and up to three sources are written out: they are nearly all."""
    if len(writes) > 1 or len(reads) > 3:
        return lambda wave: _put_all(wave, writes, function(*(read(wave) for read in reads)))
    (write,) = writes
    if len(reads) == 1:
        (a,) = reads
        return lambda wave: write(wave, function(a(wave)), None if wave.is_full else wave.mask)
    if len(reads) == 2:
        a, b = reads
        return lambda wave: write(
            wave, function(a(wave), b(wave)), None if wave.is_full else wave.mask
        )
    a, b, c = reads
    return lambda wave: write(
        wave, function(a(wave), b(wave), c(wave)), None if wave.is_full else wave.mask
    )


def _in_place(
    function: Function,
    reads: list[Read],
    results: list[Operand],
    operation: Operation,
    instruction: Instruction,
) -> Callable[[Wave], None] | None:
    """Numpy's own functions write the destination's row themselves, where it is a plain one."""
    is_plain = operation.results[0] in ("u32", "i32", "f32") and len(reads) == 2
    if not is_plain or not isinstance(function, np.ufunc) or "dst_sel" in instruction.modifiers:
        return None
    a, b = reads
    index, rows = results[0].index, attrgetter(operation.results[0])

    def execute(wave: Wave) -> None:
        row = rows(wave)[index]
        if wave.is_full:
            function(a(wave), b(wave), out=row)
        else:
            function(a(wave), b(wave), out=row, where=wave.mask)

    return execute


def _put_all(wave: Wave, writes: list[Write], values: Any, mask: Mask | None = None) -> None:
    found = values if len(writes) > 1 else (values,)
    for write, value in zip(writes, found, strict=True):
        write(wave, value, wave.mask if mask is None else mask)


def _with_dpp(
    step: Step,
    dpp: Dpp,
    sources: list[Operand],
    type_name: str,
    function: Function,
    reads: list[Read],
    writes: list[Write],
) -> Step:
    """The first source comes from other lanes, and some lanes may not be written at all."""
    first = sources[0]
    if first.kind != "v" or first.count != 1 or first.is_negative or first.is_absolute:
        raise UnknownInstructionError("DPP of a source that is no plain vector register")
    index, dtype, others = first.index, numpy_type(type_name), reads[1:]
    lanes = bits_of(
        np.isin(np.arange(LANES), dpp.sources[dpp.is_selected & (dpp.sources != NOBODY)])
    )

    def execute(wave: Wave) -> None:
        moved = dpp(wave.u32[index], wave.mask)
        value = function(moved.values.view(dtype), *(read(wave) for read in others))
        _put_all(wave, writes, value, moved.is_written)

    return replace(
        step,
        execute=execute,
        reads=registers_of(sources[1:]),
        passes={},
        crossing=registers_of([first]),
        crossing_lanes=lambda wave: wave.exec & lanes,
        lanes_written=lambda wave: bits_of(dpp(wave.u32[index], wave.mask).is_written),
    )


def _clamped(operation: Operation) -> Function:
    """Floats to [0, 1], NaN to 0; sums of integers saturate."""
    (result,) = operation.results
    if result[0] == "f":
        limit = numpy_type(result).type
        return lambda *a: np.nan_to_num(
            np.clip(operation.function(*a), limit(0), limit(1)), nan=0.0
        )
    wide = _SATURATING.get(operation.name)
    if wide is None:
        raise UnknownInstructionError(f"clamp of {operation.name}")
    limits = np.iinfo(numpy_type(result))
    return lambda a, b: np.clip(
        wide(a.astype(np.int64), b.astype(np.int64)), limits.min, limits.max
    ).astype(a.dtype)


def _backwards(a: Values, b: Values) -> Values:
    return np.asarray(b - a)


_SATURATING: Mapping[str, Callable[[Values, Values], Values]] = {
    **dict.fromkeys(("v_add_u32", "v_add_u16"), np.add),
    **dict.fromkeys(("v_sub_u32", "v_sub_u16"), np.subtract),
    **dict.fromkeys(("v_subrev_u32", "v_subrev_u16"), _backwards),
}
