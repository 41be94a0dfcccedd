"""What the machine code of a compiled kernel holds: instructions, registers, spills, occupancy.

AMD's assembly text states its resources. Of NVIDIA's, `cuobjdump` of Triton's own package tells.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hal.device import Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineCode:
    """registers: of one thread. spill_bytes: per thread, to memory. waves: warps or wavefronts
    that a SIMD (a quarter of a compute unit) holds at once by these registers and this memory."""

    instructions: Mapping[str, int]
    registers: int
    spill_bytes: int
    shared_bytes: int
    waves: int

    def count(self, prefixes: tuple[str, ...]) -> int:
        """Instructions whose name begins with one of these."""
        return sum(n for name, n in self.instructions.items() if name.startswith(prefixes))


@dataclass(frozen=True, slots=True)
class _Simd:
    """registers: 32-bit ones for all waves of a SIMD; granule: what one wave takes at once.

    shared_bytes: of the compute unit that `num_simds` of them share.
    """

    max_waves: int
    registers: int
    granule: int
    shared_bytes: int
    num_simds: int = 4


# Sources: CUDA C++ Programming Guide, technical specifications per compute capability; AMD's
# instruction set guides of CDNA 2 to 4, RDNA 3 and 4 (a work-group processor's four SIMDs share
# its 128 KiB).
_SIMDS = {
    "sm_80": _Simd(16, 16384, 256, 164 << 10),
    "sm_8": _Simd(12, 16384, 256, 100 << 10),
    "sm_90": _Simd(16, 16384, 256, 228 << 10),
    "sm_10": _Simd(16, 16384, 256, 228 << 10),
    "sm_12": _Simd(12, 16384, 256, 100 << 10),
    "gfx90a": _Simd(8, 32768, 512, 64 << 10),
    "gfx942": _Simd(8, 32768, 512, 64 << 10),
    "gfx950": _Simd(8, 32768, 512, 160 << 10),
    "gfx11": _Simd(16, 49152, 768, 128 << 10),
    "gfx12": _Simd(16, 49152, 768, 128 << 10),
}


def read(compiled: Any, caps: Capabilities) -> MachineCode:
    """Of what Triton compiled for this arch."""
    if "amdgcn" in compiled.asm:
        instructions, registers, spill_bytes = _read_amdgcn(compiled.asm["amdgcn"])
    else:
        instructions, registers, spill_bytes = _read_cubin(compiled.asm["cubin"])
    shared_bytes = int(compiled.metadata.shared)
    return MachineCode(
        instructions=instructions,
        registers=registers,
        spill_bytes=spill_bytes,
        shared_bytes=shared_bytes,
        waves=waves(caps, registers, shared_bytes, int(compiled.metadata.num_warps)),
    )


def waves(caps: Capabilities, registers: int, shared_bytes: int, num_warps: int) -> int:
    """How many a SIMD holds: by its slots, its registers, and its compute unit's shared memory."""
    simd = _SIMDS[max((a for a in _SIMDS if caps.arch.startswith(a)), key=len)]
    of_a_wave = -(-registers * caps.simd_width // simd.granule) * simd.granule
    by_registers = simd.registers // max(of_a_wave, simd.granule)
    num_programs = min(by_registers, simd.max_waves) * simd.num_simds // num_warps
    if shared_bytes:
        num_programs = min(num_programs, simd.shared_bytes // shared_bytes)
    # Fewer than one program a compute unit cannot run at all; a program may have less than a
    # wave for each SIMD.
    return min(simd.max_waves, by_registers, -(-num_programs * num_warps // simd.num_simds))


def _read_amdgcn(text: str) -> tuple[Counter[str], int, int]:
    instructions = Counter(re.findall(r"^\s+([a-z]+_[a-z0-9_]+)(?:\s|$)", text, re.MULTILINE))
    registers = _number(text, r"\.vgpr_count:\s+(\d+)")
    return instructions, registers, _number(text, r"\.private_segment_fixed_size:\s+(\d+)")


def _read_cubin(cubin: bytes) -> tuple[Counter[str], int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(_cuobjdump()), "-res-usage", "-sass", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    instructions = Counter(
        re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text, re.MULTILINE)
    )
    # A stack is what was spilled or could not be indexed in registers.
    spill_bytes = _number(text, r"STACK:(\d+)") + _number(text, r"LOCAL:(\d+)")
    return instructions, _number(text, r"REG:(\d+)"), spill_bytes


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's report has no {pattern!r}")
    return int(found.group(1))


@cache
def _cuobjdump() -> Path:
    from triton import knobs

    return Path(knobs.nvidia.cuobjdump.path)
