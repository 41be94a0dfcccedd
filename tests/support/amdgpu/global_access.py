"""Vector memory: global, flat and buffer instructions (CDNA3 ISA, sections "Vector Memory
Operations", "Flat Memory Instructions", and the instruction lists of MUBUF and FLAT).

Caches are not modelled: scope and temporality bits (sc0, sc1, nt) change nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amdgpu.assembly import Instruction
from amdgpu.errors import UnknownInstructionError
from amdgpu.floats import maximum, minimum
from amdgpu.lds import Region
from amdgpu.operands import M0, SCALARS, Operand, parse_operand
from amdgpu.step import Step
from amdgpu.values import joined, spread
from amdgpu.vector import registers_of
from amdgpu.wave import LANES, Access, Wave

Addresses = NDArray[np.uint64]
_Where = Callable[[Wave], tuple[Addresses, NDArray[np.bool_]]]
_FLAGS = {"offset", "offen", "sc0", "sc1", "nt", "lds", "glc", "slc"}


@dataclass(frozen=True, slots=True)
class Form:
    """What a load or store moves: bytes, extended with sign or not, of which half of a register."""

    num_bytes: int
    is_signed: bool = False
    is_half: bool = False  # the other half of the register stays as it was
    is_high: bool = False

    @property
    def num_registers(self) -> int:
        return -(-self.num_bytes // 4)


LOADS = {
    "ubyte": Form(1),
    "sbyte": Form(1, True),
    "ushort": Form(2),
    "sshort": Form(2, True),
    "dword": Form(4),
    "dwordx2": Form(8),
    "dwordx3": Form(12),
    "dwordx4": Form(16),
    "ubyte_d16": Form(1, is_half=True),
    "ubyte_d16_hi": Form(1, is_half=True, is_high=True),
    "sbyte_d16": Form(1, True, True),
    "sbyte_d16_hi": Form(1, True, True, True),
    "short_d16": Form(2, is_half=True),
    "short_d16_hi": Form(2, is_half=True, is_high=True),
}
STORES = {
    "byte": Form(1),
    "short": Form(2),
    "dword": Form(4),
    "dwordx2": Form(8),
    "dwordx3": Form(12),
    "dwordx4": Form(16),
    "byte_d16_hi": Form(1, is_high=True),
    "short_d16_hi": Form(2, is_high=True),
}
# Old value and operand to the new value, by type.
ATOMICS: dict[str, tuple[str, Any]] = {
    "swap": ("u4", lambda old, new: new),
    "swap_x2": ("u8", lambda old, new: new),
    "add": ("u4", np.add),
    "add_x2": ("u8", np.add),
    "sub": ("u4", np.subtract),
    "smin": ("i4", np.minimum),
    "umin": ("u4", np.minimum),
    "smax": ("i4", np.maximum),
    "umax": ("u4", np.maximum),
    "and": ("u4", np.bitwise_and),
    "or": ("u4", np.bitwise_or),
    "xor": ("u4", np.bitwise_xor),
    "add_f32": ("f4", np.add),
    "add_f64": ("f8", np.add),
    "pk_add_f16": ("f2", np.add),
    "min_f64": ("f8", minimum),
    "max_f64": ("f8", maximum),
}


def decode_global(instruction: Instruction) -> Step | None:
    """None where the mnemonic is not one of vector memory."""
    found = re.fullmatch(r"(global|flat|buffer)_(load|store|atomic)_(\w+)", instruction.name)
    if found is None:
        return None
    space, action, what = found.groups()
    for modifier in instruction.modifiers:
        if modifier not in _FLAGS:
            raise UnknownInstructionError(f"modifier {modifier} of {instruction.name}")
    operands = [parse_operand(text) for text in instruction.operands]
    counter = "vm lgkm" if space == "flat" else "vm"
    if what.startswith("lds_") or "lds" in instruction.modifiers:
        form = LOADS[what.removeprefix("lds_")]
        return _load_to_lds(instruction, form, _addressed(instruction, space, operands))
    if action == "load" and what in LOADS:
        where = _addressed(instruction, space, operands[1:])
        return _load(instruction, LOADS[what], operands, where, counter)
    if action == "store" and what in STORES:
        data, rest = _data_and_address(space, operands)
        where = _addressed(instruction, space, rest)
        return _store(instruction, STORES[what], operands, data, where, counter)
    if action == "atomic" and what in ATOMICS:
        return _atomic(instruction, what, space, operands, counter)
    return None


def _data_and_address(space: str, operands: list[Operand]) -> tuple[Operand, list[Operand]]:
    """A buffer's data comes first, of the others the address."""
    if space == "buffer":
        return operands[0], operands[1:]
    return operands[1], [operands[0], *operands[2:]]


