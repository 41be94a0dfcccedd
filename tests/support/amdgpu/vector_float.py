"""Floating-point rows of the vector table, and conversions."""

from __future__ import annotations

from typing import Any

import numpy as np

from amdgpu.division import div_fixup, div_fmas, div_scale
from amdgpu.floats import (
    approximate,
    class_of,
    fma32,
    fma64,
    maximum,
    minimum,
    to_integer,
)
from amdgpu.semantics import Operation, table


def _reciprocal(x: Any) -> Any:
    return 1 / x


def _reciprocal_root(x: Any) -> Any:
    return 1 / np.sqrt(x)


def _median(a: Any, b: Any, c: Any) -> Any:
    # With a NaN the guide gives the least of the three.
    ordered = maximum(minimum(a, b), minimum(maximum(a, b), c))
    return np.where(np.isnan(a) | np.isnan(b) | np.isnan(c), minimum(minimum(a, b), c), ordered)


def _fraction(x: Any) -> Any:
    # Below one also where the subtraction rounds up to it.
    return np.minimum(x - np.floor(x), np.nextafter(x.dtype.type(1), x.dtype.type(0)))


def _frexp_exponent(x: Any) -> Any:
    return np.where(np.isfinite(x), np.frexp(x)[1], 0).astype(np.int32)


def _frexp_mantissa(x: Any) -> Any:
    return np.where(np.isfinite(x), np.frexp(x)[0], x).astype(x.dtype)


def _legacy_product(a: Any, b: Any) -> Any:
    return np.where((a == 0) | (b == 0), np.float32(0), a * b)


def _packed_f16(a: Any, b: Any) -> Any:
    return a.view(np.uint16).astype(np.uint32) | b.view(np.uint16).astype(np.uint32) << 16


VOP2: dict[str, Operation] = dict(
    table(
        "VOP2 Instructions",
        ("v_add_f32", "f32 <- f32 f32", np.add),
        ("v_sub_f32", "f32 <- f32 f32", np.subtract),
        ("v_subrev_f32", "f32 <- f32 f32", lambda a, b: b - a),
        ("v_mul_f32", "f32 <- f32 f32", np.multiply),
        ("v_mul_legacy_f32", "f32 <- f32 f32", _legacy_product),
        ("v_min_f32", "f32 <- f32 f32", minimum),
        ("v_max_f32", "f32 <- f32 f32", maximum),
        ("v_fmac_f32", "f32 <- f32 f32 dst", fma32),
        ("v_fmac_f64", "f64 <- f64 f64 dst", fma64),
        ("v_fmaak_f32", "f32 <- f32 f32 f32", fma32),
        ("v_fmamk_f32", "f32 <- f32 f32 f32", fma32),
        ("v_add_f16", "f16 <- f16 f16", np.add),
        ("v_sub_f16", "f16 <- f16 f16", np.subtract),
        ("v_mul_f16", "f16 <- f16 f16", np.multiply),
        ("v_max_f16", "f16 <- f16 f16", maximum),
        ("v_min_f16", "f16 <- f16 f16", minimum),
    )
)

VOP1: dict[str, Operation] = dict(
    table(
        "VOP1 Instructions",
        ("v_exp_f32", "f32 <- f32", approximate(np.exp2)),
        ("v_log_f32", "f32 <- f32", approximate(np.log2)),
        ("v_rcp_f32", "f32 <- f32", approximate(_reciprocal)),
        ("v_rcp_iflag_f32", "f32 <- f32", approximate(_reciprocal)),
        ("v_rsq_f32", "f32 <- f32", approximate(_reciprocal_root)),
        ("v_sqrt_f32", "f32 <- f32", approximate(np.sqrt)),
        # 2^29 ulp in the guide: every user of it refines.
        ("v_rcp_f64", "f64 <- f64", _reciprocal),
        ("v_rsq_f64", "f64 <- f64", _reciprocal_root),
        ("v_sqrt_f64", "f64 <- f64", np.sqrt),
        *((f"v_rndne_{t}", f"{t} <- {t}", np.rint) for t in ("f16", "f32", "f64")),
        *((f"v_floor_{t}", f"{t} <- {t}", np.floor) for t in ("f16", "f32", "f64")),
        *((f"v_ceil_{t}", f"{t} <- {t}", np.ceil) for t in ("f16", "f32", "f64")),
        *((f"v_trunc_{t}", f"{t} <- {t}", np.trunc) for t in ("f16", "f32", "f64")),
        *((f"v_fract_{t}", f"{t} <- {t}", _fraction) for t in ("f32", "f64")),
        *((f"v_frexp_exp_i32_{t}", f"i32 <- {t}", _frexp_exponent) for t in ("f32", "f64")),
        *((f"v_frexp_mant_{t}", f"{t} <- {t}", _frexp_mantissa) for t in ("f32", "f64")),
        ("v_cvt_f32_f16", "f32 <- f16", lambda x: x.astype(np.float32)),
        ("v_cvt_f16_f32", "f16 <- f32", lambda x: x.astype(np.float16)),
        ("v_cvt_f32_f64", "f32 <- f64", lambda x: x.astype(np.float32)),
        ("v_cvt_f64_f32", "f64 <- f32", lambda x: x.astype(np.float64)),
        *(
            (f"v_cvt_f32_{t}", f"f32 <- {t}", lambda x: x.astype(np.float32))
            for t in ("i32", "u32")
        ),
        *(
            (f"v_cvt_f64_{t}", f"f64 <- {t}", lambda x: x.astype(np.float64))
            for t in ("i32", "u32")
        ),
        *(
            (f"v_cvt_i32_{t}", f"i32 <- {t}", lambda x: to_integer(x, np.int32))
            for t in ("f32", "f64")
        ),
        *(
            (f"v_cvt_u32_{t}", f"u32 <- {t}", lambda x: to_integer(x, np.uint32))
            for t in ("f32", "f64")
        ),
        *(
            (
                f"v_cvt_f32_ubyte{n}",
                "f32 <- u32",
                lambda x, n=n: (x >> 8 * n & 255).astype(np.float32),
            )
            for n in range(4)
        ),
        ("v_cvt_f16_i16", "f16 <- i16", lambda x: x.astype(np.float16)),
        ("v_cvt_f16_u16", "f16 <- u16", lambda x: x.astype(np.float16)),
    )
)

