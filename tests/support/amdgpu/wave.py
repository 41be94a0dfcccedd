"""State of one wave of 64 lanes: registers, EXEC, VCC, SCC, M0, and what memory still owes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amdgpu.lds import Lds, Region
from amdgpu.memory import Memory
from amdgpu.operands import ACCUMULATORS, EXEC, NUM_SCALARS, SCALARS, SCC

LANES = 64
ALL_LANES = (1 << LANES) - 1
Mask = NDArray[np.bool_]
# Seen where an undefined register slips through: a NaN as float32, no plausible index.
POISON = 0x7FE5CAFE


@lru_cache(maxsize=4096)
def mask_of(bits: int) -> Mask:
    """[64], read-only: bit n of a 64-bit scalar is lane n."""
    mask = np.unpackbits(np.frombuffer(bits.to_bytes(8, "little"), np.uint8), bitorder="little")
    found: Mask = mask.view(np.bool_)
    found.flags.writeable = False
    return found


def bits_of(mask: Mask) -> int:
    return int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")


@dataclass(slots=True, eq=False)
class Access:
    """One access to memory under way. registers: that it will write; line: of the text.

    lds: what it writes of LDS, of interest at a barrier
    """

    line: int
    registers: frozenset[int]
    is_scalar: bool = False
    lds: tuple[Region, ...] = ()


@dataclass(slots=True)
class Counters:
    """Accesses that s_waitcnt counts, oldest first: CDNA3 ISA, "Manually Inserted Wait States".

    vm: vector memory, which retires in order. lgkm: LDS in order, scalar loads in any.
    """

    vm: deque[Access] = field(default_factory=deque)
    lgkm: deque[Access] = field(default_factory=deque)


def _rows(registers: NDArray[Any], used: Sequence[int]) -> dict[int, NDArray[Any]]:
    return {number: registers[number] for number in used}


class Wave:
    """number: within its workgroup. num_vector, num_accumulators: registers of each lane that the
    kernel asked for; others raise KeyError.

    memory, lds: what its addresses reach.
    vector: uint32 [registers, 64], accumulators from ACCUMULATORS on; u32, i32, f32: its rows.
    undefined: number of a register -> lanes that nothing wrote, as bits.
    pending: number of a register -> the access that will write it.
    """

    def __init__(
        self, number: int, num_vector: int, num_accumulators: int, memory: Memory, lds: Lds
    ) -> None:
        self.number = number
        self.memory = memory
        self.lds = lds
        num_registers = ACCUMULATORS + num_accumulators
        self.vector = np.full((num_registers, LANES), POISON, np.uint32)
        used = (*range(num_vector), *range(ACCUMULATORS, num_registers))
        self.u32 = _rows(self.vector, used)
        self.i32 = _rows(self.vector.view(np.int32), used)
        self.f32 = _rows(self.vector.view(np.float32), used)
        self.scalar = [POISON] * NUM_SCALARS
        self.set_scratch(0)
        self.scc = 0
        self.pc = 0
        self.is_done = False
        self.counters = Counters()
        self.pending: dict[int, Access] = {}
        self.undefined = dict.fromkeys(used, ALL_LANES)
        self.undefined |= dict.fromkeys(range(SCALARS, SCC + 1), ALL_LANES)
        self.set_exec(ALL_LANES)
        self.define(range(SCALARS + EXEC, SCALARS + EXEC + 2))

    def set_scratch(self, num_bytes: int) -> None:
        """Private memory of each lane: words [words, 64], and which lanes wrote each, as bits."""
        self.scratch = np.full((num_bytes // 4, LANES), POISON, np.uint32)
        self.scratch_defined = [0] * len(self.scratch)

    def set_exec(self, bits: int) -> None:
        self.exec = bits
        self.mask = mask_of(bits)
        self.is_full = bits == ALL_LANES
        self.scalar[EXEC], self.scalar[EXEC + 1] = bits & 0xFFFFFFFF, bits >> 32

    def read64(self, index: int) -> int:
        return self.scalar[index] | self.scalar[index + 1] << 32

    def write_scalars(self, index: int, count: int, value: int) -> None:
        """Of a value of 32 bits x count, low register first."""
        for i in range(index, index + count):
            self.scalar[i] = value & 0xFFFFFFFF
            value >>= 32
        if index + count > EXEC:
            self.set_exec(self.read64(EXEC))

    def define(self, registers: range) -> None:
        """Set before the kernel starts."""
        for register in registers:
            self.undefined.pop(register, None)

    def preset_scalars(self, index: int, values: list[int]) -> None:
        """What the launch writes into scalar registers."""
        self.scalar[index : index + len(values)] = values
        self.define(range(SCALARS + index, SCALARS + index + len(values)))

    def issue(self, counter: str, access: Access) -> None:
        """counter: "vm", "lgkm" or, of flat instructions, "vm lgkm"."""
        for name in counter.split():
            getattr(self.counters, name).append(access)
        for register in access.registers:
            self.pending[register] = access

    def wait(self, vm: int | None = None, lgkm: int | None = None) -> None:
        """s_waitcnt: goes on when at most so many are under way."""
        if vm is not None:
            self._retire(self.counters.vm, vm)
        if lgkm is not None:
            queue = self.counters.lgkm
            # Scalar loads come back in any order: only none left says which have.
            if lgkm == 0 or not any(access.is_scalar for access in queue):
                self._retire(queue, lgkm)

    def _retire(self, queue: deque[Access], left: int) -> None:
        while len(queue) > left:
            access = queue.popleft()
            if access in self.counters.vm or access in self.counters.lgkm:
                continue  # a flat access waits for both
            for register in access.registers:
                if self.pending.get(register) is access:
                    del self.pending[register]
