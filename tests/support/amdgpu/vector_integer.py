"""Integer, bit and selection rows of the vector table."""

from __future__ import annotations

from typing import Any

import numpy as np

from amdgpu.semantics import Operation, Shift, table


def _select(a: Any, b: Any, condition: Any) -> Any:
    return np.where(condition, b, a)


def _carry(a: Any, b: Any, carry: Any = 0) -> tuple[Any, Any]:
    total = a.astype(np.uint64) + b + carry
    return total.astype(np.uint32), total >> np.uint64(32) != 0


def _borrow(a: Any, b: Any, borrow: Any = 0) -> tuple[Any, Any]:
    difference = a.astype(np.int64) - b - borrow
    return difference.astype(np.uint32), difference < 0


def _signed_24(x: Any) -> Any:
    return (x << 8) >> 8


def _high(a: Any, b: Any) -> Any:
    """Upper half of the product of 32-bit integers, signed or not."""
    wide = np.uint64 if a.dtype == np.uint32 else np.int64
    return (a.astype(wide) * b.astype(wide) >> wide(32)).astype(a.dtype)


def _multiply_add_64(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    product = a.astype(c.dtype) * b.astype(c.dtype)
    total = product + c
    if c.dtype == np.uint64:
        return total, total < product
    return total, ((product ^ total) & (c ^ total)) < 0


def _reversed_bits(x: Any) -> Any:
    as_bytes = np.ascontiguousarray(x).view(np.uint8).reshape(-1, 4)[:, ::-1]
    bits = np.unpackbits(as_bytes, axis=1, bitorder="little")
    return np.packbits(bits, axis=1, bitorder="big").view(np.uint32).ravel()


def _extract(x: Any, offset: Any, width: Any) -> Any:
    """V_BFE: sign-extended where x is signed; of no bits 0."""
    offset, width = offset & 31, width & 31
    is_inside = width + offset < 32
    left = np.where(is_inside, 32 - width - offset, 0).astype(x.dtype)
    right = np.where(is_inside, 32 - width, offset).astype(x.dtype)
    return np.where(width == 0, x.dtype.type(0), (x << left) >> right)


def _permuted_bytes(a: Any, b: Any, selector: Any) -> Any:
    """V_PERM_B32: of the eight bytes of {a, b}; selectors from 8 on are sign bits and constants."""
    source = np.empty((len(a), 16), np.uint8)
    source[:, 0:4] = np.ascontiguousarray(b).view(np.uint8).reshape(-1, 4)
    source[:, 4:8] = np.ascontiguousarray(a).view(np.uint8).reshape(-1, 4)
    source[:, 8:12] = np.where(source[:, 1:8:2] & 128, 255, 0)
    source[:, 12] = 0
    source[:, 13:] = 255
    which = np.minimum(np.ascontiguousarray(selector).view(np.uint8).reshape(-1, 4), 13)
    return np.take_along_axis(source, which, axis=1).view(np.uint32).ravel()


def _aligned(a: Any, b: Any, shift: Any) -> Any:
    wide = a.astype(np.uint64) << np.uint64(32) | b
    return (wide >> (shift & 31).astype(np.uint64)).astype(np.uint32)


def _first_bit_from_top(x: Any) -> Any:
    """V_FFBH_U32: zeros above the highest bit, -1 of zero."""
    _, exponent = np.frexp(x.astype(np.float64))
    return np.where(x == 0, 0xFFFFFFFF, 32 - exponent).astype(np.uint32)


def _first_bit_from_bottom(x: Any) -> Any:
    below = np.bitwise_count((x & (~x + 1)) - 1).astype(np.uint32)
    return np.where(x == 0, np.uint32(0xFFFFFFFF), below)


def _median(a: Any, b: Any, c: Any) -> Any:
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def _mbcnt(first: int) -> Any:
    """Bits of the mask below this lane, of its 32 lanes from `first` on, plus what b says."""
    below = np.array([(1 << min(max(lane - first, 0), 32)) - 1 for lane in range(64)], np.uint32)
    return lambda a, b: np.bitwise_count(a & below).astype(np.uint32) + b


_BITS = (("v_and", np.bitwise_and), ("v_or", np.bitwise_or), ("v_xor", np.bitwise_xor))

VOP2: dict[str, Operation] = dict(
    table(
        "VOP2 Instructions",
        ("v_cndmask_b32", "u32 <- u32 u32 lanes", _select),
        *((f"{name}_b32", "u32 <- u32 u32", function) for name, function in _BITS),
        ("v_xnor_b32", "u32 <- u32 u32", lambda a, b: ~(a ^ b)),
        ("v_add_u32", "u32 <- u32 u32", np.add),
        ("v_sub_u32", "u32 <- u32 u32", np.subtract),
        ("v_subrev_u32", "u32 <- u32 u32", lambda a, b: b - a),
        ("v_add_co_u32", "u32 lanes <- u32 u32", _carry),
        ("v_sub_co_u32", "u32 lanes <- u32 u32", _borrow),
        ("v_subrev_co_u32", "u32 lanes <- u32 u32", lambda a, b: _borrow(b, a)),
        ("v_addc_co_u32", "u32 lanes <- u32 u32 lanes", _carry),
        ("v_subb_co_u32", "u32 lanes <- u32 u32 lanes", _borrow),
        ("v_subbrev_co_u32", "u32 lanes <- u32 u32 lanes", lambda a, b, c: _borrow(b, a, c)),
        *((f"v_min_{t}", f"{t} <- {t} {t}", np.minimum) for t in ("i32", "u32", "i16", "u16")),
        *((f"v_max_{t}", f"{t} <- {t} {t}", np.maximum) for t in ("i32", "u32", "i16", "u16")),
        ("v_lshlrev_b32", "u32 <- u32 u32", Shift(np.left_shift, 31)),
        ("v_lshrrev_b32", "u32 <- u32 u32", Shift(np.right_shift, 31)),
        ("v_ashrrev_i32", "i32 <- i32 i32", Shift(np.right_shift, 31)),
        ("v_lshlrev_b16", "u16 <- u16 u16", Shift(np.left_shift, 15)),
        ("v_lshrrev_b16", "u16 <- u16 u16", Shift(np.right_shift, 15)),
        ("v_ashrrev_i16", "i16 <- i16 i16", Shift(np.right_shift, 15)),
        ("v_add_u16", "u16 <- u16 u16", np.add),
        ("v_sub_u16", "u16 <- u16 u16", np.subtract),
        ("v_subrev_u16", "u16 <- u16 u16", lambda a, b: b - a),
        ("v_mul_lo_u16", "u16 <- u16 u16", np.multiply),
        ("v_mul_i32_i24", "i32 <- i32 i32", lambda a, b: _signed_24(a) * _signed_24(b)),
        ("v_mul_u32_u24", "u32 <- u32 u32", lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF)),
    )
)

