"""Faults that hardware would hide, planted: each stops with its kind and its line."""

from __future__ import annotations

import numpy as np
import pytest
from amdgpu.assembly import parse
from amdgpu.errors import (
    EmulationError,
    LaunchError,
    LdsRaceError,
    OutOfBoundsError,
    PendingReadError,
    UndefinedReadError,
    UnknownInstructionError,
)
from amdgpu.kernel_text import kernel_text
from amdgpu.launch import MAX_STEPS, Report, Shape, launch
from amdgpu.program import unknown_instructions

# s[4:5]: address of 64 words; v1: 4 times the thread; v2: some value.
START = """
    s_load_dwordx2 s[4:5], s[0:1], 0x0
    v_lshlrev_b32_e32 v1, 2, v0
    v_mov_b32_e32 v2, 7
    s_waitcnt lgkmcnt(0)
"""
END = "    s_endpgm\n"
FAULT = "; fault"


def run(body: str, *, num_warps: int = 1, max_steps: int = MAX_STEPS) -> Report:
    text = kernel_text(START + body + END, arguments=("pointer",))
    data = np.arange(64, dtype=np.uint32)
    return launch(text, Shape(num_warps, shared=1024), (1,), [data], max_steps=max_steps)


def check(kind: type[EmulationError], said: str, body: str, num_warps: int = 1) -> None:
    """The instruction at fault is marked, or else the last one of `body`."""
    with pytest.raises(kind) as raised:
        run(body, num_warps=num_warps)
    assert type(raised.value) is kind
    lines = [line.strip() for line in body.strip().split("\n")]
    at_fault = next((line for line in lines if line.endswith(FAULT)), lines[-1])
    instruction = at_fault.removesuffix(FAULT).strip()
    assert str(raised.value).startswith(f"line {raised.value.line}: {instruction}: ")
    assert said in raised.value.what
    text = kernel_text(START + body + END, arguments=("pointer",))
    assert text.split("\n")[raised.value.line - 1].strip() == at_fault


@pytest.mark.parametrize(
    "instruction",
    [
        "v_frobnicate_b32 v3, v2",
        "v_add_f32_e32 v3, v2, v2 wavy:1",
        "v_add_f32_e32 v3, v2",
        "v_add_f32_e32 v3, v2, v[2:3]",
        "v_add_f64 v[4:5], v2, v2",
        "v_mov_b32_e32 v3, src_vccz",
        "s_add_u32 s6, s4, v0",
        "s_waitcnt vmcnt(0) stormcnt(0)",
        "s_cbranch_scc0 .LNOWHERE",
        "v_mfma_f32_32x32x8_f16 a[0:14], v[2:3], v[2:3], 0",
        "v_mfma_f32_16x16x128_f8f6f4 a[0:3], v[0:7], v[0:7], 0",
        "v_mov_b32_dpp v3, v2 row_share:1 row_mask:0xf bank_mask:0xf",
        "global_load_dword v3, v1, s[4:5] tfe",
        "ds_add_rtn_u32 v3, v1, v2",
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 4, 4), 0",
    ],
)
def test_an_unknown_instruction_stops_with_its_name(instruction: str) -> None:
    check(UnknownInstructionError, "", f"    {instruction}\n")


def test_an_unknown_instruction_that_nobody_reaches_stops_nothing() -> None:
    run("    s_branch .LOVER\n    v_frobnicate_b32 v3, v2\n.LOVER:\n")


def test_what_is_unknown_can_be_listed() -> None:
    body = "    v_frobnicate_b32 v3, v2\n    v_mov_b32_e32 v3, v2\n    v_add_f32_e32\n"
    first, second = unknown_instructions(parse(kernel_text(body + END)))
    assert first == "line 4: v_frobnicate_b32 v3, v2: no row for v_frobnicate_b32 on gfx942"
    assert second.startswith("line 6: v_add_f32_e32: ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    v_add_u32_e32 v3, v2, v9\n", "reads v9, which nothing wrote, in lanes 0 to 63"),
        ("    v_add_u32_e32 v3, s40, v2\n", "reads s40, which nothing wrote"),
        ("    s_cselect_b32 s6, 1, 0\n", "reads scc"),
        ("    v_cndmask_b32_e32 v3, v2, v2, vcc\n", "reads vcc_lo"),
        ("    v_fmac_f32_e32 v3, v2, v2\n", "reads v3"),
        ("    v_readfirstlane_b32 s6, v3\n", "reads v3, which nothing wrote, in lanes 0"),
        ("    v_mov_b32_dpp v4, v3 row_shr:1 row_mask:0xf bank_mask:0xf\n", "reads v3"),
        ("    v_mfma_f32_4x4x4_16b_f16 a[0:3], v[2:3], v[2:3], 0\n", ""),
        ("    global_store_dword v1, v3, s[4:5]\n", "reads v3"),
        ("    ds_read_b32 v3, v1\n", "byte 0 of LDS, where nothing was written"),
    ],
)
def test_a_register_that_nothing_wrote(body: str, said: str) -> None:
    kind = UndefinedReadError if said else UnknownInstructionError
    check(kind, said, body)


