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

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "kernels/cpu/src"
PROGRAM = Path(__file__).with_name("check_levels.cpp")
BASELINE = ("levels.cpp", "features.cpp", "pack.cpp", "pool.cpp", "counters.cpp")
AVX2 = ("-mavx2", "-mfma", "-mf16c")


@dataclass(frozen=True)
class Target:
    """One architecture: its compiler, its levels' flags as in native.cmake, and what runs it."""

    compiler: str
    levels: dict[str, tuple[str, ...]]
    emulator: str | None = None

    def missing(self) -> str | None:
        tools = [self.compiler] if self.emulator is None else [self.compiler, self.emulator]
        absent = [tool for tool in tools if shutil.which(tool) is None]
        return f"{' and '.join(absent)} not found on this machine" if absent else None


X86 = Target(
    "g++",
    {
        "avx2": AVX2,
        "avx512f": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *AVX2),
    },
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
    defined = [f"-DHAL_HAS_{level.upper()}" for level in target.levels]
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
