"""How operands are read and results written: SDWA, DPP, packed halves, EXEC, constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amdgpu.single import execute, result
from numpy.typing import NDArray

A = np.random.default_rng(0).integers(0, 1 << 32, 64, dtype=np.uint32)
B = np.random.default_rng(1).integers(0, 1 << 32, 64, dtype=np.uint32)
OLD = np.random.default_rng(2).integers(0, 1 << 32, 64, dtype=np.uint32)
PADDED = "dst_sel:DWORD dst_unused:UNUSED_PAD"
WHOLE = "src0_sel:DWORD src1_sel:DWORD"
SELECTED: dict[str, NDArray[Any]] = {
    "DWORD": A,
    "WORD_0": A & 0xFFFF,
    "WORD_1": A >> 16,
    "BYTE_0": A & 0xFF,
    "BYTE_1": A >> 8 & 0xFF,
    "BYTE_2": A >> 16 & 0xFF,
    "BYTE_3": A >> 24,
}
FIELDS = {"WORD_0": 0xFFFF, "WORD_1": 0xFFFF0000, "BYTE_1": 0xFF00, "BYTE_3": 0xFF000000}


@pytest.mark.parametrize("selection", SELECTED)
def test_sdwa_selects_of_a_source(selection: str) -> None:
    text = f"v_add_u32_sdwa v9, v0, v1 {PADDED} src0_sel:{selection} src1_sel:DWORD"
    assert np.array_equal(result(execute(text, {0: A, 1: B}), 9), SELECTED[selection] + B)


@pytest.mark.parametrize("selection", SELECTED)
def test_sdwa_extends_with_sign(selection: str) -> None:
    text = f"v_cvt_f32_i32_sdwa v9, sext(v0) {PADDED} src0_sel:{selection}"
    width = {"D": 32, "W": 16, "B": 8}[selection[0]]
    raw = SELECTED[selection].astype(np.int64)
    signed = np.where(raw >> (width - 1) & 1, raw - (1 << width), raw)
    found = result(execute(text, {0: A}), 9, "f4")
    assert np.array_equal(found, signed.astype(np.float32))


@pytest.mark.parametrize("unused", ["UNUSED_PAD", "UNUSED_PRESERVE"])
@pytest.mark.parametrize("selection", FIELDS)
def test_sdwa_places_a_result(selection: str, unused: str) -> None:
    text = f"v_and_b32_sdwa v9, v0, v1 dst_sel:{selection} dst_unused:{unused} {WHOLE}"
    field = np.uint32(FIELDS[selection])
    shift = np.uint32((int(field) & -int(field)).bit_length() - 1)
    expected = ((A & B) << shift) & field
    if unused == "UNUSED_PRESERVE":
        expected |= OLD & ~field
    assert np.array_equal(result(execute(text, {0: A, 1: B, 9: OLD}), 9), expected)


@pytest.mark.parametrize(
    "text",
    [
        "v_add_u32_e32 v9, v0, v1",
        "v_lshl_add_u32 v9, v0, 0, v1",
        f"v_add_u32_sdwa v9, v0, v1 {PADDED} {WHOLE}",
        "v_add3_u32 v9, v0, v1, 0",
        "v_add_u32_dpp v9, v0, v1 quad_perm:[0,1,2,3] row_mask:0xf bank_mask:0xf",
    ],
)
def test_disabled_lanes_keep_what_they_had(text: str) -> None:
    bits = 0xF0F0F0F0_12345678
    found = result(execute(text, {0: A, 1: B, 9: OLD}, exec_bits=bits), 9)
    is_on = np.array([bits >> lane & 1 for lane in range(64)], np.bool_)
    assert np.array_equal(found, np.where(is_on, A + B, OLD))


def test_dpp_leaves_lanes_without_a_source_or_outside_of_the_masks() -> None:
    text = "v_add_u32_dpp v9, v0, v1 row_shr:1 row_mask:0x5 bank_mask:0xe"
    found = result(execute(text, {0: A, 1: B, 9: OLD}), 9)
    shifted_sum = np.roll(A, 1) + B
    for lane in range(64):
        is_written = lane // 16 in (0, 2) and lane % 16 >= 4
        assert found[lane] == (shifted_sum[lane] if is_written else OLD[lane])
    bound = result(execute(text.replace("0xe", "0xf bound_ctrl:1"), {0: A, 1: B, 9: OLD}), 9)
    # With it a source outside of the row counts as 0.
    assert bound[0] == B[0] and bound[16] == OLD[16]


def pair(seed: int) -> NDArray[Any]:
    """[64, 2] float32, a register pair of each lane."""
    return np.random.default_rng(seed).standard_normal((64, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("modifiers", "low", "high"),
    [
        ("", (0, 0), (1, 1)),
        ("op_sel:[1,0]", (1, 0), (1, 1)),
        ("op_sel_hi:[0,1]", (0, 0), (0, 1)),
        ("op_sel:[1,1] op_sel_hi:[0,0]", (1, 1), (0, 0)),
    ],
)
def test_packed_floats_choose_halves(
    modifiers: str, low: tuple[int, int], high: tuple[int, int]
) -> None:
    a, b = pair(0), pair(1)
    wave = execute(f"v_pk_mul_f32 v[8:9], v[0:1], v[2:3] {modifiers}", {0: a, 2: b})
    assert np.array_equal(result(wave, 8, "f4"), a[:, low[0]] * b[:, low[1]])
    assert np.array_equal(result(wave, 9, "f4"), a[:, high[0]] * b[:, high[1]])


def test_packed_floats_negate_halves_and_read_constants() -> None:
    a, b = pair(0), pair(1)
    text = "v_pk_add_f32 v[8:9], v[0:1], v[2:3] neg_lo:[0,1] neg_hi:[1,0]"
    wave = execute(text, {0: a, 2: b})
    assert np.array_equal(result(wave, 8, "f4"), a[:, 0] - b[:, 0])
    assert np.array_equal(result(wave, 9, "f4"), b[:, 1] - a[:, 1])
    wave = execute("v_pk_mul_f32 v[8:9], v[0:1], 0.5 op_sel_hi:[1,0]", {0: a})
    assert np.array_equal(result(wave, 8, "f4"), a[:, 0] / 2)
    assert np.array_equal(result(wave, 9, "f4"), a[:, 1] / 2)


def test_packed_move() -> None:
    a, b = pair(0), pair(1)
    wave = execute("v_pk_mov_b32 v[8:9], v[0:1], v[2:3] op_sel:[1,0]", {0: a, 2: b})
    assert np.array_equal(result(wave, 8, "f4"), a[:, 1])
    assert np.array_equal(result(wave, 9, "f4"), b[:, 0])
    # A destination that is a source is not read half written.
    wave = execute("v_pk_mov_b32 v[0:1], v[0:1], v[0:1] op_sel:[1,0]", {0: a})
    assert np.array_equal(result(wave, 0, "f4"), a[:, 1])
    assert np.array_equal(result(wave, 1, "f4"), a[:, 0])


def halves(bits: NDArray[np.uint32], kind: str = "f2") -> NDArray[Any]:
    """[64, 2] of the 16-bit halves, low first."""
    return bits.view(kind).reshape(64, 2)


def test_packed_halves() -> None:
    a, b = (np.random.default_rng(n).standard_normal((64, 2)).astype("f2") for n in (0, 1))
    vector = {0: a.view(np.uint32)[:, 0], 1: b.view(np.uint32)[:, 0]}
    found = halves(result(execute("v_pk_mul_f16 v9, v0, v1", vector), 9))
    assert np.array_equal(found, a * b)
    found = halves(result(execute("v_pk_mul_f16 v9, v0, v1 op_sel_hi:[1,0]", vector), 9))
    assert np.array_equal(found, a * b[:, :1])
    found = halves(result(execute("v_pk_lshlrev_b16 v9, 3, v0 op_sel_hi:[0,1]", vector), 9), "u2")
    assert np.array_equal(found, a.view("u2") << 3)


@pytest.mark.parametrize(
    ("text", "half"),
    [
        ("v_fma_mix_f32 v9, v0, v1, v2 op_sel_hi:[1,1,0]", (0, 0)),
        ("v_fma_mix_f32 v9, v0, v1, v2 op_sel:[1,0,0] op_sel_hi:[1,1,0]", (1, 0)),
        ("v_fma_mix_f32 v9, v0, v1, v2 op_sel:[0,1,0] op_sel_hi:[1,1,0]", (0, 1)),
    ],
)
def test_mixed_products(text: str, half: tuple[int, int]) -> None:
    a, b = (np.random.default_rng(n).standard_normal((64, 2)).astype("f2") for n in (0, 1))
    c = pair(2)[:, 0]
    vector = {0: a.view(np.uint32)[:, 0], 1: b.view(np.uint32)[:, 0], 2: c}
    found = result(execute(text, vector), 9, "f4")
    # Products of halves are exact in float32.
    exact = a[:, half[0]].astype("f8") * b[:, half[1]].astype("f8") + c
    assert np.array_equal(found, exact.astype("f4"))


@pytest.mark.parametrize("table", [0x00, 0x36, 0x6C, 0x78, 0xDE, 0xEC, 0xFF, 0x80, 0x01])
def test_any_function_of_three_bits(table: int) -> None:
    text = f"v_bitop3_b32 v9, v0, v1, v2 bitop3:{table:#x}"
    found = result(execute(text, {0: A, 1: B, 2: OLD}, arch="gfx950"), 9)
    expected = np.zeros(64, np.uint32)
    for bit in range(32):
        a, b, c = (x >> np.uint32(bit) & np.uint32(1) for x in (A, B, OLD))
        index = a << np.uint32(2) | b << np.uint32(1) | c
        expected |= (np.uint32(table) >> index & np.uint32(1)) << np.uint32(bit)
    assert np.array_equal(found, expected)


def test_conversions_in_pairs() -> None:
    a, b = pair(0)[:, 0], pair(1)[:, 0]
    found = execute("v_cvt_pk_f16_f32 v9, v0, v1", {0: a, 1: b}, arch="gfx950")
    assert np.array_equal(halves(result(found, 9)), np.stack([a, b], 1).astype("f2"))
    found = execute("v_cvt_pk_bf16_f32 v9, v0, v1", {0: a, 1: b}, arch="gfx950")
    back = halves(result(found, 9), "u2").astype(np.uint32) << np.uint32(16)
    assert np.allclose(back.view("f4"), np.stack([a, b], 1), rtol=2.0**-8, atol=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v_mov_b32_e32 v9, -16", 0xFFFFFFF0),
        ("v_mov_b32_e32 v9, 1.0", 0x3F800000),
        ("v_mov_b32_e32 v9, 0.15915494", 0x3E22F983),
        ("v_mov_b32_e32 v9, s4", 77),
        ("v_add_u16_e32 v9, -1, v0", 0xFFFF & (int(A[0]) - 1)),
        ("v_cndmask_b32_e64 v9, 0, 1.0, s[6:7]", 0x3F800000),
        ("v_sub_u32_e64 v9, s4, 78 clamp", 0),
        ("v_add_u32_e64 v9, s4, -1 clamp", 0xFFFFFFFF),
    ],
)
def test_constants_in_the_first_lane(text: str, expected: int) -> None:
    wave = execute(text, {0: A}, {4: 77, 6: 1, 7: 0})
    assert int(result(wave, 9)[0]) == expected


def test_constants_of_64_bits() -> None:
    wave = execute("v_mov_b64_e32 v[8:9], -2")
    assert result(wave, 8, "u8")[0] == (1 << 64) - 2
    ones = np.ones(64, "f8")
    # A written-out constant of a double is its upper half; a small integer is itself as bits.
    wave = execute("v_add_f64 v[8:9], v[0:1], 0x40080000", {0: ones})
    assert result(wave, 8, "f8")[0] == 4.0
    wave = execute("v_add_f64 v[8:9], v[0:1], -4.0", {0: ones})
    assert result(wave, 8, "f8")[0] == -3.0
    wave = execute("v_add_f64 v[8:9], 0, -v[0:1]", {0: ones})
    assert result(wave, 8, "f8")[0] == -1.0
