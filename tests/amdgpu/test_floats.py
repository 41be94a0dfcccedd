"""Floating-point instructions and conversions against exact arithmetic over edge values."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from amdgpu.single import execute, result
from amdgpu.vector_float import FLOAT
from numpy.typing import NDArray

Values = NDArray[Any]
EDGES = (0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.0, 1e-3, 255.9, 65504.0, 65520.0, 2.0**31)
SPECIAL = (math.inf, -math.inf, math.nan)
TINY = {"f4": (2.0**-149, -(2.0**-149), 2.0**-126, 2.0**-127, 3.4e38, -3.4e38, 2.0**-63, 2.0**70)}
TINY["f8"] = (5e-324, -5e-324, 2.0**-1022, 2.0**-1023, 1.7e308, -1.7e308, 2.0**-600, 2.0**600)


def operand(kind: str, seed: int, *, is_finite: bool = False) -> Values:
    """Edges, and random numbers of all magnitudes in the other lanes, in an order of its own."""
    rng = np.random.default_rng(seed)
    spread = 40 if kind == "f4" else 300
    values = rng.standard_normal(64) * 2.0 ** rng.integers(-spread, spread, 64)
    edges = EDGES + TINY[kind] + (() if is_finite else SPECIAL)
    values[: len(edges)] = edges
    return rng.permutation(values).astype(kind)


def near(seed: int, kind: str = "f4") -> Values:
    """Of one magnitude, with few significant bits: sums and products often lie half way."""
    rng = np.random.default_rng(seed)
    return (rng.integers(1, 1 << 13, 64) * 2.0 ** rng.integers(-12, 12, 64)).astype(kind)


def same(found: Values, expected: Values) -> bool:
    """Bits, but for the payload of a NaN."""
    bits = f"u{found.itemsize}"
    is_same = found.view(bits) == expected.astype(found.dtype).view(bits)
    return bool((is_same | (np.isnan(found) & np.isnan(expected))).all())


def is_nearest(found: float, exact: Fraction, kind: str) -> bool:
    """Rounded to nearest even, by comparison with both neighbours."""
    number = np.dtype(kind).type
    if not math.isfinite(found):
        limit = Fraction(float(np.finfo(kind).max))
        return abs(exact) > limit
    distance = abs(Fraction(found) - exact)
    is_even = not int(number(found).view(f"u{number(0).itemsize}")) & 1
    for direction in (-np.inf, np.inf):
        neighbour = float(np.nextafter(number(found), number(direction)))
        if not math.isfinite(neighbour):
            continue
        other = abs(Fraction(neighbour) - exact)
        if other < distance or (other == distance and not is_even):
            return False
    return True


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("v_fma_f32 v8, v0, v2, v4", "f4"),
        ("v_fma_f64 v[8:9], v[0:1], v[2:3], v[4:5]", "f8"),
    ],
)
def test_fma_is_rounded_once(text: str, kind: str, seed: int) -> None:
    seeds = range(3 * seed, 3 * seed + 3)
    for a, b, c in (
        [operand(kind, n, is_finite=True) for n in seeds],
        [near(n, kind) for n in seeds],
    ):
        # Half of them cancel, all but what rounding the product would have lost.
        with np.errstate(over="ignore"):
            c[::2] = -(a[::2] * b[::2])
        c[~np.isfinite(c)] = 1
        found = result(execute(text, {0: a, 2: b, 4: c}), 8, kind)
        for x, y, z, r in zip(a, b, c, found, strict=True):
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            assert is_nearest(float(r), exact, kind), (x, y, z, r)


def test_fma_where_float64_would_round_twice() -> None:
    """1 + 2^-24 + 2^-60: half way but for the last term, which float64 drops."""
    a = np.full(64, 1 + 2.0**-12, np.float32)
    b = np.full(64, 1 - 2.0**-12, np.float32)
    for sign in (1, -1):
        # a b = 1 - 2^-24, and the sum with 2^-24 + tiny is 1 + tiny.
        c = np.full(64, 2.0**-23 + sign * 2.0**-46, np.float32)
        found = result(execute("v_fma_f32 v8, v0, v1, v2", {0: a, 1: b, 2: c}), 8, "f4")
        exact = Fraction(float(a[0])) * Fraction(float(b[0])) + Fraction(float(c[0]))
        assert is_nearest(float(found[0]), exact, "f4")


DIVIDE_F32 = """
    v_div_scale_f32 v2, s[4:5], v1, v1, v0
    v_div_scale_f32 v3, vcc, v0, v1, v0
    v_rcp_f32_e32 v4, v2
    v_fma_f32 v5, -v2, v4, 1.0
    v_fma_f32 v4, v5, v4, v4
    v_mul_f32_e32 v5, v3, v4
    v_fma_f32 v6, -v2, v5, v3
    v_fma_f32 v5, v6, v4, v5
    v_fma_f32 v2, -v2, v5, v3
    v_div_fmas_f32 v2, v2, v4, v5
    v_div_fixup_f32 v8, v2, v1, v0
