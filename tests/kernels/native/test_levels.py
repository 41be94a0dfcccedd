"""The portable kernels as plain C++: every level of this machine's CPU, and those of AArch64 under
an emulator. Python, torch and the module are left out, so that an emulated CPU can run it.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from hal.devices.host import processor

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "kernels/cpu/src"
PROGRAM = Path(__file__).with_name("check_levels.cpp")
BASELINE = tuple(
    f"{name}.cpp" for name in ("levels", "features", "pack", "pool", "counters", "sampling")
)
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512F = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *AVX2)
# The same instruction as AVX-VNNI's by its name of AVX512-VNNI, on 256 bits: for CPUs that have
# this one only.
RENAMED = ("-D__AVXVNNI__", "-D_mm256_dpbusd_avx_epi32=_mm256_dpbusd_epi32")


@dataclass(frozen=True)
class Target:
    """One architecture: its compiler, its levels' flags as in native.cmake, and what runs it."""

    compiler: str
    levels: dict[str, tuple[str, ...]]
    emulator: str | None = None
    defines: tuple[str, ...] = ()

    def missing(self) -> str | None:
        tools = [self.compiler] if self.emulator is None else [self.compiler, self.emulator]
        absent = [tool for tool in tools if shutil.which(tool) is None]
        return f"{' and '.join(absent)} not found on this machine" if absent else None


X86 = Target(
    "g++",
    {
        "avx2": AVX2,
        "avxvnni": ("-mavxvnni", *AVX2),
        "avx512f": AVX512F,
        "avx512vnni": ("-mavx512vnni", *AVX512F),
    },
)
AVX_VNNI_RENAMED = Target(
    "g++",
    {"avx2": AVX2, "avxvnni": ("-mavx512vnni", "-mavx512vl", *AVX2, *RENAMED)},
    defines=('-DRUNS_AS_IF="avxvnni"',),
)
ARM = Target(
    "aarch64-linux-gnu-g++",
    {"neon": ("-march=armv8-a",), "dotprod": ("-march=armv8.2-a+dotprod",)},
    "qemu-aarch64-static",
)


@dataclass(frozen=True)
class Built:
    target: Target
    folder: Path

    @property
    def program(self) -> Path:
        return self.folder / "check_levels"

    def run(self, *levels: str, cpu: str = "max") -> subprocess.CompletedProcess[str]:
        emulator = [self.target.emulator, "-cpu", cpu] if self.target.emulator else []
        return subprocess.run(
            [*emulator, str(self.program), *levels], capture_output=True, text=True, check=False
        )


def build(target: Target, folder: Path) -> Built:
    """Objects of each level with its own flags, then the program, static where an emulator
    would not find the libraries."""
    if reason := target.missing():
        pytest.skip(reason)
    shared = [target.compiler, "-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror"]
    shared += ["-pthread", f"-I{SOURCES.parent}"]
    for level, flags in target.levels.items():
        source, made = SOURCES / f"level_{level}.cpp", folder / f"{level}.o"
        subprocess.run([*shared, *flags, "-c", str(source), "-o", str(made)], check=True)
    defined = [f"-DHAL_HAS_{level.upper()}" for level in target.levels] + list(target.defines)
    parts = [PROGRAM, *(SOURCES / name for name in BASELINE)]
    parts += [folder / f"{level}.o" for level in target.levels]
    static = ["-static"] if target.emulator else []
    command = [*shared, *static, *defined, *map(str, parts), "-o", str(folder / "check_levels")]
    subprocess.run(command, check=True)
    return Built(target, folder)


@pytest.fixture(scope="module")
def x86(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if platform.machine() != "x86_64":
        pytest.skip(f"for x86-64; this machine is {platform.machine()}")
    return build(X86, tmp_path_factory.mktemp("x86"))


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(ARM, tmp_path_factory.mktemp("arm"))


def test_levels_of_this_cpu(x86: Built) -> None:
    ran = x86.run()
    assert ran.returncode == 0, ran.stdout


def test_avx_vnni_by_the_other_name_of_its_instruction(tmp_path: Path) -> None:
    if "avx512_vnni" not in processor().flags:
        pytest.skip("this CPU has no vpdpbusd of AVX512-VNNI")
    ran = build(AVX_VNNI_RENAMED, tmp_path).run("avx2_vnni")
    assert ran.returncode == 0, ran.stdout
    assert "avx2_vnni: " in ran.stdout


@pytest.mark.parametrize(
    ("level", "register"), [("avxvnni", "ymm"), ("avx512vnni", "zmm")], ids=str
)
def test_dots_are_the_instruction_for_them(x86: Built, level: str, register: str) -> None:
    """And nothing that a CPU with AVX-VNNI alone lacks is in its code."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(x86.folder / f"{level}.o")]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    dots = [line for line in code.splitlines() if "vpdpbusd" in line]
    assert dots and all(register in line for line in dots)
    assert "vpmaddubsw" not in code
    if level == "avxvnni":
        assert "zmm" not in code and "%k1" not in code
        assert all("{vex} vpdpbusd" in line for line in dots)


@pytest.mark.parametrize(
    ("level", "cpu"), [("neon", "cortex-a53"), ("neon", "max"), ("neon_dotprod", "max")]
)
def test_levels_of_an_emulated_arm_cpu(arm: Built, level: str, cpu: str) -> None:
    ran = arm.run(level, cpu=cpu)
    assert ran.returncode == 0, ran.stdout
    assert f"{level}: " in ran.stdout


def test_a_level_that_the_cpu_lacks_is_not_run(arm: Built) -> None:
    """A Cortex-A53 has no dot products: running them would end in an illegal instruction."""
    ran = arm.run("neon_dotprod", cpu="cortex-a53")
    assert (ran.returncode, ran.stdout) == (1, "FAILED neon_dotprod cannot run here\n")


def test_a_level_leaks_no_code_into_the_others(x86: Built) -> None:
    """A weak function compiled for AVX512 could be the one that the linker keeps for every CPU."""
    for level in x86.target.levels:
        symbols = subprocess.run(
            ["nm", "-C", str(x86.folder / f"{level}.o")], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        weak = [line for line in symbols if " W " in line]
        assert weak == []
