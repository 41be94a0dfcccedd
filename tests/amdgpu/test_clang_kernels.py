"""C++ kernels that clang compiled for gfx942, under the emulator."""

from __future__ import annotations

import numpy as np
import pytest
from amdgpu.clang_kernels import ClangRuntime, assembly_of, clang
from amdgpu.errors import LdsRaceError, PendingReadError, UndefinedReadError
from amdgpu.launch import Shape, launch

from hal.conformance.cases import cases_by_op
from hal.conformance.run import conform
from hal.devices.cpu import CpuDevice
from hal.kernels import register_all
from hal.kernels.rtc import program
from hal.profiles import find_profile
from hal.select import OPS

register_all()
pytestmark = pytest.mark.skipif(clang() is None, reason="no clang for gfx942 is installed")

SOFTMAX = """
#define KERNEL extern "C" __attribute__((global))
static __attribute__((device)) float moved(float x, int lane) {
  int bits = __builtin_amdgcn_ds_bpermute(4 * lane, __builtin_bit_cast(int, x));
  return __builtin_bit_cast(float, bits);
}
static __attribute__((device)) float weight(float x) {
  return __builtin_amdgcn_exp2f(1.442695f * x);
}
static __attribute__((device)) void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
KERNEL __attribute__((amdgpu_flat_work_group_size(256, 256)))
void softmax(const float* x, float* out, int width) {
  __attribute__((shared)) float parts[8];
  int t = __builtin_amdgcn_workitem_id_x();
  x += __builtin_amdgcn_workgroup_id_x() * width;
  out += __builtin_amdgcn_workgroup_id_x() * width;
  float largest = -1e30f, total = 0;
  for (int i = t; i < width; i += 256) largest = __builtin_fmaxf(largest, x[i]);
  for (int far = 32; far; far /= 2)
    largest = __builtin_fmaxf(largest, moved(largest, (t ^ far) & 63));
  if (t % 64 == 0) parts[t / 64] = largest;
  barrier();
  for (int wave = 0; wave < 4; wave++) largest = __builtin_fmaxf(largest, parts[wave]);
  for (int i = t; i < width; i += 256) total += weight(x[i] - largest);
  for (int far = 32; far; far /= 2) total += moved(total, (t ^ far) & 63);
  if (t % 64 == 0) parts[4 + t / 64] = total;
  barrier();
  total = parts[4] + parts[5] + parts[6] + parts[7];
  for (int i = t; i < width; i += 256) out[i] = weight(x[i] - largest) / total;
}
"""


@pytest.mark.parametrize("width", [1, 64, 257, 500])
def test_softmax_over_four_waves(width: int) -> None:
    x = np.random.default_rng(width).standard_normal((3, width)).astype(np.float32)
    out = np.zeros_like(x)
    launch(assembly_of(SOFTMAX, "gfx942"), Shape(num_warps=4), (3,), [x, out, width])
    exact = np.exp(x.astype(np.float64))
    assert np.allclose(out, exact / exact.sum(axis=1, keepdims=True), rtol=1e-5, atol=0)


def test_no_wait_and_no_barrier_of_compiled_code_can_go_unnoticed() -> None:
    lines = assembly_of(SOFTMAX, "gfx942").split("\n")
    x = np.random.default_rng(0).standard_normal((1, 300)).astype(np.float32)
    waits = [
        n for n, line in enumerate(lines) if line.strip().startswith(("s_waitcnt", "s_barrier"))
    ]
    assert len(waits) > 10
    for number in waits:
        without = [*lines[:number], ";", *lines[number + 1 :]]
        with pytest.raises((PendingReadError, LdsRaceError, UndefinedReadError)):
            launch("\n".join(without), Shape(num_warps=4), (1,), [x, np.zeros_like(x), 300])


# Cases that the kernel accepts: both 16-bit dtypes.
CASES = {
    "gemv": ("K64-N48-bfloat16", "K64-N48-bias-float16"),
    "mma_int4": ("int4-a16-K64-N48-bias-bfloat16", "int4-g64-asym-a16-K16-N5-bias-float16"),
}


@pytest.mark.parametrize(
    ("name", "label"), [(name, label) for name, labels in CASES.items() for label in labels]
)
def test_our_own_kernels_conform(name: str, label: str) -> None:
    case = next(case for case in cases_by_op()["linear"] if case.label == label)
    caps = find_profile("gfx942").capabilities()
    with program.using(ClangRuntime()):
        record = conform(OPS["linear"].kernels[name], case, CpuDevice(caps))
    assert record.has_passed, str(record)
