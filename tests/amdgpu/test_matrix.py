"""Every matrix instruction against a plain product, its operands laid out element by element."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from amdgpu.matrix import BF16, F16, F32, I8, LANES, MATRIX, MATRIX_BY_ARCH, MatrixOp, NotModelled
from numpy.typing import NDArray

OPS = [(arch, name) for arch, ops in MATRIX_BY_ARCH.items() for name in ops]
DTYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i8": torch.int8,
    "gfx942 fp8": torch.float8_e4m3fnuz,
    "gfx942 bf8": torch.float8_e5m2fnuz,
    "gfx950 fp8": torch.float8_e4m3fn,
    "gfx950 bf8": torch.float8_e5m2,
}


def dtypes_of(arch: str, name: str) -> tuple[torch.dtype, torch.dtype]:
    """Of A and B, from the name."""
    kinds = name.split("_")[4:] if "f8f6f4" not in name else ["fp8"]
    a, b = (DTYPES.get(k) or DTYPES[f"{arch} {k}"] for k in (kinds[0], kinds[-1]))
    return a, b


def draw(rng: np.random.Generator, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    if dtype is torch.int8:
        return torch.from_numpy(rng.integers(-128, 128, shape, dtype=np.int8))
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(dtype)


def laid_out(matrix: torch.Tensor, registers: int) -> NDArray[np.uint32]:
    """[size, k] to [registers, 64], one element after another as the ISA document has it."""
    size, k = matrix.shape
    k_lane = k * size // LANES
    raw = matrix.contiguous().view(torch.uint8).numpy()
    width = raw.shape[1] // k
    memory = np.zeros((LANES, registers * 4), np.uint8)
    for i in range(size):
        for j in range(k):
            lane, element = i + size * (j // k_lane), j % k_lane
            memory[lane, element * width : (element + 1) * width] = raw[i, j * width :][:width]
    return np.ascontiguousarray(memory.view(np.uint32).T)


def place(size: int, i: int, j: int) -> tuple[int, int]:
    """(register, lane) of D[i][j]."""
    if size == 16:
        return i % 4, j + 16 * (i // 4)
    return 4 * (i // 8) + i % 4, j + 32 * (i // 4 % 2)


def result_of(op: MatrixOp, registers: NDArray[Any]) -> NDArray[Any]:
    found = np.zeros((op.size, op.size), registers.dtype)
    for i in range(op.size):
        for j in range(op.size):
            found[i, j] = registers[place(op.size, i, j)]
    return found


@pytest.mark.parametrize(("arch", "name"), OPS)
def test_product_is_that_of_matrices(arch: str, name: str) -> None:
    op = MATRIX_BY_ARCH[arch][name]
    rng = np.random.default_rng(len(name))
    of_a, of_b = dtypes_of(arch, name)
    a, b = draw(rng, (op.size, op.k), of_a), draw(rng, (op.size, op.k), of_b)
    is_integer = of_a is torch.int8
    as_bits: type[Any] = np.int32 if is_integer else np.float32
    c = (100 * rng.standard_normal((op.d_registers, LANES))).astype(as_bits)
    d = op(laid_out(a, op.a_registers), laid_out(b, op.b_registers), c.view(np.uint32))
    expected = a.double().numpy() @ b.double().numpy().T + result_of(op, c).astype(np.float64)
    assert np.array_equal(result_of(op, d.view(as_bits)), expected.astype(as_bits))


@pytest.mark.parametrize(("arch", "name"), OPS)
def test_each_element_has_a_place_of_its_own(arch: str, name: str) -> None:
    """A single 1 in A against ones in B makes one row of ones: a wrong lane shows at once."""
    op = MATRIX_BY_ARCH[arch][name]
    of_a, of_b = dtypes_of(arch, name)
    ones = laid_out(torch.ones((op.size, op.k)).to(of_b), op.b_registers)
    zero = np.zeros((op.d_registers, LANES), np.uint32)
    for i, k in ((0, 0), (op.size - 1, op.k - 1), (5, op.k // 2), (op.size // 2, 1)):
        a = torch.zeros((op.size, op.k))
        a[i, k] = 1
        d = op(laid_out(a.to(of_a), op.a_registers), ones, zero)
        bits = d.view(np.int32 if of_a is torch.int8 else np.float32)
        assert np.array_equal(result_of(op, bits), a.sum(1, keepdim=True).expand(-1, op.size))


def test_names_state_what_is_multiplied() -> None:
    for name, op in MATRIX.items():
        found = re.match(r"v_mfma_[fi]32_(\d+)x(\d+)x(\d+)_", name)
        assert found is not None
        assert [int(n) for n in found.groups()] == [op.size, op.size, op.k]


def test_register_counts_of_the_documents() -> None:
    counts = {
        "v_mfma_f32_32x32x8_f16": (2, 2, 16),
        "v_mfma_f32_16x16x16_bf16": (2, 2, 4),
        "v_mfma_f32_16x16x32_bf16": (4, 4, 4),
        "v_mfma_i32_32x32x16_i8": (2, 2, 16),
        "v_mfma_i32_16x16x64_i8": (4, 4, 4),
        "v_mfma_f32_16x16x4_f32": (1, 1, 4),
        "v_mfma_f32_32x32x64_f8f6f4": (8, 8, 16),
    }
    for name, wanted in counts.items():
        op = MATRIX[name]
        assert (op.a_registers, op.b_registers, op.d_registers) == wanted, name


def test_eight_bit_floats_are_of_the_arch() -> None:
    name = "v_mfma_f32_16x16x32_fp8_fp8"
    # 0x40 is 2.0 in OCP's E4M3 and 1.0 in FNUZ's.
    words = np.full((2, LANES), 0x40404040, np.uint32)
    zero = np.zeros((4, LANES), np.uint32)
    found = {arch: ops[name](words, words, zero) for arch, ops in MATRIX_BY_ARCH.items()}
    assert (found["gfx942"].view(np.float32) == 32.0).all()
    assert (found["gfx950"].view(np.float32) == 128.0).all()


def test_modifiers_choose_the_eight_bit_float() -> None:
    op = MATRIX["v_mfma_f32_16x16x128_f8f6f4"]
    words = np.full((8, LANES), 0x40404040, np.uint32)  # 2.0 in both OCP formats
    odd = np.full((8, LANES), 0x42424242, np.uint32)  # 2.5 in E4M3, 3.0 in E5M2
    zero = np.zeros((4, LANES), np.uint32)
    assert (op(odd, words, zero).view(np.float32) == 128 * 5.0).all()
    assert (op(odd, words, zero, cbsz=1).view(np.float32) == 128 * 6.0).all()
    assert (op(words, odd, zero, blgp=1).view(np.float32) == 128 * 6.0).all()


@pytest.mark.parametrize("modifiers", [{"cbsz": 4}, {"blgp": 2}, {"abid": 1}])
def test_other_modifiers_are_refused(modifiers: dict[str, int]) -> None:
    for name in ("v_mfma_f32_16x16x128_f8f6f4", "v_mfma_f32_16x16x16_f16"):
        op = MATRIX[name]
        a, d = (np.zeros((n, LANES), np.uint32) for n in (op.a_registers, op.d_registers))
        with pytest.raises(NotModelled, match=name):
            op(a, a, d, **modifiers)


def test_integers_wrap_around() -> None:
    op = MATRIX["v_mfma_i32_16x16x32_i8"]
    ones = np.full((2, LANES), 0x01010101, np.uint32)
    most = np.full((4, LANES), 0x7FFFFFFF, np.uint32)
    assert (op(ones, ones, most) == 0x7FFFFFFF + 32).all()


def test_infinities_and_nan_pass_through() -> None:
    op = MATRIX["v_mfma_f32_16x16x16_f16"]
    a = torch.zeros((16, 16))
    a[3, 7], a[4, 0], b = torch.inf, torch.nan, torch.ones((16, 16))
    zero = np.zeros((4, LANES), np.uint32)
    d = op(laid_out(a.half(), 2), laid_out(b.half(), 2), zero)
    rows = result_of(op, d.view(np.float32))[:, 0]
    assert rows[3] == np.inf and np.isnan(rows[4]) and not rows[[0, 1, 2, 5]].any()


def test_elements_have_their_sizes() -> None:
    assert [element.bytes for element in (F32, F16, BF16, I8)] == [4, 2, 2, 1]
