"""Integer and bit instructions, each lane against Python's integers as the guide words it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from amdgpu.scalar import SCALAR
from amdgpu.single import execute, result
from amdgpu.vector_integer import INTEGER
from numpy.typing import NDArray

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
EDGES = (0, 1, 2, 31, 32, 33, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFF, 0x800000, 0x7FFFFFFF)
MORE_EDGES = (0x80000000, 0x80000001, 0xFFFF0000, 0xFFFFFFFE, 0xFFFFFFFF)
Ints = NDArray[np.uint32]


def operand(seed: int) -> Ints:
    """Every edge, and random bits in the other lanes, in an order of its own."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << 32, 64, dtype=np.uint32)
    values[: len(EDGES + MORE_EDGES)] = EDGES + MORE_EDGES
    return rng.permutation(values)


def signed(value: int, width: int = 32) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def of_kind(value: int, kind: str) -> int:
    """`value` cut to the width of "i16", "u64", …"""
    width = int(kind[1:])
    return signed(value, width) if kind[0] == "i" else value & ((1 << width) - 1)


def bfe(value: int, offset: int, width: int) -> int:
    return value >> (offset & 31) & ((1 << (width & 31)) - 1)


def bfe_signed(value: int, offset: int, width: int) -> int:
    width &= 31
    # Bits above the highest are copies of the sign.
    return signed(signed(value) >> (offset & 31), width) if width else 0


def perm(a: int, b: int, selector: int) -> int:
    data, found = (a << 32) | b, 0
    for place in range(4):
        choice = selector >> 8 * place & 255
        if choice < 8:
            byte = data >> 8 * choice & 255
        elif choice < 12:
            byte = 255 * (data >> (16 * (choice - 8) + 15) & 1)
        else:
            byte = 0 if choice == 12 else 255
        found |= byte << 8 * place
    return found


def ffbh(a: int) -> int:
    return next((i for i in range(32) if a >> (31 - i) & 1), -1)


def ffbl(a: int) -> int:
    return next((i for i in range(32) if a >> i & 1), -1)


def s24(a: int) -> int:
    return signed(a, 24)


def median(a: int, b: int, c: int) -> int:
    return sorted((a, b, c))[1]


def of_signed(function: Callable[..., int]) -> Callable[..., int]:
    return lambda *values: function(*map(signed, values))


def of_16(function: Callable[..., int], *, is_signed: bool = False) -> Callable[..., int]:
    """Of the low halves; the high half of the result is zero."""
    cut = (lambda v: signed(v, 16)) if is_signed else (lambda v: v & 0xFFFF)
    return lambda *values: function(*map(cut, values)) & 0xFFFF


