"""Whole kernels in assembly against numpy: launches, arguments, tails, branches."""

from __future__ import annotations

import numpy as np
import pytest
from amdgpu.errors import LaunchError, OutOfBoundsError
from amdgpu.kernel_text import kernel_text
from amdgpu.launch import Shape, launch

# out[i] = x[i] + y[i] for i < n, of workgroups of 128 threads.
ADD = """
    s_load_dwordx4 s[4:7], s[0:1], 0x0
    s_load_dwordx2 s[8:9], s[0:1], 0x10
    s_load_dword s10, s[0:1], 0x18
    s_lshl_b32 s3, s2, 7
    v_add_u32_e32 v0, s3, v0
    s_waitcnt lgkmcnt(0)
    v_cmp_gt_u32_e32 vcc, s10, v0
    s_and_saveexec_b64 s[12:13], vcc
    s_cbranch_execz .LEND
    v_lshlrev_b32_e32 v1, 2, v0
    global_load_dword v2, v1, s[4:5]
    global_load_dword v3, v1, s[6:7]
    s_waitcnt vmcnt(0)
    v_add_f32_e32 v2, v2, v3
    global_store_dword v1, v2, s[8:9]
.LEND:
    s_endpgm
"""


def run_add(n: int, grid: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    rng = np.random.default_rng(n)
    x, y = (rng.standard_normal(n, dtype=np.float32) for _ in range(2))
    out = np.full(n, np.nan, np.float32)
    text = kernel_text(ADD, arguments=("pointer", "pointer", "pointer", "int"))
    launch(text, Shape(num_warps=2), (grid,), [x, y, out, n])
    return out - (x + y)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 127, 128, 129, 300])
def test_sum_of_vectors_with_a_tail(n: int) -> None:
    assert (run_add(n, -(-n // 128)) == 0).all()


def test_workgroups_without_work_do_nothing() -> None:
    assert (run_add(100, 4) == 0).all()


def test_an_empty_array_has_an_address_that_nothing_lies_at() -> None:
    text = kernel_text(ADD, arguments=("pointer", "pointer", "pointer", "int"))
    some, none = np.zeros(64, np.float32), np.zeros(0, np.float32)
    launch(text, Shape(num_warps=2), (1,), [none, none, none, 0])
    with pytest.raises(OutOfBoundsError, match="before an allocation"):
        launch(text, Shape(num_warps=2), (1,), [some, none, some, 64])


def test_a_wrong_number_of_arguments_is_refused() -> None:
    text = kernel_text(ADD, arguments=("pointer", "pointer", "pointer", "int"))
    with pytest.raises(LaunchError, match="4 arguments"):
        launch(text, Shape(), (1,), [1])
