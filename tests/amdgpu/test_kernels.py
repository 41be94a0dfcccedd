"""Kernels written by hand against numpy: scan, reduction, transpose through LDS, a matrix product,
atomics, spilling."""

from __future__ import annotations

import numpy as np
import pytest
from amdgpu.errors import PendingReadError
from amdgpu.kernel_text import kernel_text
from amdgpu.launch import Shape, launch

# Inclusive sums of each 64 numbers: within rows of 16 lanes, then across rows.
SCAN = """
    s_load_dwordx4 s[4:7], s[0:1], 0x0
    s_lshl_b32 s3, s2, 8
    v_lshlrev_b32_e32 v1, 2, v0
    v_add_u32_e32 v1, s3, v1
    s_waitcnt lgkmcnt(0)
    global_load_dword v2, v1, s[4:5]
    s_waitcnt vmcnt(0)
    s_nop 1
    v_add_u32_dpp v2, v2, v2 row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:1
    v_add_u32_dpp v2, v2, v2 row_shr:2 row_mask:0xf bank_mask:0xf bound_ctrl:1
    v_add_u32_dpp v2, v2, v2 row_shr:4 row_mask:0xf bank_mask:0xf bound_ctrl:1
    v_add_u32_dpp v2, v2, v2 row_shr:8 row_mask:0xf bank_mask:0xf bound_ctrl:1
    v_add_u32_dpp v2, v2, v2 row_bcast:15 row_mask:0xa bank_mask:0xf
    v_add_u32_dpp v2, v2, v2 row_bcast:31 row_mask:0xc bank_mask:0xf
    global_store_dword v1, v2, s[6:7]
    s_endpgm
"""

# Sum of n floats by one workgroup of four waves, each lane over a stride of 256.
REDUCE = """
    s_load_dwordx4 s[4:7], s[0:1], 0x0
    s_load_dword s8, s[0:1], 0x10
    v_mov_b32_e32 v1, 0
    v_mov_b32_e32 v2, v0
    s_mov_b64 s[12:13], exec
    s_waitcnt lgkmcnt(0)
.LLOOP:
    v_cmp_gt_u32_e32 vcc, s8, v2
    s_and_b64 exec, exec, vcc
    s_cbranch_execz .LDONE
    v_lshlrev_b32_e32 v3, 2, v2
    global_load_dword v4, v3, s[4:5]
    v_add_u32_e32 v2, 0x100, v2
    s_waitcnt vmcnt(0)
    v_add_f32_e32 v1, v1, v4
    s_branch .LLOOP
.LDONE:
    s_mov_b64 exec, s[12:13]
    ds_swizzle_b32 v4, v1 offset:swizzle(SWAP,16)
    s_waitcnt lgkmcnt(0)
    v_add_f32_e32 v1, v1, v4
    v_add_f32_dpp v1, v1, v1 row_ror:8 row_mask:0xf bank_mask:0xf
    v_add_f32_dpp v1, v1, v1 row_ror:4 row_mask:0xf bank_mask:0xf
    v_add_f32_dpp v1, v1, v1 quad_perm:[2,3,0,1] row_mask:0xf bank_mask:0xf
    v_add_f32_dpp v1, v1, v1 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf
    v_readlane_b32 s9, v1, 63
    v_add_f32_e32 v1, s9, v1
    v_lshrrev_b32_e32 v5, 6, v0
    v_lshlrev_b32_e32 v5, 2, v5
    v_and_b32_e32 v6, 63, v0
    v_cmp_eq_u32_e32 vcc, 0, v6
    s_and_saveexec_b64 s[10:11], vcc
    ds_write_b32 v5, v1
    s_or_b64 exec, exec, s[10:11]
    s_waitcnt lgkmcnt(0)
    s_barrier
    v_mov_b32_e32 v5, 0
    ds_read_b128 v[8:11], v5
    s_waitcnt lgkmcnt(0)
    v_pk_add_f32 v[8:9], v[8:9], v[10:11]
    v_add_f32_e32 v8, v8, v9
    v_cmp_eq_u32_e32 vcc, 0, v0
    s_and_b64 exec, exec, vcc
    s_cbranch_execz .LEND
    global_store_dword v5, v8, s[6:7]
.LEND:
    s_endpgm
"""

