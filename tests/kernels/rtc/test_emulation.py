"""What the emulation must not let pass: kernels that a GPU would hang on, or compute nonsense."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from emulated_gpu import COMPILER, HostRuntime, compile_text
from triton_interpreter import posed_device

from hal.conformance.cases import cases_by_op
from hal.conformance.quantized_cases import WideLinearCase
from hal.conformance.run import conform
from hal.kernels import register_all
from hal.kernels.rtc import tiles
from hal.kernels.rtc.arch import MFMA, MMA, TileOrder
from hal.kernels.rtc.program import using
from hal.opset import linear

register_all()

pytestmark = pytest.mark.skipif(not COMPILER, reason="no C++ compiler for the emulation")

KERNELS = """
HAL_KERNEL(64) fine(int* out) {
  out[thread_index()] = static_cast<int>(add_over_warp(1.0f));
  synchronize();
}
HAL_KERNEL(64) part_of_a_warp_adds(int* out) {
  if (thread_index() % 32 < 16) add_over_warp(1.0f);
}
HAL_KERNEL(64) a_warp_does_not_meet(int* out) {
  if (thread_index() < 32) synchronize();
}
HAL_KERNEL(64) loads_between_words(int* out) {
  load_streamed(out + 1);
}
"""
LAUNCH = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
kernel = ctypes.cast(getattr(library, sys.argv[2]), ctypes.c_void_p)
out = (ctypes.c_int * 64)()
words = (ctypes.c_longlong * 1)(ctypes.addressof(out))
library.launch(kernel, 1, 1, 64, words, 1)
print(sum(out))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emulated") / "kernels.so"
    compile_text(KERNELS, ("-DHAL_WARP=32", "-DHAL_BFLOAT16=1"), path)
    return path


def launch(library: Path, kernel: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LAUNCH, str(library), kernel]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_threads_of_a_warp_add_up(library: Path) -> None:
    assert launch(library, "fine").stdout == f"{64 * 32}\n"


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("part_of_a_warp_adds", "threads of a warp do different things"),
        ("a_warp_does_not_meet", "threads of a block do not meet"),
        ("loads_between_words", "a load of 16 bytes is not aligned"),
    ],
)
def test_a_fault_ends_the_process(library: Path, kernel: str, said: str) -> None:
    run = launch(library, kernel)
    assert run.returncode != 0 and said in run.stderr


def test_codes_in_the_order_of_another_vendor_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = tiles.word_positions

    def wrong(order: TileOrder) -> object:
        return right(MFMA if order is MMA else order)

    case = next(case for case in cases_by_op()["linear"] if isinstance(case, WideLinearCase))
    monkeypatch.setattr(tiles, "word_positions", wrong)
    with using(HostRuntime(tmp_path)):
        record = conform(linear.kernels["mma_int4"], case, posed_device("h100"))
    assert record.has_failed and "out, M=1" in record.detail