VOP1: dict[str, Operation] = dict(
    table(
        "VOP1 Instructions",
        ("v_mov_b32", "u32 <- u32", lambda a: a),
        ("v_mov_b64", "u64 <- u64", lambda a: a),
        ("v_not_b32", "u32 <- u32", np.invert),
        ("v_bfrev_b32", "u32 <- u32", _reversed_bits),
        ("v_ffbh_u32", "u32 <- u32", _first_bit_from_top),
        ("v_ffbl_b32", "u32 <- u32", _first_bit_from_bottom),
        # Accumulators are registers of another file, addressed by their own operands.
        ("v_accvgpr_read_b32", "u32 <- u32", lambda a: a),
        ("v_accvgpr_write_b32", "u32 <- u32", lambda a: a),
        ("v_accvgpr_mov_b32", "u32 <- u32", lambda a: a),
    )
)

VOP3: dict[str, Operation] = dict(
    table(
        "VOP3A & VOP3B Instructions",
        ("v_add3_u32", "u32 <- u32 u32 u32", lambda a, b, c: a + b + c),
        ("v_lshl_add_u32", "u32 <- u32 u32 u32", lambda a, b, c: (a << (b & 31)) + c),
        ("v_add_lshl_u32", "u32 <- u32 u32 u32", lambda a, b, c: (a + b) << (c & 31)),
        ("v_lshl_or_b32", "u32 <- u32 u32 u32", lambda a, b, c: (a << (b & 31)) | c),
        ("v_and_or_b32", "u32 <- u32 u32 u32", lambda a, b, c: (a & b) | c),
        ("v_or3_b32", "u32 <- u32 u32 u32", lambda a, b, c: a | b | c),
        ("v_xad_u32", "u32 <- u32 u32 u32", lambda a, b, c: (a ^ b) + c),
        ("v_bfi_b32", "u32 <- u32 u32 u32", lambda a, b, c: (a & b) | (~a & c)),
        ("v_bfe_u32", "u32 <- u32 u32 u32", _extract),
        ("v_bfe_i32", "i32 <- i32 u32 u32", _extract),
        ("v_bfm_b32", "u32 <- u32 u32", lambda a, b: ((1 << (a & 31)) - 1) << (b & 31)),
        (
            "v_bcnt_u32_b32",
            "u32 <- u32 u32",
            lambda a, b: np.bitwise_count(a).astype(np.uint32) + b,
        ),
        ("v_mbcnt_lo_u32_b32", "u32 <- u32 u32", _mbcnt(0)),
        ("v_mbcnt_hi_u32_b32", "u32 <- u32 u32", _mbcnt(32)),
        ("v_perm_b32", "u32 <- u32 u32 u32", _permuted_bytes),
        ("v_alignbit_b32", "u32 <- u32 u32 u32", _aligned),
        ("v_alignbyte_b32", "u32 <- u32 u32 u32", lambda a, b, c: _aligned(a, b, 8 * (c & 3))),
        *(
            (f"v_min3_{t}", f"{t} <- {t} {t} {t}", lambda a, b, c: np.minimum(np.minimum(a, b), c))
            for t in ("i32", "u32")
        ),
        *(
            (f"v_max3_{t}", f"{t} <- {t} {t} {t}", lambda a, b, c: np.maximum(np.maximum(a, b), c))
            for t in ("i32", "u32")
        ),
        *((f"v_med3_{t}", f"{t} <- {t} {t} {t}", _median) for t in ("i32", "u32")),
        ("v_mul_lo_u32", "u32 <- u32 u32", np.multiply),
        ("v_mul_hi_u32", "u32 <- u32 u32", _high),
        ("v_mul_hi_i32", "i32 <- i32 i32", _high),
        (
            "v_mad_u32_u24",
            "u32 <- u32 u32 u32",
            lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
        ),
        ("v_mad_i32_i24", "i32 <- i32 i32 i32", lambda a, b, c: _signed_24(a) * _signed_24(b) + c),
        ("v_mad_u64_u32", "u64 lanes <- u32 u32 u64", _multiply_add_64),
        ("v_mad_i64_i32", "i64 lanes <- i32 i32 i64", _multiply_add_64),
        (
            "v_lshl_add_u64",
            "u64 <- u64 u32 u64",
            lambda a, b, c: (a << (b & 7).astype(np.uint64)) + c,
        ),
        ("v_lshlrev_b64", "u64 <- u32 u64", Shift(np.left_shift, 63)),
        ("v_lshrrev_b64", "u64 <- u32 u64", Shift(np.right_shift, 63)),
        ("v_ashrrev_i64", "i64 <- u32 i64", Shift(np.right_shift, 63)),
    )
)

_COMPARISONS: tuple[tuple[str, Any], ...] = (
    ("lt", np.less),
    ("eq", np.equal),
    ("le", np.less_equal),
    ("gt", np.greater),
    ("ne", np.not_equal),
    ("ge", np.greater_equal),
)

VOPC: dict[str, Operation] = dict(
    table(
        "VOPC Instructions",
        *(
            (f"v_cmp_{name}_{t}", f"lanes <- {t} {t}", function)
            for t in ("i16", "u16", "i32", "u32", "i64", "u64")
            for name, function in _COMPARISONS
        ),
    )
)

INTEGER = {**VOP1, **VOP2, **VOP3, **VOPC}