def _addressed(instruction: Instruction, space: str, operands: list[Operand]) -> _Where:
    """What gives the address in each lane, and which lanes take part."""
    offset = int(instruction.modifiers.get("offset", "0"), 0)
    if space == "buffer":
        return _buffer(instruction, operands, offset)
    address, *base = operands
    if base and base[0].kind == "s":
        index, register = base[0].index, address.index

        def from_base(wave: Wave) -> tuple[Addresses, NDArray[np.bool_]]:
            start = np.uint64(wave.read64(index) + offset)
            return start + wave.u32[register], wave.mask

        return from_base
    if address.count != 2 or (base and base[0].text != "off"):
        raise UnknownInstructionError(f"address of {instruction.name}")

    def from_pair(wave: Wave) -> tuple[Addresses, NDArray[np.bool_]]:
        low = joined(wave.u32[address.index], wave.u32[address.index + 1])
        return low + np.uint64(offset & ((1 << 64) - 1)), wave.mask

    return from_pair


def _buffer(instruction: Instruction, operands: list[Operand], offset: int) -> _Where:
    """Raw buffers, stride 0: lanes past the number of bytes read 0 and write nothing."""
    *address, resource, scalar = operands
    if ("offen" in instruction.modifiers) != bool(address) or resource.count != 4:
        raise UnknownInstructionError(f"address of {instruction.name}")

    def where(wave: Wave) -> tuple[Addresses, NDArray[np.bool_]]:
        base = wave.read64(resource.index)
        if base >> 48 & 0x3FFF:
            raise UnknownInstructionError("a buffer with a stride")
        num_bytes = wave.scalar[resource.index + 2]
        more = int(scalar.value) if scalar.kind == "literal" else wave.scalar[scalar.index]
        lanes = wave.u32[address[0].index] if address else spread(0)
        inside = lanes.astype(np.uint64) + np.uint64(offset)
        start = np.uint64((base & ((1 << 48) - 1)) + more)
        return start + inside, wave.mask & (inside < num_bytes)

    return where


def _load(
    instruction: Instruction, form: Form, operands: list[Operand], where: _Where, counter: str
) -> Step:
    target, first = operands[0], operands[0].index
    if target.kind != "v" or target.count != form.num_registers:
        raise UnknownInstructionError(f"destination of {instruction.name}")
    written = registers_of([target])
    is_buffer = instruction.name.startswith("buffer")

    def execute(wave: Wave) -> None:
        addresses, mask = where(wave)
        if is_buffer:
            for register in range(first, first + target.count):
                np.copyto(wave.u32[register], 0, where=wave.mask)
        if mask.any():
            data = wave.memory.read(addresses[mask], form.num_bytes)
            put_loaded(wave, first, form, data, mask)
        wave.issue(counter, Access(instruction.line, written))

    reads = registers_of(operands[1:]) | (written if form.is_half else frozenset())
    return Step(instruction=instruction, execute=execute, reads=reads, writes=written)


