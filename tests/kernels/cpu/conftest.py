"""A stage on this machine's CPU, or a skip with the reason why its native kernels cannot run."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hal.kernels
from hal.conformance.stage import Stage
from hal.devices.cpu import CpuDevice
from hal.kernels.cpu import native
from hal.kernels.cpu.portable import LEVELS
from hal.opset import linear, sample
from hal.opset.linear import LinearProblem
from hal.opset.sampling import SampleProblem


@pytest.fixture
def stage() -> Stage:
    """Seeded values and a binder over a present CPU that has AVX512_BF16 and AVX512_VNNI."""
    hal.kernels.register_all()
    device = CpuDevice()
    problem = LinearProblem(in_features=1, out_features=1, dtype=hal.dtypes.DType.BFLOAT16)
    traits = linear.kernels["avx512_bf16"].traits
    reason = traits.rejects(device.capabilities, problem) or native.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return Stage(device, seed=20)


@pytest.fixture(params=["avx512_bf16", *(level.name for level in LEVELS)])
def family(request: pytest.FixtureRequest) -> str:
    """What a kernel that works row by row is called on an instruction set that this CPU has."""
    hal.kernels.register_all()
    name: str = request.param
    traits = sample.kernels[name].traits
    problem = SampleProblem(vocab_size=1)
    reason = traits.rejects(CpuDevice().capabilities, problem) or traits.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return name


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The kernels take their number of threads from torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


_EMULATED = Path(__file__).with_name("amx_emulated.cpp")
_SOURCES = Path(__file__).parents[3] / "kernels/cpu/src"
_AVX512 = ("f", "bw", "vl", "dq", "bf16", "vnni")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """amx_emulated.cpp, compiled; CXXFLAGS may add sanitizers, which the compiler goes without."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if reason := native.unavailable() or (None if compiler else "no C++ compiler"):
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("amx") / "amx_emulated.so"
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-pthread", "-mfma", "-mavx2", "-mf16c"]
    flags += [f"-mavx512{name}" for name in _AVX512]
    flags += os.environ.get("CXXFLAGS", "").split()
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    sources = [_EMULATED, *(_SOURCES / name for name in ("pool.cpp", "counters.cpp"))]
    command = [str(compiler), *flags, *map(str, sources), "-o", str(path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    return ctypes.CDLL(str(path))
