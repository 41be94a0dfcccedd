"""What compilers make of src/ for archs that need not be here: instructions, registers, spills.

NVIDIA's compiler is the one that users run: NVRTC, through CuPy. For AMD it is clang, of ROCm where
that is installed, of the distribution elsewhere: what hiprtc calls, but another release of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle

from hal.device import Capabilities
from hal.dtypes import DType
from hal.errors import UnsupportedError
from hal.kernels.rtc import gemv, int4_linear
from hal.kernels.rtc.arch import Target
from hal.kernels.rtc.predicates import SIXTEEN_BITS
from hal.kernels.rtc.program import THREADS, Source
from hal.kernels.triton.verify.machine_code import MachineCode, waves
from hal.kernels.triton.verify.matrix import Compiled
from hal.opset.linear import LinearProblem
from hal.profiles import find_profile
from hal.select import OPS
from hal.weights import WEIGHT_FORMATS, WeightFormat

OP = "linear"  # of every kernel here
_WIDTH = 4096
_CLANG = ("amdclang++", "clang++-20", "clang++-19")
_MATRIX_INSTRUCTIONS = {"sm_": "mma.sync.", "gfx9": "v_mfma_f32_", "gfx1": "v_wmma_f32_"}
_WIDE_LOADS = {"sm_": ("ld.global.nc.v4", "ld.global.nc.L1::no_allocate.v4")}
_WIDE_LOADS |= dict.fromkeys(("gfx9", "gfx1"), ("global_load_dwordx4", "global_load_b128"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One source with its constants, as a problem asks for it."""

    kernel: str
    name: str
    problem: LinearProblem
    multiplies: bool

    def source(self, target: Target) -> Source:
        make = gemv.source if self.problem.weights is None else int4_linear.source
        return make(self.problem, target)


def variants() -> tuple[Variant, ...]:
    """Every format that is compiled to code of its own, and both dtypes."""
    formats = [f for f in WEIGHT_FORMATS.values() if f.codes is DType.INT4 and f.keeps_activations]
    int4 = tuple(
        Variant(
            kernel="mma_int4",
            name=f"{weights}-{dtype}",
            problem=_problem(dtype, weights),
            multiplies=True,
        )
        for weights, dtype in zip(formats, cycle(SIXTEEN_BITS), strict=False)
    )
    plain = tuple(
        Variant(kernel="gemv", name=str(dtype), problem=_problem(dtype, None), multiplies=False)
        for dtype in SIXTEEN_BITS
    )
    return (*int4, *plain)


def _problem(dtype: DType, weights: WeightFormat | None) -> LinearProblem:
    return LinearProblem(in_features=_WIDTH, out_features=_WIDTH, dtype=dtype, weights=weights)


def compile_variants(archs: Iterable[str], ops: Container[str]) -> Iterator[Compiled]:
    """Every variant for each arch, where its op is asked for; ops empty: all."""
    for arch in archs:
        for variant in variants():
            if not ops or OP in ops:
                yield compile_variant(variant, find_profile(arch).capabilities())


def compile_variant(variant: Variant, caps: Capabilities) -> Compiled:
    """For `caps.arch`; a compiler that is missing is told, a fault is a result."""
    cell = partial(
        Compiled,
        op=OP,
        kernel=variant.kernel,
        site=f"{variant.kernel} {variant.name}",
        arch=caps.arch,
    )
    if reason := OPS[OP].kernels[variant.kernel].traits.rejects(caps, variant.problem):
        return cell(rejected=reason)
    target = Target(caps.vendor, caps.arch)
    compiler = compiler_of(target)
    if isinstance(compiler, Missing):
        return cell(missing=compiler.reason)
    try:
        found = compiler.compile(variant.source(target), caps)
    except UnsupportedError as error:
        return cell(faults=(error.message,), compiler=compiler.name)
    return cell(
        programs=tuple(f"{name} ({code.registers} registers)" for name, code in found.items()),
        waves=min(code.waves for code in found.values()),
        faults=tuple(_faults(found, caps, variant.multiplies)),
        compiler=compiler.name,
    )


def _faults(
    found: Mapping[str, MachineCode], caps: Capabilities, multiplies: bool
) -> Iterator[str]:
    prefix = next(prefix for prefix in _WIDE_LOADS if caps.arch.startswith(prefix))
    for name, code in found.items():
        if code.spill_bytes:
            yield f"{name} spills {code.spill_bytes} bytes of each thread to memory"
        limit = caps.limits.shared_memory_bytes
        if code.shared_bytes > limit:
            yield f"{name} takes {code.shared_bytes} bytes of shared memory of {limit}"
        if not code.count(_WIDE_LOADS[prefix]):
            yield f"{name} has no load of 16 bytes"
        if multiplies and not code.count((_MATRIX_INSTRUCTIONS[prefix],)):
            yield f"{name} has no matrix instruction ({_MATRIX_INSTRUCTIONS[prefix]}*)"