VECTOR: dict[str, Callable[..., int]] = {
    "v_mov_b32": lambda a: a,
    "v_not_b32": lambda a: ~a,
    "v_bfrev_b32": lambda a: int(f"{a:032b}"[::-1], 2),
    "v_ffbh_u32": ffbh,
    "v_ffbl_b32": ffbl,
    "v_and_b32": lambda a, b: a & b,
    "v_or_b32": lambda a, b: a | b,
    "v_xor_b32": lambda a, b: a ^ b,
    "v_xnor_b32": lambda a, b: ~(a ^ b),
    "v_add_u32": lambda a, b: a + b,
    "v_sub_u32": lambda a, b: a - b,
    "v_subrev_u32": lambda a, b: b - a,
    "v_min_u32": min,
    "v_max_u32": max,
    "v_min_i32": of_signed(min),
    "v_max_i32": of_signed(max),
    "v_min_u16": of_16(min),
    "v_max_u16": of_16(max),
    "v_min_i16": of_16(min, is_signed=True),
    "v_max_i16": of_16(max, is_signed=True),
    "v_lshlrev_b32": lambda a, b: b << (a & 31),
    "v_lshrrev_b32": lambda a, b: b >> (a & 31),
    "v_ashrrev_i32": lambda a, b: signed(b) >> (a & 31),
    "v_lshlrev_b16": of_16(lambda a, b: b << (a & 15)),
    "v_lshrrev_b16": of_16(lambda a, b: b >> (a & 15)),
    "v_ashrrev_i16": of_16(lambda a, b: b >> (a & 15), is_signed=True),
    "v_add_u16": of_16(lambda a, b: a + b),
    "v_sub_u16": of_16(lambda a, b: a - b),
    "v_subrev_u16": of_16(lambda a, b: b - a),
    "v_mul_lo_u16": of_16(lambda a, b: a * b),
    "v_mul_i32_i24": lambda a, b: s24(a) * s24(b),
    "v_mul_u32_u24": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "v_add3_u32": lambda a, b, c: a + b + c,
    "v_lshl_add_u32": lambda a, b, c: (a << (b & 31)) + c,
    "v_add_lshl_u32": lambda a, b, c: (a + b) << (c & 31),
    "v_lshl_or_b32": lambda a, b, c: (a << (b & 31)) | c,
    "v_and_or_b32": lambda a, b, c: (a & b) | c,
    "v_or3_b32": lambda a, b, c: a | b | c,
    "v_xad_u32": lambda a, b, c: (a ^ b) + c,
    "v_bfi_b32": lambda a, b, c: (a & b) | (~a & c),
    "v_bfe_u32": bfe,
    "v_bfe_i32": bfe_signed,
    "v_bfm_b32": lambda a, b: ((1 << (a & 31)) - 1) << (b & 31),
    "v_bcnt_u32_b32": lambda a, b: a.bit_count() + b,
    "v_perm_b32": perm,
    "v_alignbit_b32": lambda a, b, c: ((a << 32) | b) >> (c & 31),
    "v_alignbyte_b32": lambda a, b, c: ((a << 32) | b) >> 8 * (c & 3),
    "v_min3_u32": min,
    "v_max3_u32": max,
    "v_med3_u32": median,
    "v_min3_i32": of_signed(min),
    "v_max3_i32": of_signed(max),
    "v_med3_i32": of_signed(median),
    "v_mul_lo_u32": lambda a, b: a * b,
    "v_mul_hi_u32": lambda a, b: a * b >> 32,
    "v_mul_hi_i32": of_signed(lambda a, b: a * b >> 32),
    "v_mad_u32_u24": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
    "v_mad_i32_i24": lambda a, b, c: s24(a) * s24(b) + c,
}


@pytest.mark.parametrize("name", VECTOR)
def test_vector_integer(name: str) -> None:
    num_sources = len(INTEGER[name].sources)
    sources = [operand(seed) for seed in range(num_sources)]
    if "perm" in name:
        sources[2] &= np.uint32(0x0F0F0F0F)
    registers = ", ".join(f"v{n}" for n in range(num_sources))
    wave = execute(f"{name} v9, {registers}", dict(enumerate(sources)))
    lanes = [tuple(int(v) for v in lane) for lane in zip(*sources, strict=True)]
    expected = np.array([VECTOR[name](*lane) & M32 for lane in lanes], np.uint32)
    assert np.array_equal(result(wave, 9), expected)


CARRIES: dict[str, Callable[[int, int, int], tuple[int, bool]]] = {
    "v_add_co_u32": lambda a, b, _: (a + b, a + b > M32),
    "v_sub_co_u32": lambda a, b, _: (a - b, a < b),
    "v_subrev_co_u32": lambda a, b, _: (b - a, b < a),
    "v_addc_co_u32": lambda a, b, c: (a + b + c, a + b + c > M32),
    "v_subb_co_u32": lambda a, b, c: (a - b - c, a < b + c),
    "v_subbrev_co_u32": lambda a, b, c: (b - a - c, b < a + c),
}