@pytest.mark.parametrize(
    "copies",
    [
        "    v_mov_b32_e32 v4, v9\n",
        "    v_accvgpr_write_b32 a1, v9\n    v_accvgpr_read_b32 v4, a1\n",
        "    v_mov_b64_e32 v[4:5], v[8:9]\n    v_mov_b32_e32 v4, v5\n",
        "    s_mov_b32 s6, s40\n    v_mov_b32_e32 v4, s6\n",
        "    v_readlane_b32 s6, v9, 5\n    v_mov_b32_e32 v4, s6\n",
        "    v_mov_b32_e32 v4, 0\n    v_writelane_b32 v4, s40, 5\n",
        "    v_mad_u64_u32 v[3:4], s[6:7], v2, v2, v[8:9]\n",
    ],
)
def test_a_copy_of_what_nothing_wrote_is_no_fault_until_it_is_used(copies: str) -> None:
    body = "    v_mov_b32_e32 v8, 1\n" + copies
    run(body)
    check(UndefinedReadError, "reads v4, which nothing wrote", body + "    v_not_b32_e32 v5, v4\n")
    run(body + "    v_mov_b32_e32 v4, 1\n    v_not_b32_e32 v5, v4\n")


def test_a_register_written_in_some_lanes_is_undefined_in_others() -> None:
    body = """
    s_mov_b64 exec, 0xff
    v_mov_b32_e32 v3, 1
    s_mov_b64 exec, 0x1ff
    v_not_b32_e32 v4, v3
"""
    check(UndefinedReadError, "reads v3, which nothing wrote, in lanes 8", body)
    run(body.replace("0x1ff", "0x7f"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    global_load_dword v3, v1, s[4:5]\n    v_mov_b32_e32 v4, v3\n", "v3 belongs to"),
        ("    global_load_dword v3, v1, s[4:5]\n    v_mov_b32_e32 v3, 1\n", "v3 belongs to"),
        ("    s_load_dword s6, s[4:5], 0x0\n    s_add_i32 s6, s6, 1\n", "s6 belongs to"),
        (
            "    ds_write_b32 v1, v2\n    ds_read_b32 v3, v1\n    v_mov_b32_e32 v4, v3\n",
            "v3 belongs to",
        ),
        (
            "    ds_bpermute_b32 v3, v1, v2\n    s_waitcnt vmcnt(0)\n    v_mov_b32_e32 v4, v3\n",
            "v3 belongs to",
        ),
        (
            "    global_load_dword v3, v1, s[4:5]\n    global_load_dword v4, v1, s[4:5]\n"
            "    s_waitcnt vmcnt(1)\n    v_mov_b32_e32 v5, v3\n    v_mov_b32_e32 v5, v4\n",
            "v4 belongs to",
        ),
        (
            # Scalar loads may come back in any order.
            "    s_load_dword s6, s[4:5], 0x0\n    s_load_dword s7, s[4:5], 0x4\n"
            "    s_waitcnt lgkmcnt(1)\n    s_mov_b32 s8, s6\n",
            "s6 belongs to",
        ),
    ],
)
def test_a_register_read_before_memory_has_answered(body: str, said: str) -> None:
    check(PendingReadError, said, body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    global_load_dword v3, v1, s[4:5] offset:4\n", "offset 256 of an allocation of 256"),
        ("    global_load_dword v3, v1, s[4:5] offset:-4\n", "4 bytes before an allocation"),
        ("    global_load_dwordx2 v[4:5], v1, s[4:5]\n", "offset 252 of an allocation of 256"),
        ("    global_store_dword v1, v2, s[4:5] offset:128\n", "offset 256 of an allocation"),
        ("    s_load_dwordx2 s[6:7], s[4:5], 0xfc\n", "offset 252 of an allocation of 256"),
        (
            "    global_store_dword v2, v2, s[0:1] offset:-7\n",
            "a store into the kernel's arguments",
        ),
        ("    ds_write_b32 v1, v2 offset:772\n", "offset 1024 of 1024 bytes of LDS"),
        ("    ds_read_b128 v[4:7], v1 offset:1000\n", "of 1024 bytes of LDS"),
    ],
)
def test_an_address_outside_of_everything(body: str, said: str) -> None:
    check(OutOfBoundsError, said, body)