@dataclass(frozen=True, slots=True)
class Missing:
    """No compiler for a vendor, and what to do about it."""

    reason: str


class Nvrtc:
    """NVRTC's own report on registers, and its PTX."""

    def __init__(self, name: str) -> None:
        self.name = name

    def compile(self, source: Source, caps: Capabilities) -> Mapping[str, MachineCode]:
        from hal.kernels.rtc.cupy_runtime import compile_report

        report = compile_report(source)
        entries = dict(re.findall(r"\.entry (\w+)\(.*?\n\{\n(.*?)\n\}", report.ptx, re.DOTALL))
        return {
            name: _machine_code(
                Counter(re.findall(r"^\s+(?:@!?%p\d+ )?([a-z][\w.:]+)", body, re.MULTILINE)),
                _entry_facts(report.log, name),
                caps,
            )
            for name, body in entries.items()
        }


@dataclass(frozen=True, slots=True)
class _Facts:
    registers: int
    spill_bytes: int
    shared_bytes: int


def _machine_code(instructions: Counter[str], facts: _Facts, caps: Capabilities) -> MachineCode:
    num_warps = THREADS // caps.simd_width
    return MachineCode(
        instructions=instructions,
        registers=facts.registers,
        spill_bytes=facts.spill_bytes,
        shared_bytes=facts.shared_bytes,
        waves=waves(caps, facts.registers, facts.shared_bytes, num_warps),
    )


def _entry_facts(log: str, name: str) -> _Facts:
    """A stack is what was spilled or could not be indexed in registers."""
    part = log[log.index(f"'{name}'") :].partition("Compiling entry")[0]
    return _Facts(
        registers=_number(part, r"Used (\d+) registers"),
        spill_bytes=_number(part, r"(\d+) bytes stack frame"),
        shared_bytes=_number(part, r"(\d+) bytes smem", default=0),
    )


class Clang:
    """clang for AMD: assembly text that states its resources."""

    def __init__(self, program: str) -> None:
        self._program = program
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        self.name = said.stdout.splitlines()[0].partition(" (")[0]

    def compile(self, source: Source, caps: Capabilities) -> Mapping[str, MachineCode]:
        arch = f"--offload-arch={source.target.arch}"
        options = ("-x", "hip", arch, "--offload-device-only", "-nogpulib", "-nogpuinc")
        more = ("-std=c++17", "-O3", "-S", "-o", "-", "-", *source.definitions)
        command = [self._program, *options, *more]
        done = subprocess.run(command, input=source.text, capture_output=True, text=True)
        if done.returncode:
            raise UnsupportedError(f"{self.name} for {caps.arch}: {done.stderr[-500:]}")
        bodies = dict(
            re.findall(r"^(\w+):\s+; @\1\n(.*?)^\s*\.section", done.stdout, re.DOTALL | re.M)
        )
        metadata = re.split(r"^  - ", done.stdout.partition("amdhsa.kernels:")[2], flags=re.M)
        return {
            name: _machine_code(
                Counter(re.findall(r"^\s+([a-z]+_\w+)(?:\s|$)", bodies[name], re.MULTILINE)),
                _Facts(
                    registers=_number(text, r"\.vgpr_count:\s+(\d+)"),
                    spill_bytes=_number(text, r"\.private_segment_fixed_size:\s+(\d+)"),
                    shared_bytes=_number(text, r"\.group_segment_fixed_size:\s+(\d+)"),
                ),
                caps,
            )
            for text in metadata
            for name in re.findall(r"^    \.name:\s+(\w+)", text, re.MULTILINE)
        }


def _number(text: str, pattern: str, default: int | None = None) -> int:
    found = re.search(pattern, text)
    if found is None and default is None:
        raise UnsupportedError(f"the compiler's report has no {pattern!r}")
    return int(found.group(1)) if found is not None else default or 0


def compiler_of(target: Target) -> Nvrtc | Clang | Missing:
    """The one that is here."""
    return _nvrtc() if target.vendor == "nvidia" else _clang()


@cache
def _nvrtc() -> Nvrtc | Missing:
    from hal.kernels.rtc.cupy_runtime import compiler_name

    try:
        return Nvrtc(compiler_name())
    except UnsupportedError as error:
        return Missing(error.message)


@cache
def _clang() -> Clang | Missing:
    program = next((found for name in _CLANG if (found := shutil.which(name))), None)
    if program is None:
        return Missing(f"none of {', '.join(_CLANG)}; on Debian: apt-get install clang-19")
    return Clang(program)