@pytest.mark.parametrize("name", CARRIES)
def test_carries(name: str) -> None:
    a, b = operand(0), operand(1)
    carry = 0x123456789ABCDEF0
    more = ", s[6:7]" if len(INTEGER[name].sources) == 3 else ""
    exec_bits = M64 ^ 0xF0
    wave = execute(
        f"{name}_e64 v9, s[4:5], v0, v1{more}",
        {0: a, 1: b, 9: np.zeros(64, np.uint32)},
        {6: carry & M32, 7: carry >> 32},
        exec_bits=exec_bits,
    )
    found = [
        CARRIES[name](int(x), int(y), carry >> lane & 1)
        for lane, (x, y) in enumerate(zip(a, b, strict=True))
    ]
    is_on = [exec_bits >> lane & 1 for lane in range(64)]
    values = [value & M32 if on else 0 for (value, _), on in zip(found, is_on, strict=True)]
    assert np.array_equal(result(wave, 9), np.array(values, np.uint32))
    # Lanes that are disabled leave zeros in the mask.
    bits = sum(1 << lane for lane in range(64) if is_on[lane] and found[lane][1])
    assert wave.read64(4) == bits


WIDE: dict[str, Callable[[int, int], int]] = {
    "v_lshlrev_b64": lambda a, b: b << (a & 63),
    "v_lshrrev_b64": lambda a, b: b >> (a & 63),
    "v_ashrrev_i64": lambda a, b: signed(b, 64) >> (a & 63),
}


def wide_operand(seed: int) -> NDArray[np.uint64]:
    return operand(seed).astype(np.uint64) << np.uint64(32) | operand(seed + 1)


@pytest.mark.parametrize("name", WIDE)
def test_shifts_of_64_bits(name: str) -> None:
    a, b = operand(0), wide_operand(1)
    wave = execute(f"{name} v[8:9], v0, v[2:3]", {0: a, 2: b})
    expected = [WIDE[name](int(x), int(y)) & M64 for x, y in zip(a, b, strict=True)]
    assert np.array_equal(result(wave, 8, "u8"), np.array(expected, np.uint64))


def test_products_and_sums_of_64_bits() -> None:
    a, b, c = operand(0), operand(1), wide_operand(2)
    lanes = [tuple(int(v) for v in lane) for lane in zip(a, b, c, strict=True)]
    wave = execute("v_mad_u64_u32 v[8:9], s[4:5], v0, v1, v[2:3]", {0: a, 1: b, 2: c})
    totals = [x * y + z for x, y, z in lanes]
    assert result(wave, 8, "u8").tolist() == [t & M64 for t in totals]
    assert wave.read64(4) == sum((t > M64) << lane for lane, t in enumerate(totals))
    wave = execute("v_mad_i64_i32 v[8:9], s[4:5], v0, v1, v[2:3]", {0: a, 1: b, 2: c})
    totals = [signed(x) * signed(y) + signed(z, 64) for x, y, z in lanes]
    assert result(wave, 8, "u8").tolist() == [t & M64 for t in totals]
    d = wide_operand(4)
    wave = execute("v_lshl_add_u64 v[8:9], v[2:3], 3, v[4:5]", {2: c, 4: d})
    assert result(wave, 8, "u8").tolist() == [
        ((int(x) << 3) + int(y)) & M64 for x, y in zip(c, d, strict=True)
    ]


def test_lanes_below_are_counted() -> None:
    mask = 0xF0F0123456789ABC
    wave = execute(
        "v_mbcnt_lo_u32_b32 v1, s4, 0\nv_mbcnt_hi_u32_b32 v1, s5, v1",
        scalar={4: mask & M32, 5: mask >> 32},
    )
    assert result(wave, 1).tolist() == [
        (mask & ((1 << lane) - 1)).bit_count() for lane in range(64)
    ]


COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ne": lambda a, b: a != b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("kind", ["i16", "u16", "i32", "u32", "i64", "u64"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name: str, kind: str) -> None:
    width = int(kind[1:])
    a, b = (operand(0), operand(1)) if width <= 32 else (wide_operand(0), wide_operand(2))
    b[::3] = a[::3]
    pair = ("v0", "v2") if width <= 32 else ("v[0:1]", "v[2:3]")
    wave = execute(f"v_cmp_{name}_{kind}_e32 vcc, {pair[0]}, {pair[1]}", {0: a, 2: b})
    bits = sum(
        COMPARISONS[name](of_kind(int(x), kind), of_kind(int(y), kind)) << lane
        for lane, (x, y) in enumerate(zip(a, b, strict=True))
    )
    assert wave.read64(106) == bits


def overflows(value: int) -> int:
    return int(value != signed(value))


# Result and SCC; None: SCC stays.
SCALARS: dict[str, Callable[[int, int, int], tuple[int, int | None]]] = {
    "s_add_u32": lambda a, b, _: (a + b, a + b >> 32),
    "s_sub_u32": lambda a, b, _: (a - b, int(a < b)),
    "s_addc_u32": lambda a, b, c: (a + b + c, a + b + c >> 32),
    "s_subb_u32": lambda a, b, c: (a - b - c, int(a < b + c)),
    "s_add_i32": lambda a, b, _: (a + b, overflows(signed(a) + signed(b))),
    "s_sub_i32": lambda a, b, _: (a - b, overflows(signed(a) - signed(b))),
    "s_min_i32": lambda a, b, _: (min(signed(a), signed(b)), int(signed(a) < signed(b))),
    "s_max_i32": lambda a, b, _: (max(signed(a), signed(b)), int(signed(a) > signed(b))),
    "s_min_u32": lambda a, b, _: (min(a, b), int(a < b)),
    "s_max_u32": lambda a, b, _: (max(a, b), int(a > b)),
    "s_cselect_b32": lambda a, b, c: (a if c else b, None),
    "s_and_b32": lambda a, b, _: (a & b, int(a & b != 0)),
    "s_or_b32": lambda a, b, _: (a | b, int(a | b != 0)),
    "s_xor_b32": lambda a, b, _: (a ^ b, int(a ^ b != 0)),
    "s_andn2_b32": lambda a, b, _: (a & ~b, int(a & ~b != 0)),
    "s_orn2_b32": lambda a, b, _: (a | ~b, int((a | ~b) & M32 != 0)),
    "s_nand_b32": lambda a, b, _: (~(a & b), int(~(a & b) & M32 != 0)),
    "s_nor_b32": lambda a, b, _: (~(a | b), int(~(a | b) & M32 != 0)),
    "s_xnor_b32": lambda a, b, _: (~(a ^ b), int(~(a ^ b) & M32 != 0)),
    "s_lshl_b32": lambda a, b, _: (a << (b & 31), int(a << (b & 31) & M32 != 0)),
    "s_lshr_b32": lambda a, b, _: (a >> (b & 31), int(a >> (b & 31) != 0)),
    "s_ashr_i32": lambda a, b, _: (signed(a) >> (b & 31), int(signed(a) >> (b & 31) != 0)),
    "s_bfm_b32": lambda a, b, _: (((1 << (a & 31)) - 1) << (b & 31), None),
    "s_mul_i32": lambda a, b, _: (a * b, None),
    "s_mul_hi_u32": lambda a, b, _: (a * b >> 32, None),
    "s_mul_hi_i32": lambda a, b, _: (signed(a) * signed(b) >> 32, None),
    "s_absdiff_i32": lambda a, b, _: (abs(signed(a) - signed(b)), int(a != b)),
    "s_lshl2_add_u32": lambda a, b, _: ((a << 2) + b, int((a << 2) + b > M32)),
    "s_pack_ll_b32_b16": lambda a, b, _: (a & 0xFFFF | (b & 0xFFFF) << 16, None),
    "s_pack_lh_b32_b16": lambda a, b, _: (a & 0xFFFF | b & 0xFFFF0000, None),
    "s_pack_hh_b32_b16": lambda a, b, _: (a >> 16 | b & 0xFFFF0000, None),
}