# out[j][i] = x[i][j] of 32 x 32 halves, two waves; rows in LDS are 66 bytes apart.
TRANSPOSE = """
    s_load_dwordx4 s[4:7], s[0:1], 0x0
    v_lshrrev_b32_e32 v1, 2, v0
    v_and_b32_e32 v2, 3, v0
    v_lshlrev_b32_e32 v3, 4, v0
    s_waitcnt lgkmcnt(0)
    global_load_dwordx4 v[4:7], v3, s[4:5]
    v_mul_u32_u24_e32 v8, 0x42, v1
    v_lshl_add_u32 v8, v2, 4, v8
    s_waitcnt vmcnt(0)
    ds_write_b16 v8, v4
    ds_write_b16_d16_hi v8, v4 offset:2
    ds_write_b16 v8, v5 offset:4
    ds_write_b16_d16_hi v8, v5 offset:6
    ds_write_b16 v8, v6 offset:8
    ds_write_b16_d16_hi v8, v6 offset:10
    ds_write_b16 v8, v7 offset:12
    ds_write_b16_d16_hi v8, v7 offset:14
    s_waitcnt lgkmcnt(0)
    s_barrier
    v_mul_u32_u24_e32 v9, 0x210, v2
    v_lshl_add_u32 v9, v1, 1, v9
    ds_read_u16 v10, v9
    ds_read_u16 v11, v9 offset:66
    ds_read_u16 v12, v9 offset:132
    ds_read_u16 v13, v9 offset:198
    ds_read_u16 v14, v9 offset:264
    ds_read_u16 v15, v9 offset:330
    ds_read_u16 v16, v9 offset:396
    ds_read_u16 v17, v9 offset:462
    s_waitcnt lgkmcnt(0)
    v_lshl_or_b32 v4, v11, 16, v10
    s_mov_b32 s8, 0x5040100
    v_perm_b32 v5, v13, v12, s8
    v_lshlrev_b32_e32 v19, 16, v15
    v_or_b32_sdwa v6, v14, v19 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_0 src1_sel:DWORD
    v_pack_b32_f16 v7, v16, v17
    global_store_dwordx4 v3, v[4:7], s[6:7]
    s_endpgm
"""


def test_scan_of_each_wave() -> None:
    x = np.random.default_rng(0).integers(0, 1 << 30, (3, 64), dtype=np.uint32)
    out = np.zeros_like(x)
    launch(kernel_text(SCAN, ("pointer", "pointer")), Shape(1), (3,), [x, out])
    assert np.array_equal(out, np.cumsum(x, axis=1, dtype=np.uint32))


@pytest.mark.parametrize("n", [1, 63, 255, 256, 257, 1000])
def test_reduction_over_four_waves(n: int) -> None:
    x = np.random.default_rng(n).integers(-99, 99, n).astype(np.float32)
    out = np.zeros(1, np.float32)
    text = kernel_text(REDUCE, ("pointer", "pointer", "int"))
    launch(text, Shape(num_warps=4, shared=16), (1,), [x, out, n])
    assert out[0] == x.sum()


def test_transpose_through_lds() -> None:
    x = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float16)
    out = np.zeros_like(x)
    text = kernel_text(TRANSPOSE, ("pointer", "pointer"))
    launch(text, Shape(num_warps=2, shared=32 * 66), (1,), [x, out])
    assert np.array_equal(out, x.T)


# D = A B of 16 x 16 x 16 halves: lane l holds row l % 16 of A, 4 elements from 4 * (l / 16) on.
MATRIX = """
    s_load_dwordx4 s[4:7], s[0:1], 0x0
    s_load_dwordx2 s[8:9], s[0:1], 0x10
    v_and_b32_e32 v1, 15, v0
    v_lshrrev_b32_e32 v2, 4, v0
    v_lshlrev_b32_e32 v3, 5, v1
    v_lshl_add_u32 v3, v2, 3, v3
    s_waitcnt lgkmcnt(0)
    global_load_dwordx2 v[4:5], v3, s[4:5]
    global_load_dwordx2 v[6:7], v3, s[6:7]
    s_waitcnt vmcnt(0)
    v_mfma_f32_16x16x16_f16 a[0:3], v[4:5], v[6:7], 0
    v_lshlrev_b32_e32 v3, 8, v2
    v_lshl_add_u32 v3, v1, 2, v3
    s_nop 7
    v_accvgpr_read_b32 v8, a0
    global_store_dword v3, v8, s[8:9]
    global_store_dword v3, a1, s[8:9] offset:64
    global_store_dword v3, a2, s[8:9] offset:128
    global_store_dword v3, a3, s[8:9] offset:192
    s_endpgm
"""


def test_matrix_product() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, (16, 16)).astype(np.float16) for _ in range(2))
    out = np.zeros((16, 16), np.float32)
    text = kernel_text(MATRIX, ("pointer", "pointer", "pointer"))
    launch(text, Shape(1), (1,), [a, np.ascontiguousarray(b.T), out])
    assert np.array_equal(out, a.astype(np.float32) @ b.astype(np.float32))


ATOMICS = """
    s_load_dwordx2 s[4:5], s[0:1], 0x0
    v_and_b32_e32 v1, 7, v0
    v_lshlrev_b32_e32 v1, 2, v1
    v_cvt_f32_u32_e32 v2, v0
    v_mov_b32_e32 v3, 1
    s_waitcnt lgkmcnt(0)
    global_atomic_add_f32 v1, v2, s[4:5]
    global_atomic_add v4, v1, v3, s[4:5] offset:32 sc0
    s_waitcnt vmcnt(0)
    v_lshlrev_b32_e32 v5, 2, v0
    global_store_dword v5, v4, s[4:5] offset:64
    s_endpgm
"""