VOP3: dict[str, Operation] = dict(
    table(
        "VOP3A & VOP3B Instructions",
        ("v_fma_f32", "f32 <- f32 f32 f32", fma32),
        ("v_fma_f64", "f64 <- f64 f64 f64", fma64),
        ("v_add_f64", "f64 <- f64 f64", np.add),
        ("v_mul_f64", "f64 <- f64 f64", np.multiply),
        ("v_min_f64", "f64 <- f64 f64", minimum),
        ("v_max_f64", "f64 <- f64 f64", maximum),
        ("v_max3_f32", "f32 <- f32 f32 f32", lambda a, b, c: maximum(maximum(a, b), c)),
        ("v_min3_f32", "f32 <- f32 f32 f32", lambda a, b, c: minimum(minimum(a, b), c)),
        ("v_med3_f32", "f32 <- f32 f32 f32", _median),
        ("v_ldexp_f32", "f32 <- f32 i32", np.ldexp),
        ("v_ldexp_f64", "f64 <- f64 i32", np.ldexp),
        *((f"v_div_scale_{t}", f"{t} lanes <- {t} {t} {t}", div_scale) for t in ("f32", "f64")),
        *((f"v_div_fmas_{t}", f"{t} <- {t} {t} {t} vcc", div_fmas) for t in ("f32", "f64")),
        *((f"v_div_fixup_{t}", f"{t} <- {t} {t} {t}", div_fixup) for t in ("f32", "f64")),
        ("v_pack_b32_f16", "u32 <- f16 f16", _packed_f16),
        (
            "v_cvt_pkrtz_f16_f32",
            "u32 <- f32 f32",
            lambda a, b: _packed_f16(_toward_zero(a), _toward_zero(b)),
        ),
    )
)


def _toward_zero(x: Any) -> Any:
    """float16 of a float32, the bits that do not fit dropped."""
    nearest = x.astype(np.float16)
    is_over = np.abs(nearest.astype(np.float32)) > np.abs(x)
    return np.where(is_over, np.nextafter(nearest, np.float16(0)), nearest)


_ORDERED: dict[str, Any] = {
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "lg": lambda a, b: (a < b) | (a > b),
    "ge": lambda a, b: a >= b,
    "o": lambda a, b: (a == a) & (b == b),
}
_NOT = {"u": "o", "nge": "ge", "nlg": "lg", "ngt": "gt", "nle": "le", "neq": "eq", "nlt": "lt"}
_COMPARISONS: dict[str, Any] = {
    **_ORDERED,
    **{name: lambda a, b, f=_ORDERED[of]: ~f(a, b) for name, of in _NOT.items()},
}

VOPC: dict[str, Operation] = dict(
    table(
        "VOPC Instructions",
        *(
            (f"v_cmp_{name}_{t}", f"lanes <- {t} {t}", function)
            for t in ("f16", "f32", "f64")
            for name, function in _COMPARISONS.items()
        ),
        *((f"v_cmp_class_{t}", f"lanes <- {t} u32", class_of) for t in ("f16", "f32", "f64")),
    )
)

FLOAT = {**VOP1, **VOP2, **VOP3, **VOPC}
