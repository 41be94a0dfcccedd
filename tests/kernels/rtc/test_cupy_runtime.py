"""What CuPy is told: no card is here, so a recording stands in for its driver."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hal.env import CACHE_FOLDER
from hal.errors import UnsupportedError
from hal.kernels.rtc import cupy_runtime
from hal.kernels.rtc.arch import Target
from hal.kernels.rtc.cupy_runtime import CupyRuntime, compile_options
from hal.kernels.rtc.program import Source

SOURCE = Source("gemv.cpp", Target("nvidia", "sm_90"), frozenset({("BFLOAT16", 1), ("GROUP", 32)}))


@dataclass
class Driver:
    """cupy.cuda.function.Module and its functions."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    loaded: list[bytes] = field(default_factory=list)
    version: int = 13000
    refuses: str = ""

    def load(self, binary: bytes) -> None:
        self.loaded.append(binary)
        if self.refuses:
            raise RuntimeError(self.refuses)

    def get_function(self, name: str) -> Any:
        def launch(grid: Any, block: Any, arguments: Any, *, stream: Any) -> None:
            self.calls.append({"name": name, "grid": grid, "block": block} | dict(stream=stream))
            self.calls[-1]["arguments"] = arguments

        return launch


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Driver:
    driver = Driver()
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path))
    monkeypatch.setattr(cupy_runtime, "compiler_name", lambda: "NVRTC 13.0")
    monkeypatch.setattr(cupy_runtime, "compile_source", lambda source: source.name.encode())
    names = ("cupy", "cupy.cuda", "cupy.cuda.function")
    modules = {name: ModuleType(name) for name in names}
    modules["cupy.cuda"].ExternalStream = lambda pointer: f"stream {pointer}"  # type: ignore[attr-defined]
    modules["cupy.cuda"].runtime = SimpleNamespace(driverGetVersion=lambda: driver.version)  # type: ignore[attr-defined]
    modules["cupy.cuda.function"].Module = lambda: driver  # type: ignore[attr-defined]  # a bare module
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    stream = SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    return driver


def test_pointers_are_64_bits_and_numbers_32(driver: Driver) -> None:
    x = torch.zeros(3)
    function = CupyRuntime().load(SOURCE, ["multiply"])["multiply"]
    function((5, 2), 256, (x, None, 9))
    (call,) = driver.calls
    assert (call["name"], call["grid"], call["block"]) == ("multiply", (5, 2), (256,))
    assert call["stream"] == "stream 77"
    pointer, none, number = call["arguments"]
    assert (pointer, none, number) == (x.data_ptr(), 0, 9)
    assert isinstance(number, np.int32) and type(pointer) is type(none) is int


def test_what_is_compiled_is_kept_until_driver_or_arch_change(
    driver: Driver, tmp_path: Path
) -> None:
    def load(source: Source) -> int:
        CupyRuntime().load(source, ["multiply"])
        assert driver.loaded[-1] == b"gemv.cpp"
        return len(list((tmp_path / "compiled").iterdir()))

    assert load(SOURCE) == load(SOURCE) == 1
    assert load(replace(SOURCE, target=Target("nvidia", "sm_80"))) == 2
    driver.version = 13010
    assert load(SOURCE) == 3


def test_a_driver_that_refuses_is_told(driver: Driver) -> None:
    driver.refuses = "CUDA_ERROR_NO_BINARY_FOR_GPU"
    with pytest.raises(UnsupportedError, match="multiply: CUDA_ERROR_NO_BINARY_FOR_GPU.*--kernel"):
        CupyRuntime().load(SOURCE, ["multiply"])


def test_each_compiler_gets_options_of_its_own() -> None:
    nvidia = compile_options(SOURCE)
    amd = compile_options(replace(SOURCE, target=Target("amd", "gfx942")))
    assert "--gpu-architecture=sm_90" in nvidia and "--offload-arch=gfx942" in amd
    assert nvidia[-3:-1] == amd[-3:-1] == ("-DHAL_BFLOAT16=1", "-DHAL_GROUP=32")