def test_lanes_that_are_disabled_may_point_anywhere() -> None:
    run("    s_mov_b64 exec, 1\n    global_load_dword v3, v1, s[4:5] offset:252\n")


# Each thread writes its word and reads that of the thread 64 further on, of 128.
EXCHANGE = """
    v_lshlrev_b32_e32 v1, 2, v0
    v_xor_b32_e32 v3, 0x100, v1
    ds_write_b32 v1, v0
    s_waitcnt lgkmcnt(0)
    s_barrier
    ds_read_b32 v4, v3
"""


def test_waves_exchange_by_a_barrier() -> None:
    store = "    s_waitcnt lgkmcnt(0)\n    global_store_dword v1, v4, s[4:5]\n"
    text = kernel_text(START + EXCHANGE + store + END, arguments=("pointer",))
    data = np.zeros(128, np.uint32)
    launch(text, Shape(2, shared=1024), (1,), [data])
    assert data.tolist() == [*range(64, 128), *range(64)]


def test_a_read_that_no_barrier_separates_from_a_write() -> None:
    # Of bytes that were written before, so that they are defined.
    body = (
        EXCHANGE
        + """
    s_waitcnt lgkmcnt(0)
    s_barrier
    v_add_u32_e32 v5, v0, v2
    ds_read_b32 v4, v3 ; fault
    ds_write_b32 v1, v5
"""
    )
    check(LdsRaceError, "wave 1 reads byte 0 of LDS, which wave 0 wrote", body, num_warps=2)


def test_a_write_that_no_barrier_separates_from_a_read() -> None:
    body = (
        EXCHANGE
        + """
    s_waitcnt lgkmcnt(0)
    s_barrier
    v_add_u32_e32 v5, v0, v2
    ds_write_b32 v1, v5 ; fault
    ds_read_b32 v4, v3
"""
    )
    check(LdsRaceError, "wave 1 writes byte 256 of LDS, which wave 0 read", body, num_warps=2)


def test_a_barrier_that_is_missing_before_the_first_read() -> None:
    body = EXCHANGE.replace("    s_barrier\n", "")
    check(UndefinedReadError, "byte 256 of LDS", body, num_warps=2)


def test_a_write_still_under_way_at_the_barrier() -> None:
    body = EXCHANGE.replace("    s_waitcnt lgkmcnt(0)\n    s_barrier", "    s_barrier")
    check(LdsRaceError, "wave 0 reads byte 256 of LDS, which wave 1 wrote", body, num_warps=2)


def test_waves_may_write_copies_of_one_value() -> None:
    run("    v_mov_b32_e32 v3, 0\n    ds_write_b32 v3, v2\n", num_warps=4)


def test_a_loop_without_end() -> None:
    with pytest.raises(EmulationError, match="wave 0 does not end"):
        run(".LAGAIN:\n    s_branch .LAGAIN\n", max_steps=100)


@pytest.mark.parametrize(
    ("directive", "said"),
    [
        ("float_denorm_mode_32 0", "float_denorm_mode_32 is 0"),
        ("float_round_mode_32 1", "float_round_mode_32 is 1"),
        ("system_sgpr_workgroup_info 1", "asks for system_sgpr_workgroup_info"),
    ],
)
def test_a_descriptor_that_asks_for_more(directive: str, said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        launch(kernel_text(END, directives=(directive,)), Shape(), (1,), [])


def test_an_arch_that_is_not_emulated() -> None:
    with pytest.raises(LaunchError, match="gfx1100"):
        launch(kernel_text(END, arch="gfx1100"), Shape(), (1,), [])