def test_atomics_of_lanes_that_share_an_address() -> None:
    data = np.zeros(16 + 128, np.uint32)
    launch(kernel_text(ATOMICS, ("pointer",)), Shape(num_warps=2), (1,), [data])
    sums = [sum(range(n, 128, 8)) for n in range(8)]
    assert data[:8].view(np.float32).tolist() == sums
    assert data[8:16].tolist() == [16] * 8
    # Each lane got the count that it found.
    assert [sorted(data[16 + n :: 8].tolist()) for n in range(8)] == [list(range(16))] * 8


# Words come from memory to LDS without a register; each thread reads that of its neighbour.
STRAIGHT_TO_LDS = """
    s_load_dwordx4 s[4:7], s[0:1], 0x0
    v_lshlrev_b32_e32 v1, 2, v0
    s_mov_b32 m0, 16
    v_xor_b32_e32 v2, 4, v1
    s_waitcnt lgkmcnt(0)
    global_load_lds_dword v1, s[4:5]
    s_waitcnt vmcnt(0)
    ds_read_b32 v3, v2 offset:16
    s_waitcnt lgkmcnt(0)
    global_store_dword v1, v3, s[6:7]
    s_endpgm
"""


def test_loads_straight_to_lds() -> None:
    x = np.random.default_rng(0).integers(0, 1 << 32, 64, dtype=np.uint32)
    out = np.zeros_like(x)
    text = kernel_text(STRAIGHT_TO_LDS, ("pointer", "pointer"))
    launch(text, Shape(1, shared=16 + 256), (1,), [x, out])
    assert np.array_equal(out, x.reshape(-1, 2)[:, ::-1].ravel())
    unwaited = text.replace("    s_waitcnt vmcnt(0)\n    ds_read", "    ds_read")
    with pytest.raises(PendingReadError, match="bytes 16 to 271 of LDS belong to the load"):
        launch(unwaited, Shape(1, shared=16 + 256), (1,), [x, out])


# out[i] = x[i] + 1 by descriptors of 128 bytes each; what lies beyond reads 0 and is not written.
BUFFERS = """
    s_load_dwordx4 s[4:7], s[0:1], 0x0
    v_lshlrev_b32_e32 v1, 2, v0
    s_waitcnt lgkmcnt(0)
    s_mov_b64 s[8:9], s[6:7]
    s_mov_b32 s6, 0x80
    s_mov_b32 s7, 0x27000
    s_mov_b64 s[10:11], s[6:7]
    buffer_load_dword v2, v1, s[4:7], 0 offen
    buffer_load_ushort v3, v1, s[4:7], 0 offen offset:2
    s_waitcnt vmcnt(0)
    v_lshlrev_b32_e32 v3, 16, v3
    v_sub_u32_e32 v3, v2, v3
    v_add_u32_e32 v2, 1, v2
    buffer_store_dword v2, v1, s[8:11], 0 offen
    global_store_dword v1, v3, s[8:9] offset:256
    s_endpgm
"""


def test_buffers_end_where_their_descriptors_say() -> None:
    x = np.random.default_rng(0).integers(0, 1 << 31, 64, dtype=np.uint32)
    out = np.full(128, 7, np.uint32)
    launch(kernel_text(BUFFERS, ("pointer", "pointer")), Shape(1), (1,), [x, out])
    assert np.array_equal(out[:32], x[:32] + 1)
    assert (out[32:64] == 7).all()
    # Of the loaded words without their upper halves; 0 where nothing was read.
    assert np.array_equal(out[64:], np.where(np.arange(64) < 32, x & 0xFFFF, 0))


SPILL = """
    s_load_dwordx2 s[4:5], s[0:1], 0x0
    v_lshlrev_b32_e32 v1, 2, v0
    v_add_u32_e32 v2, 5, v0
    scratch_store_dword off, v1, off
    scratch_store_dwordx2 off, v[1:2], off offset:8
    v_mov_b32_e32 v1, 0
    scratch_load_dword v3, off, off
    scratch_load_dword v4, off, off offset:12
    s_waitcnt vmcnt(0) lgkmcnt(0)
    global_store_dword v3, v4, s[4:5]
    s_endpgm
"""


def test_spilled_registers_come_back() -> None:
    out = np.zeros(128, np.uint32)
    text = kernel_text(SPILL, ("pointer",), directives=("private_segment_fixed_size 16",))
    launch(text, Shape(num_warps=2), (1,), [out])
    assert out.tolist() == [n + 5 for n in range(128)]


def test_a_base_below_zero_in_lds_adds_up_in_32_bits() -> None:
    """LLVM folds constants into the offset of a negated index (its test ds-sub-offset.ll)."""
    body = """
    s_load_dwordx2 s[4:5], s[0:1], 0x0
    v_lshlrev_b32_e32 v1, 2, v0
    v_sub_u32_e32 v2, 0, v1
    ds_write_b32 v2, v0 offset:252
    s_waitcnt lgkmcnt(0)
    ds_read_b32 v3, v1
    s_waitcnt lgkmcnt(0)
    global_store_dword v1, v3, s[4:5]
    s_endpgm
"""
    out = np.zeros(64, np.int32)
    launch(kernel_text(body, arguments=("pointer",)), Shape(shared=256), (1,), [out])
    assert np.array_equal(out, np.arange(64)[::-1])