"""
DIVIDE_F64 = """
    v_div_scale_f64 v[4:5], s[4:5], v[2:3], v[2:3], v[0:1]
    v_rcp_f64_e32 v[6:7], v[4:5]
    v_fma_f64 v[10:11], -v[4:5], v[6:7], 1.0
    v_fma_f64 v[6:7], v[6:7], v[10:11], v[6:7]
    v_fma_f64 v[10:11], -v[4:5], v[6:7], 1.0
    v_fma_f64 v[6:7], v[6:7], v[10:11], v[6:7]
    v_div_scale_f64 v[10:11], vcc, v[0:1], v[2:3], v[0:1]
    v_mul_f64 v[12:13], v[10:11], v[6:7]
    v_fma_f64 v[4:5], -v[4:5], v[12:13], v[10:11]
    v_div_fmas_f64 v[4:5], v[4:5], v[6:7], v[12:13]
    v_div_fixup_f64 v[8:9], v[4:5], v[2:3], v[0:1]
"""


@pytest.mark.parametrize(("text", "kind", "second"), [(DIVIDE_F32, "f4", 1), (DIVIDE_F64, "f8", 2)])
def test_a_division_in_steps_is_ieee_division(text: str, kind: str, second: int) -> None:
    """The sequences that LLVM writes for a / b."""
    a = operand(kind, 0)
    for shift in range(64):
        b = np.roll(operand(kind, 1), shift)
        with np.errstate(all="ignore"):
            expected = a / b
        found = result(execute(text, {0: a, second: b}), 8, kind)
        assert same(found, expected)


COMPARISONS: dict[str, Callable[[Values, Values], Values]] = {
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "lg": lambda a, b: (a != b) & ~unordered(a, b),
    "ge": lambda a, b: a >= b,
    "o": lambda a, b: ~unordered(a, b),
    "u": lambda a, b: unordered(a, b),
    "nge": lambda a, b: (a < b) | unordered(a, b),
    "nlg": lambda a, b: (a == b) | unordered(a, b),
    "ngt": lambda a, b: (a <= b) | unordered(a, b),
    "nle": lambda a, b: (a > b) | unordered(a, b),
    "neq": lambda a, b: (a != b) | unordered(a, b),
    "nlt": lambda a, b: (a >= b) | unordered(a, b),
}


def unordered(a: Values, b: Values) -> Values:
    return np.isnan(a) | np.isnan(b)


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name: str, kind: str) -> None:
    a, b = operand(kind, 0), operand(kind, 1)
    b[::3] = a[::3]
    suffix, pair = ("f32", "v0, v2") if kind == "f4" else ("f64", "v[0:1], v[2:3]")
    wave = execute(f"v_cmp_{name}_{suffix}_e32 vcc, {pair}", {0: a, 2: b})
    expected = COMPARISONS[name](a, b)
    assert wave.read64(106) == sum(1 << int(lane) for lane in np.flatnonzero(expected))


CLASSES = {0: math.nan, 2: -math.inf, 3: -1.0, 4: -1e-40, 5: -0.0}
CLASSES |= {6: 0.0, 7: 1e-40, 8: 1.0, 9: math.inf}


def test_classes() -> None:
    x = np.zeros(64, np.float32)
    for bit, value in CLASSES.items():
        x[bit] = value
    # Two kinds of NaN, by their bits: a signalling one does not survive conversions.
    x.view(np.uint32)[:2] = 0x7F800001, 0x7FC00000
    for bit in range(10):
        wave = execute(f"v_cmp_class_f32_e64 s[4:5], v0, {1 << bit:#x}", {0: x})
        found = wave.read64(4)
        assert found & 0x3FF == 1 << bit
        # The other lanes hold +0.
        assert bool(found >> 10) == (bit == 6)


def test_least_and_largest_ignore_a_nan_and_order_zeros() -> None:
    a, b = operand("f4", 0), operand("f4", 1)
    a[:4], b[:4] = (0.0, -0.0, np.nan, 1.0), (-0.0, 0.0, 2.0, np.nan)
    least = result(execute("v_min_f32_e32 v8, v0, v1", {0: a, 1: b}), 8, "f4")
    most = result(execute("v_max_f32_e32 v8, v0, v1", {0: a, 1: b}), 8, "f4")
    assert np.signbit(least[:2]).all() and not np.signbit(most[:2]).any()
    assert least[2:4].tolist() == most[2:4].tolist() == [2.0, 1.0]
    assert same(np.abs(least), np.abs(np.fmin(a, b))) and same(np.abs(most), np.abs(np.fmax(a, b)))


APPROXIMATIONS: dict[str, Callable[[Values], Values]] = {
    "v_exp_f32": np.exp2,
    "v_log_f32": np.log2,
    "v_rcp_f32": lambda x: np.asarray(1 / x),
    "v_rsq_f32": lambda x: np.asarray(1 / np.sqrt(x)),
    "v_sqrt_f32": np.sqrt,
}


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximations_flush_subnormal_numbers(name: str) -> None:
    x = operand("f4", 0)
    found = result(execute(f"{name} v8, v0", {0: x}), 8, "f4")
    with np.errstate(all="ignore"):
        flushed = np.where(np.abs(x) < 2.0**-126, np.copysign(0, x), x).astype(np.float64)
        expected = APPROXIMATIONS[name](flushed)
    assert same(np.isnan(found).astype("f4"), np.isnan(expected).astype("f4"))
    is_tiny = np.abs(expected) < 2.0**-126
    assert (found[is_tiny] == 0).all()
    is_number = ~np.isnan(expected) & ~is_tiny
    with np.errstate(over="ignore"):
        rounded = expected.astype(np.float32)
    assert np.allclose(found[is_number], rounded[is_number], rtol=2.0**-23, atol=0)


ROUNDINGS: dict[str, Callable[[float], int]] = {
    "rndne": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
}


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("name", ROUNDINGS)
def test_roundings(name: str, kind: str) -> None:
    x = operand(kind, 0, is_finite=True)
    suffix, pair = ("f32", "v8, v0") if kind == "f4" else ("f64", "v[8:9], v[0:1]")
    found = result(execute(f"v_{name}_{suffix} {pair}", {0: x}), 8, kind)
    assert found.tolist() == [ROUNDINGS[name](float(v)) for v in x]


def to_integer(x: float, low: int, high: int) -> int:
    if math.isnan(x):
        return 0
    return max(low, min(high, math.trunc(x))) if math.isfinite(x) else (high if x > 0 else low)


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize(
    ("target", "low", "high"), [("i32", -(1 << 31), (1 << 31) - 1), ("u32", 0, (1 << 32) - 1)]
)
def test_to_integers(target: str, low: int, high: int, source: str) -> None:
    kind = "f4" if source == "f32" else "f8"
    x = operand(kind, 0)
    x[:4] = 2.0**31, -(2.0**31), 2.0**32, -0.75
    wave = execute(f"v_cvt_{target}_{source}_e32 v8, {'v0' if kind == 'f4' else 'v[0:1]'}", {0: x})
    expected = [to_integer(float(v), low, high) & 0xFFFFFFFF for v in x]
    assert result(wave, 8).tolist() == expected


@pytest.mark.parametrize("source", ["i32", "u32"])
def test_of_integers(source: str) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 64, dtype=np.uint32)
    bits[:6] = 0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x01000001  # half way in float32
    numbers = bits.view(np.int32) if source == "i32" else bits
    single = result(execute(f"v_cvt_f32_{source}_e32 v8, v0", {0: bits}), 8, "f4")
    double = result(execute(f"v_cvt_f64_{source}_e32 v[8:9], v0", {0: bits}), 8, "f8")
    assert double.tolist() == numbers.tolist()
    assert all(
        is_nearest(float(f), Fraction(int(n)), "f4") for f, n in zip(single, numbers, strict=True)
    )
    for byte in range(4):
        found = result(execute(f"v_cvt_f32_ubyte{byte}_e32 v8, v0", {0: bits}), 8, "f4")
        assert found.tolist() == (bits >> 8 * byte & 255).tolist()


def test_between_float_widths() -> None:
    x, wide = operand("f4", 0), operand("f8", 1)
    with np.errstate(all="ignore"):
        half = x.astype(np.float16)
        narrowed = wide.astype(np.float32)
    found = result(execute("v_cvt_f16_f32_e32 v8, v0", {0: x}), 8)
    assert same((found & 0xFFFF).astype(np.uint16).view(np.float16), half)
    assert (found >> 16 == 0).all()
    back = result(execute("v_cvt_f32_f16_e32 v8, v0", {0: found}), 8, "f4")
    assert same(back, half.astype(np.float32))
    assert same(result(execute("v_cvt_f32_f64_e32 v8, v[0:1]", {0: wide}), 8, "f4"), narrowed)
    assert same(result(execute("v_cvt_f64_f32_e32 v[8:9], v0", {0: x}), 8, "f8"), x.astype("f8"))


def test_scaling_by_powers_of_two() -> None:
    x, n = operand("f4", 0), np.random.default_rng(0).integers(-160, 160, 64).astype(np.int32)
    with np.errstate(all="ignore"):
        expected = (x.astype(np.float64) * 2.0 ** n.astype(np.float64)).astype(np.float32)
    assert same(result(execute("v_ldexp_f32 v8, v0, v1", {0: x, 1: n}), 8, "f4"), expected)
    wide = operand("f8", 0, is_finite=True)
    mantissa = result(execute("v_frexp_mant_f64_e32 v[8:9], v[0:1]", {0: wide}), 8, "f8")
    exponent = result(execute("v_frexp_exp_i32_f64_e32 v8, v[0:1]", {0: wide}), 8, "i4")
    assert [(m, e) for m, e in zip(mantissa, exponent, strict=True)] == list(map(math.frexp, wide))


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("v_add_f32_e64 v8, -v0, |v1|", lambda a, b: -a + np.abs(b)),
        ("v_sub_f32_e64 v8, v0, -|v1|", lambda a, b: a + np.abs(b)),
        ("v_mul_f32_e64 v8, v0, v1 clamp", lambda a, b: np.nan_to_num(np.clip(a * b, 0, 1))),
        (
            "v_max3_f32 v8, v0, |v1|, 0.5",
            lambda a, b: np.fmax(np.fmax(a, np.abs(b)), np.float32(0.5)),
        ),
        ("v_add_f32_e32 v8, 0.15915494, v1", lambda a, b: np.float32(0.15915494) + b),
        ("v_mul_f32_e32 v8, 0x3fb8aa3b, v1", lambda a, b: np.float32(1.44269502) * b),
        ("v_fmaak_f32 v8, v0, v1, 0x40000000", lambda a, b: np.asarray(a.astype("f8") * b + 2)),
    ],
)
def test_modifiers_and_constants(text: str, function: Callable[[Values, Values], Values]) -> None:
    a, b = near(0), near(1)
    b[::2] *= -1
    assert same(result(execute(text, {0: a, 1: b}), 8, "f4"), function(a, b))


@pytest.mark.parametrize("name", sorted(name for name in FLOAT if not name.startswith("v_cmp")))
def test_every_float_row_gives_arrays_of_its_types(name: str) -> None:
    operation = FLOAT[name]
    if {"vcc", "lanes"} & {*operation.results, *operation.sources}:
        return
    words = {"16": 1, "32": 1, "64": 2}
    texts, vector = [], {}
    for place, kind in enumerate(t for t in operation.sources if t != "dst"):
        count, first = words[kind[1:]], 2 + 2 * place
        texts.append(f"v[{first}:{first + 1}]" if count == 2 else f"v{first}")
        vector[first] = np.ones(64, "f8") if count == 2 else np.ones(64, "u4")
    target = "v[0:1]" if words[operation.results[0][1:]] == 2 else "v0"
    vector[0] = np.zeros(64, "f8")
    assert execute(f"{name} {target}, {', '.join(texts)}", vector).pc == 0