@pytest.mark.parametrize("name", SCALARS)
def test_scalar_integer(name: str) -> None:
    for scc, (a, b) in enumerate(zip(operand(0), operand(1), strict=True)):
        wave = execute(f"{name} s6, s4, s5", scalar={4: int(a), 5: int(b)}, scc=scc & 1)
        value, flag = SCALARS[name](int(a), int(b), scc & 1)
        assert wave.scalar[6] == value & M32
        assert wave.scc == (scc & 1 if flag is None else flag)


@pytest.mark.parametrize("field", [0x00080004, 0x0020001F, 0x00000003, 0x001F0001])
@pytest.mark.parametrize("kind", ["u32", "i32"])
def test_scalar_bit_fields(kind: str, field: int) -> None:
    offset, width = field & 31, field >> 16 & 0x7F
    for value in operand(0).tolist():
        wave = execute(f"s_bfe_{kind} s6, s4, {field:#x}", scalar={4: value})
        bits = value >> offset & ((1 << width) - 1)
        if kind == "i32" and width:
            bits = signed(bits, width)
        assert wave.scalar[6] == bits & M32
        assert wave.scc == int(bits != 0)


@pytest.mark.parametrize("bits", [0, 1, M64, 0xFF00000000000001])
def test_exec_is_saved_and_changed(bits: int) -> None:
    before = 0xF0F0F0F0F0F0F0F1
    scalar = {4: bits & M32, 5: bits >> 32}
    for name, after in (
        ("and", bits & before),
        ("or", bits | before),
        ("xor", bits ^ before),
        ("andn2", bits & ~before),
    ):
        wave = execute(f"s_{name}_saveexec_b64 s[6:7], s[4:5]", scalar=scalar, exec_bits=before)
        assert (wave.read64(6), wave.exec, wave.scc) == (before, after & M64, int(after & M64 != 0))


@pytest.mark.parametrize(
    ("text", "value", "scc"),
    [
        ("s_movk_i32 s4, 0x8000", -0x8000 & M32, 1),
        ("s_addk_i32 s4, 0xffff", 6, 0),
        ("s_mulk_i32 s4, 0xfffe", -14 & M32, 1),
        ("s_brev_b32 s4, 1", 0x80000000, 1),
        ("s_sext_i32_i8 s4, 0x80", -128 & M32, 1),
        ("s_bcnt1_i32_b64 s4, -1", 64, 1),
        ("s_ff1_i32_b32 s4, 0", M32, 1),
        ("s_flbit_i32_b32 s4, 1", 31, 1),
        ("s_cmpk_gt_u32 s4, 0x8000", 7, 0),
        ("s_cmpk_gt_i32 s4, 0x8000", 7, 1),
        ("s_bitcmp1_b32 s4, 2", 7, 1),
        ("s_cmp_lg_u32 s4, 7", 7, 0),
        ("s_bitset0_b32 s4, 1", 5, 1),
    ],
)
def test_scalar_with_constants(text: str, value: int, scc: int) -> None:
    wave = execute(text, scalar={4: 7}, scc=1)
    assert (wave.scalar[4], wave.scc) == (value, scc)


def test_every_integer_row_is_tested() -> None:
    """But for moves of accumulators, which only whole kernels make."""
    rows = {name for name in INTEGER if not name.startswith(("v_cmp_", "v_accvgpr", "v_mbcnt"))}
    others = {"v_mad_u64_u32", "v_mad_i64_i32", "v_lshl_add_u64", "v_mov_b64", "v_cndmask_b32"}
    assert rows == {*VECTOR, *CARRIES, *WIDE, *others}
    assert SCALARS.keys() <= SCALAR.keys()
