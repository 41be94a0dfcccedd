"""One cell of the compile matrix: a site on an arch, and what its machine code lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hal.binding import Arena, Binder
from hal.device import Capabilities, Device
from hal.kernels.triton.program import Program, observed_by
from hal.kernels.triton.verify import machine_code
from hal.kernels.triton.verify.machine_code import MachineCode
from hal.kernels.triton.verify.site import Site
from hal.opset.linear import LinearFamily
from hal.opset.moe import GroupedLinearFamily
from hal.opset.vocab import VocabFamily
from hal.select import OPS, Kernel, Selector

KERNEL = "triton"
FLOORS_FILE = Path(__file__).with_name("floors.json")
MAX_TOKENS = 512
Floors = Mapping[str, Mapping[str, int]]

# Prefixes of matrix instructions, by prefix of the arch: of floats, and of int8 codes; `large`
# where an arch has others for many rows. What is not listed is as its `any`.
_MATRIX_INSTRUCTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "gfx9": {"any": ("v_mfma_f32",), "int8_any": ("v_mfma_i32",)},
    "gfx1": {"any": ("v_wmma_f32",), "int8_any": ("v_wmma_i32",)},
    "sm_": {"any": ("HMMA", "QMMA"), "int8_any": ("IMMA",)},
    "sm_90": {
        "any": ("HMMA", "HGMMA"),
        "large": ("HGMMA", "QGMMA"),
        "int8_any": ("IMMA", "IGMMA"),
        "int8_large": ("IGMMA",),
    },
    # Triton 3.6 makes no other instruction of int8 there.
    "sm_10": {"any": ("HMMA", "UTC"), "large": ("UTC",), "int8_any": ("IMMA", "UTCIMMA")},
}
_WIDE_LOADS = (
    *("global_load_dwordx4", "buffer_load_dwordx4", "global_load_b128", "buffer_load_b128"),
    *("global_load_lds_dwordx4", "buffer_load_lds_dwordx4"),
    *("LDG.E.128", "LDG.E.EF.128", "LDG.E.LTC", "LDGSTS.E.BYPASS.128", "LDGSTS.E.128", "UTMALDG"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """programs: with what each one takes. faults: empty where the machine code is as it should.

    rejected: why the kernel does not run this site there; missing: why it could not be compiled
        here; then nothing was
    compiler: by name, where it is not Triton
    """

    op: str
    site: str
    arch: str
    kernel: str = KERNEL
    programs: tuple[str, ...] = ()
    waves: int = 0
    rejected: str = ""
    missing: str = ""
    compiler: str = ""
    faults: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.op} {self.site}"

    def __str__(self) -> str:
        what = self.rejected or self.missing or "; ".join(self.faults) or ", ".join(self.programs)
        return f"{self.label} on {self.arch}: {what}"


Found = list[tuple[Program, MachineCode]]


def compile_site(site: Site, device: Device, floors: Floors) -> Compiled:
    """`site` for the arch that `device` and Triton pose as: bound and called as in the engine,
    with compilation in place of each launch."""
    caps = device.capabilities
    kernel = OPS[site.op].kernels[KERNEL]
    cell = partial(Compiled, op=site.op, site=site.name, arch=caps.arch)
    if reason := kernel.traits.rejects(caps, site.problem):
        return cell(rejected=reason)
    try:
        found = _compiled(site, kernel, device)
    except Exception as error:  # noqa: BLE001  # whatever a compiler raises is its result
        return cell(faults=(f"{type(error).__name__}: {error}"[:500],))
    return cell(
        programs=tuple(f"{program} {_summary(code)}" for program, code in found),
        waves=_waves(found),
        faults=tuple(faults_of(site, caps, found, floors.get(str(site), {}).get(caps.arch))),
    )


def _compiled(site: Site, kernel: Kernel, device: Device) -> Found:
    """Every program that one call launches."""
    found: Found = []

    def compile_launch(
        program: Program,
        _grid: tuple[int, ...],
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
    ) -> None:
        compiled = program.function.warmup(*arguments, grid=(1,), **constants)
        found.append((program, machine_code.read(compiled, device.capabilities)))

    binder = Binder(Selector(device.capabilities, is_present=False), Arena(MAX_TOKENS), device)
    bound = kernel.bind(site.problem, binder)
    binder.arena.allocate(device)
    if isinstance(bound, LinearFamily | VocabFamily | GroupedLinearFamily):
        bound.allocate(device)
    with observed_by(compile_launch):
        site.call(bound)
    return found


def _waves(found: Found) -> int:
    return min((code.waves for _, code in found), default=0)


def _summary(code: MachineCode) -> str:
    return f"({code.registers} registers, {code.shared_bytes} B shared, {code.waves} waves)"


def faults_of(site: Site, caps: Capabilities, found: Found, floor: int | None) -> Iterator[str]:
    """What is wrong with the code of a site's programs."""
    if not found:
        yield "launches nothing"
    for program, code in found:
        if code.spill_bytes:
            yield f"{program} spills {code.spill_bytes} bytes of each thread to memory"
        limit = caps.limits.shared_memory_bytes
        if code.shared_bytes > limit:
            yield f"{program} takes {code.shared_bytes} bytes of shared memory of {limit}"
    codes = [code for _, code in found]
    if site.multiplies:
        wanted = _matrix_instructions(caps.arch, site.multiplies)
        if not any(code.count(wanted) for code in codes):
            yield f"no matrix instruction ({', '.join(wanted)})"
    if site.reads_wide and not any(code.count(_WIDE_LOADS) for code in codes):
        yield f"no load of 16 bytes ({', '.join(sorted(_loads(codes)))})"
    if floor is None:
        yield "no floor of its occupancy is recorded; run scripts/record_floors.py"
    elif _waves(found) < floor:
        yield f"{_waves(found)} waves on a SIMD; the recorded floor is {floor}"


def _matrix_instructions(arch: str, rows: str) -> tuple[str, ...]:
    prefix = max((p for p in _MATRIX_INSTRUCTIONS if arch.startswith(p)), key=len)
    by_rows = _MATRIX_INSTRUCTIONS[prefix]
    return by_rows.get(rows, by_rows[rows.replace("large", "any")])


def _loads(codes: list[MachineCode]) -> set[str]:
    """Names of the loads that there are, to tell what came out instead."""
    return {
        name
        for code in codes
        for name in code.instructions
        if name.startswith(("global_load", "buffer_load", "LDG"))
    }


def read_floors() -> Floors:
    """Site -> arch -> the fewest waves that its programs may come down to."""
    floors: Floors = json.loads(FLOORS_FILE.read_text(encoding="utf-8"))
    return floors


def write_floors(floors: Floors) -> None:
    """One site a line, so that a difference can be read."""
    lines = [f" {json.dumps(site)}: {json.dumps(floors[site])}" for site in sorted(floors)]
    FLOORS_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
