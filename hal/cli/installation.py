"""What is installed beside the devices: versions for bug reports, and parts that are missing."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

PACKAGES = ("hal-runtime", "torch", "numpy", "transformers", "tokenizers", "safetensors", "triton")
COMPILERS = ("c++", "nvcc", "hipcc")
NATIVE_MODULE = "hal.kernels.cpu._C"
_COMPILER_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Version:
    """A program or package; `version` is empty where it is not installed."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Missing:
    """A part that is not installed, what that costs, and the command that adds it."""

    what: str
    consequence: str
    command: str


def installed_versions() -> tuple[Version, ...]:
    """Python, the system, the packages that matter, and the compilers on PATH."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    with ThreadPoolExecutor(max_workers=len(COMPILERS)) as pool:
        compilers = tuple(pool.map(compiler_version, COMPILERS))
    return (
        Version("python", platform.python_version()),
        Version("system", system),
        *(package_version(name) for name in PACKAGES),
        *compilers,
    )


def package_version(name: str) -> Version:
    try:
        return Version(name, version(name))
    except PackageNotFoundError:
        return Version(name, "")


def compiler_version(program: str) -> Version:
    """The first line of `program --version` with a version in it: nvcc starts with its name."""
    path = shutil.which(program)
    if path is None:
        return Version(program, "")
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=_COMPILER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return Version(program, f"{path} (does not answer --version)")
    lines = [line.strip() for line in done.stdout.splitlines() if re.search(r"\d\.\d", line)]
    return Version(program, lines[0] if lines else path)


def missing_parts(
    versions: tuple[Version, ...], native_module: str = NATIVE_MODULE
) -> tuple[Missing, ...]:
    """Parts of hal itself that this installation lacks."""
    if find_spec(native_module) is not None:
        return ()
    has_compiler = any(v.name == "c++" and v.version for v in versions)
    cause = "not compiled at install" if has_compiler else "no C++ compiler at install"
    install = "make clean install"
    return (
        Missing(
            f"native CPU kernels ({cause})",
            "the CPU runs on torch's and the reference kernels, which are slower",
            install if has_compiler else f"apt-get install g++ && {install}",
        ),
    )
