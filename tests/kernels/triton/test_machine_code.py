"""Faults that the compile matrix must find, planted."""

from __future__ import annotations

import pytest

from hal.kernels import register_all
from hal.kernels.triton.program import Program
from hal.kernels.triton.verify.machine_code import MachineCode, waves
from hal.kernels.triton.verify.matrix import faults_of
from hal.kernels.triton.verify.site import Site
from hal.kernels.triton.verify.sites import all_sites
from hal.kernels.triton.verify.targets import capabilities_of

register_all()

PROGRAM = Program("norm", "rms_norm")
SITE = next(iter(all_sites()))


def code(
    *instructions: str, spill_bytes: int = 0, shared_bytes: int = 0, num_waves: int = 8
) -> MachineCode:
    return MachineCode(
        instructions=dict.fromkeys(instructions, 1),
        registers=64,
        spill_bytes=spill_bytes,
        shared_bytes=shared_bytes,
        waves=num_waves,
    )


def faults(
    found: MachineCode | None,
    arch: str = "gfx942",
    floor: int | None = 8,
    multiplies: str = "",
    reads_wide: bool = False,
) -> str:
    site = Site(
        op=SITE.op,
        name=SITE.name,
        problem=SITE.problem,
        call=SITE.call,
        multiplies=multiplies,
        reads_wide=reads_wide,
    )
    codes = [] if found is None else [(PROGRAM, found)]
    return "; ".join(faults_of(site, capabilities_of(arch), codes, floor))


def test_code_as_it_should_be_has_no_fault() -> None:
    assert faults(code()) == ""


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        (faults(None), "launches nothing"),
        (faults(code(spill_bytes=12)), "spills 12 bytes"),
        (faults(code(shared_bytes=(64 << 10) + 1)), "takes 65537 bytes of shared memory"),
        (faults(code(num_waves=7)), "7 waves on a SIMD; the recorded floor is 8"),
        (faults(code(), floor=None), "no floor"),
        (faults(code("buffer_load_dwordx2"), reads_wide=True), "no load of 16 bytes"),
        (faults(code("v_fma_f32"), multiplies="any"), "no matrix instruction"),
        (faults(code("v_mfma_f32_32x32x8_f16"), "gfx1100", multiplies="any"), "v_wmma_"),
        (faults(code("HMMA.16816.F32"), "sm_90", multiplies="large"), "HGMMA"),
    ],
)
def test_a_fault_is_named(planted: str, said: str) -> None:
    assert said in planted


@pytest.mark.parametrize(
    ("arch", "instruction"),
    [
        ("gfx90a", "v_mfma_f32_32x32x8f16"),
        ("gfx1201", "v_wmma_f32_16x16x16_bf16"),
        ("sm_80", "HMMA.16816.F32"),
        ("sm_90", "HGMMA.64x128x16.F32.BF16"),
        ("sm_100", "UTCHMMA"),
    ],
)
def test_matrix_instructions_of_an_arch_are_known(arch: str, instruction: str) -> None:
    assert faults(code(instruction), arch, multiplies="large") == ""


@pytest.mark.parametrize(
    ("arch", "registers", "shared_bytes", "num_warps", "expected"),
    [
        ("gfx942", 64, 0, 4, 8),  # 512 registers of a lane: 8 x 64
        ("gfx942", 128, 0, 4, 4),
        ("gfx942", 64, 32 << 10, 4, 2),  # two programs of 32 KiB, four SIMDs
        ("gfx1100", 96, 0, 4, 16),
        ("gfx1100", 256, 0, 4, 5),
        ("sm_90", 128, 0, 4, 4),  # 64 Ki registers of an SM: 16 warps of 128
        ("sm_90", 32, 100 << 10, 4, 2),
        ("sm_89", 32, 0, 4, 12),
    ],
)
def test_waves_follow_registers_and_shared_memory(
    arch: str, registers: int, shared_bytes: int, num_warps: int, expected: int
) -> None:
    assert waves(capabilities_of(arch), registers, shared_bytes, num_warps) == expected
