"""What CuPy is told: no card is here, so a recording stands in for its driver."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hal.errors import UnsupportedError
from hal.kernels.rtc.arch import Target
from hal.kernels.rtc.cupy_runtime import CupyRuntime, compile_options
from hal.kernels.rtc.program import Source


@dataclass
class Driver:
    """cupy.cuda.function.Module and its functions."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    refuses: str = ""

    def load(self, binary: bytes) -> None:
        if self.refuses:
            raise RuntimeError(self.refuses)

    def get_function(self, name: str) -> Any:
        def launch(grid: Any, block: Any, arguments: Any, *, stream: Any) -> None:
            self.calls.append({"name": name, "grid": grid, "block": block} | dict(stream=stream))
            self.calls[-1]["arguments"] = arguments

        return launch


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    names = ("cupy", "cupy.cuda", "cupy.cuda.function")
    modules = {name: ModuleType(name) for name in names}
    modules["cupy.cuda"].ExternalStream = lambda pointer: f"stream {pointer}"  # type: ignore[attr-defined]
    modules["cupy.cuda.function"].Module = lambda: driver  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    stream = SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    return driver


def test_pointers_are_64_bits_and_numbers_32(driver: Driver) -> None:
    x = torch.zeros(3)
    function = CupyRuntime().load(b"", ["multiply"])["multiply"]
    function((5, 2), 256, (x, None, 9))
    (call,) = driver.calls
    assert (call["name"], call["grid"], call["block"]) == ("multiply", (5, 2), (256,))
    assert call["stream"] == "stream 77"
    pointer, none, number = call["arguments"]
    assert (pointer, none, number) == (x.data_ptr(), 0, 9)
    assert isinstance(number, np.int32) and type(pointer) is type(none) is int


def test_a_driver_that_refuses_is_told(driver: Driver) -> None:
    driver.refuses = "CUDA_ERROR_NO_BINARY_FOR_GPU"
    with pytest.raises(UnsupportedError, match="multiply: CUDA_ERROR_NO_BINARY_FOR_GPU.*--kernel"):
        CupyRuntime().load(b"", ["multiply"])


def test_each_compiler_gets_options_of_its_own() -> None:
    constants = frozenset({("BFLOAT16", 1), ("GROUP", 32)})
    nvidia = compile_options(Source("gemv.cpp", Target("nvidia", "sm_90"), constants))
    amd = compile_options(Source("gemv.cpp", Target("amd", "gfx942"), constants))
    assert "--gpu-architecture=sm_90" in nvidia and "--offload-arch=gfx942" in amd
    assert nvidia[-2:] == amd[-2:] == ("-DHAL_BFLOAT16=1", "-DHAL_GROUP=32")