def put_loaded(
    wave: Wave, first: int, form: Form, data: NDArray[Any], mask: NDArray[np.bool_]
) -> None:
    """data: words [lanes, registers], or bytes [lanes, 1 or 2] to be extended."""
    if form.num_bytes >= 4:
        for number, row in enumerate(data.T):
            wave.u32[first + number][mask] = row
        return
    kind = f"{'i' if form.is_signed else 'u'}{form.num_bytes}"
    value: NDArray[Any] = np.ascontiguousarray(data).view(kind)[:, 0]
    value = value.astype(np.int32).view(np.uint32)
    if form.is_half:
        shift = np.uint32(16 * form.is_high)
        kept = wave.u32[first][mask] & ~(np.uint32(0xFFFF) << shift)
        value = kept | (value & np.uint32(0xFFFF)) << shift
    wave.u32[first][mask] = value


def taken(wave: Wave, first: int, form: Form, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """[lanes, bytes] of registers, as a store writes them."""
    words = wave.vector[first : first + form.num_registers, mask]
    if form.is_high:
        words = words >> np.uint32(16)
    return np.ascontiguousarray(words.T).view(np.uint8)[:, : form.num_bytes]


def _store(
    instruction: Instruction,
    form: Form,
    operands: list[Operand],
    data: Operand,
    where: _Where,
    counter: str,
) -> Step:
    if data.kind != "v" or data.count != form.num_registers:
        raise UnknownInstructionError(f"data of {instruction.name}")

    def execute(wave: Wave) -> None:
        addresses, mask = where(wave)
        if mask.any():
            wave.memory.write(addresses[mask], taken(wave, data.index, form, mask))
        wave.issue(counter, Access(instruction.line, frozenset()))

    return Step(instruction=instruction, execute=execute, reads=registers_of(operands))


def _load_to_lds(instruction: Instruction, form: Form, where: _Where) -> Step:
    """Lane n's words go to LDS at M0 + offset + n times their size."""
    operands = [parse_operand(text) for text in instruction.operands]
    offset = int(instruction.modifiers.get("offset", "0"), 0)
    if form.num_bytes % 4:
        raise UnknownInstructionError(f"{instruction.name} of less than a word")
    is_buffer = instruction.name.startswith("buffer")

    def execute(wave: Wave) -> None:
        addresses, mask = where(wave)
        # Past the end of a buffer a lane reads 0 here as well, which is written.
        lanes = np.flatnonzero(wave.mask if is_buffer else mask)
        offsets = wave.scalar[M0] + offset + lanes * form.num_bytes
        regions: tuple[Region, ...] = ()
        if len(lanes):
            data = np.zeros((LANES, form.num_bytes), np.uint8)
            if mask.any():
                found = np.ascontiguousarray(wave.memory.read(addresses[mask], form.num_bytes))
                data[mask] = found.view(np.uint8)
            regions = (wave.lds.write(wave.number, offsets, data[lanes]),)
        wave.issue("vm", Access(instruction.line, frozenset(), lds=regions))

    reads = registers_of(operands) | {SCALARS + M0}
    return Step(instruction=instruction, execute=execute, reads=reads)


def _atomic(
    instruction: Instruction, what: str, space: str, operands: list[Operand], counter: str
) -> Step:
    """One lane after another, from the lowest: hardware's order is open."""
    kind, function = ATOMICS[what]
    returns = "sc0" in instruction.modifiers
    has_target = returns and space != "buffer"
    target = operands[0]
    data, rest = _data_and_address(space, operands[has_target:])
    where = _addressed(instruction, space, rest)
    num_bytes = 4 * data.count
    written = registers_of([target]) if returns else frozenset()

    def execute(wave: Wave) -> None:
        addresses, mask = where(wave)
        for lane in np.flatnonzero(mask):
            at = addresses[lane : lane + 1]
            old = wave.memory.read(at, num_bytes)
            operand = np.ascontiguousarray(wave.vector[data.index : data.index + data.count, lane])
            new = function(old.view(kind), operand.view(kind)[None, :])
            wave.memory.write(at, np.ascontiguousarray(new).view(np.uint8))
            if returns:
                wave.vector[target.index : target.index + data.count, lane] = old[0]
        wave.issue(counter, Access(instruction.line, written))

    reads = registers_of([data, *rest])
    return Step(instruction=instruction, execute=execute, reads=reads, writes=written)
