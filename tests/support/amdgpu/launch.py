"""A launch: kernel arguments in memory, workgroups one after another, their waves by turns.

Waves of a workgroup run until a barrier or their end, lowest number first; what would come out
differently in another order is reported by lds.py. The ABI is that of LLVM's AMDGPU backend
(https://llvm.org/docs/AMDGPUUsage.html, "Kernel Dispatch", "Initial Kernel Execution State").
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amdgpu.assembly import Argument, Assembly, parse
from amdgpu.errors import EmulationError, LaunchError
from amdgpu.hazards import check_defined, check_pending, define, pass_on
from amdgpu.lds import Lds
from amdgpu.memory import Memory
from amdgpu.program import ARCHS, decode
from amdgpu.step import Step
from amdgpu.wave import LANES, Wave

Value = NDArray[Any] | int | float | None
# What the emulation of floating point assumes: nearest even, subnormal numbers kept, NaN handling
# of IEEE mode.
_MODES = {
    "float_round_mode_32": 0,
    "float_round_mode_16_64": 0,
    "float_denorm_mode_32": 3,
    "float_denorm_mode_16_64": 3,
}
_UNSUPPORTED = ("user_sgpr_private_segment_size", "system_sgpr_workgroup_info")
_KERNARG_ALIGNMENT = 64
MAX_STEPS = 20_000_000  # of one wave between two barriers: a kernel that does not end


class Metadata(Protocol):
    """Of a compiled kernel, as Triton's `metadata` has it. shared: bytes of LDS."""

    @property
    def shared(self) -> int: ...
    @property
    def num_warps(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a launch without Triton's metadata."""

    num_warps: int = 1
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a launch did. num_steps: instructions of all waves."""

    num_steps: int


def launch(
    text: str,
    metadata: Metadata,
    grid: Sequence[int],
    arguments: Sequence[Value],
    kernel: str = "",
    max_steps: int = MAX_STEPS,
) -> Report:
    """Run every workgroup of `grid` (1 to 3 numbers); arrays are read and written in place.

    text: assembly for gfx942 or gfx950. arguments: in the order of the kernel's own; None is a
    null pointer, and the pointers that the compiler appends are null too. An integer or float
    takes as many bytes as the kernel's metadata say.
    Raises a kind of EmulationError that names the line, or LaunchError.
    """
    assembly, steps = _program(text, kernel)
    memory = Memory()
    kernarg = memory.place(_kernarg(assembly, arguments, memory), is_read_only=True)
    num_steps = 0
    with np.errstate(all="ignore"):
        for group in _workgroups(grid):
            lds = Lds(max(metadata.shared, assembly.directives.get("group_segment_fixed_size", 0)))
            waves = [
                _wave(assembly, number, kernarg, group, memory, lds)
                for number in range(metadata.num_warps)
            ]
            num_steps += _run_workgroup(steps, waves, lds, max_steps)
    return Report(num_steps)


@lru_cache(maxsize=64)
def _program(text: str, kernel: str) -> tuple[Assembly, Sequence[Step]]:
    assembly = parse(text, kernel)
    _check(assembly)
    return assembly, decode(assembly)


def _check(assembly: Assembly) -> None:
    if assembly.arch not in ARCHS:
        raise LaunchError(f"the text is for {assembly.arch or 'no'} arch; emulated: {ARCHS}")
    given = assembly.directives
    for name, wanted in _MODES.items():
        if given.get(name, wanted) != wanted:
            raise LaunchError(f"{name} is {given[name]}; the emulator knows {wanted} only")
    for name in _UNSUPPORTED:
        if given.get(name):
            raise LaunchError(f"the kernel asks for {name}, which the emulator does not set up")


def _kernarg(assembly: Assembly, values: Sequence[Value], memory: Memory) -> NDArray[np.uint8]:
    """The kernarg segment: each argument where the metadata say, the appended pointers null."""
    slots = [a for a in assembly.arguments if not a.kind.startswith("hidden_")]
    if not len(slots) - 2 <= len(values) <= len(slots):
        raise LaunchError(
            f"{assembly.name} has {len(slots)} arguments (the last two may be left out); "
            f"{len(values)} are given"
        )
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    addresses = iter(memory.add(arrays))
    # Compilers widen loads up to the segment's alignment; what they read past its end is unused.
    num_bytes = assembly.directives.get("kernarg_size", 0)
    segment = np.zeros(-(-num_bytes // _KERNARG_ALIGNMENT) * _KERNARG_ALIGNMENT, np.uint8)
    for slot, value in zip(slots, values, strict=False):
        raw = _packed(slot, next(addresses) if isinstance(value, np.ndarray) else value)
        segment[slot.offset : slot.offset + slot.size] = np.frombuffer(raw, np.uint8)
    return segment


def _packed(slot: Argument, value: int | float | None) -> bytes:
    if isinstance(value, float):
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[slot.size], value)
    return (int(value or 0) & ((1 << 8 * slot.size) - 1)).to_bytes(slot.size, "little")


def _workgroups(grid: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    x, y, z = (*grid, 1, 1)[:3]
    for k, j, i in itertools.product(range(z), range(y), range(x)):
        yield i, j, k


def _wave(
    assembly: Assembly,
    number: int,
    kernarg: int,
    group: tuple[int, int, int],
    memory: Memory,
    lds: Lds,
) -> Wave:
    given = assembly.directives
    total = given.get("next_free_vgpr", 0)
    num_vector = min(total, given.get("accum_offset", total))
    wave = Wave(number, num_vector, total - num_vector, memory, lds)
    wave.set_scratch(given.get("private_segment_fixed_size", 0))
    if given.get("user_sgpr_kernarg_segment_ptr"):
        # Two pointers come before it where a kernel declares them; what they point to is not set
        # up, and so they stay undefined.
        before = given.get("user_sgpr_dispatch_ptr", 0) + given.get("user_sgpr_queue_ptr", 0)
        wave.preset_scalars(2 * before, [kernarg & 0xFFFFFFFF, kernarg >> 32])
    # Arguments preloaded into scalar registers are loaded again by the code at the entry, for
    # firmware that does not: that is where we start.
    place = given.get("user_sgpr_count", 0)
    for axis, which in zip("xyz", group, strict=True):
        if given.get(f"system_sgpr_workgroup_id_{axis}", axis == "x"):
            wave.preset_scalars(place, [which])
            place += 1
    # Packed work-item ids: 10 bits each; only x counts here.
    wave.u32[0][:] = np.arange(number * LANES, (number + 1) * LANES)
    wave.define(range(1))
    return wave


def _run_workgroup(steps: Sequence[Step], waves: list[Wave], lds: Lds, max_steps: int) -> int:
    num_steps = 0
    running = waves
    while running:
        num_steps += sum(_run(steps, wave, max_steps) for wave in running)
        running = [wave for wave in running if not wave.is_done]
        lds.pass_barrier()
        for wave in waves:
            for access in (*wave.counters.vm, *wave.counters.lgkm):
                for region in access.lds:
                    lds.mark_pending(wave.number, region)
    return num_steps


def _run(steps: Sequence[Step], wave: Wave, max_steps: int) -> int:
    """To the next barrier or the end; number of instructions."""
    undefined, pending = wave.undefined.keys(), wave.pending.keys()
    count = 1
    step = steps[wave.pc]
    try:
        while not step.stops:
            wave.pc += 1
            # Both are empty for nearly all that most instructions touch.
            if pending and not pending.isdisjoint(step.touched):
                check_pending(wave, step.touched)
            if not undefined.isdisjoint(step.touched):
                _check_and_define(step, wave)
            step.execute(wave)
            count += 1
            if count > max_steps:
                raise EmulationError(f"wave {wave.number} does not end: {count} instructions")
            step = steps[wave.pc]
    except EmulationError as error:
        raise _located(error, step) from error
    except Exception as error:
        error.add_note(f"line {step.instruction.line}: {step.instruction.text}")
        raise
    wave.pc += 1
    wave.is_done = step.stops == "end"
    return count


def _check_and_define(step: Step, wave: Wave) -> None:
    undefined = wave.undefined.keys()
    check_defined(wave, step.reads & undefined, wave.exec)
    if step.crossing_lanes:
        check_defined(wave, step.crossing & undefined, step.crossing_lanes(wave))
    lanes = step.lanes_written(wave) if step.lanes_written else wave.exec
    if step.passes:
        pass_on(wave, step, lanes)
    define(wave, (step.writes - step.passes.keys()) & undefined, lanes)


def _located(error: EmulationError, step: Step) -> EmulationError:
    if error.line:
        return error
    return type(error)(error.what, step.instruction.line, step.instruction.text)
