"""V_MFMA_*: matrix products of a whole wave of 64 lanes, gfx942 and gfx950.

Layout of one block of M x N x K (AMD, "CDNA3 Instruction Set Architecture", chapter on matrix
arithmetic instructions, and the same chapter of "CDNA4 Instruction Set Architecture"). With
`count` = 64 / M, the lanes that share a row of A, and `k_lane` = K / count:

    A[i][k]  in lane i + M * (k // k_lane), element k % k_lane of its registers, low bits first
    B[k][j]  in lane j + N * (k // k_lane), element k % k_lane
    C, D[i][j]  in lane j + N * (i // 4 % (64 / N)),
                register 4 * (i // (4 * 64 / N)) + i % 4

EXEC is ignored by these instructions. Products are summed without rounding and rounded to float32
once; the documents leave the order of the hardware's sum open, so bits may differ from a card's by
what another order of a float32 sum gives. int32 wraps around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amdgpu.numbers import E4M3, E4M3_FNUZ, E5M2, E5M2_FNUZ, Float8, f32_of_bf16, f32_of_f16

Words = NDArray[np.uint32]  # [registers, 64]
LANES = 64


class NotModelled(Exception):
    """A form of an instruction that the documents allow and no kernel here uses."""


@dataclass(frozen=True, slots=True)
class Element:
    """What the bits of a source register hold. widen: to numbers that multiply exactly."""

    bits: type[Any]
    widen: Callable[[NDArray[Any]], NDArray[Any]]

    @property
    def bytes(self) -> int:
        return int(np.dtype(self.bits).itemsize)


def _fp8(format: Float8) -> Element:
    return Element(np.uint8, format.widen)


F32 = Element(np.float32, lambda bits: bits)
F16 = Element(np.uint16, f32_of_f16)
BF16 = Element(np.uint16, f32_of_bf16)
I8 = Element(np.int8, lambda bits: bits)
# As CBSZ and BLGP of the f8f6f4 instructions count them; 6- and 4-bit floats are 2 to 4.
_F8F6F4 = {0: _fp8(E4M3), 1: _fp8(E5M2)}


@dataclass(frozen=True, slots=True)
class MatrixOp:
    """D = A B + C of size x size x k; `a` and `b` what sources hold. chooses: by CBSZ and BLGP."""

    name: str
    size: int
    k: int
    a: Element
    b: Element
    chooses: bool = False

    @property
    def a_registers(self) -> int:
        return self._k_lane * self.a.bytes // 4

    @property
    def b_registers(self) -> int:
        return self._k_lane * self.b.bytes // 4

    @property
    def d_registers(self) -> int:
        return self.size * self.size // LANES

    @property
    def _k_lane(self) -> int:
        return self.k * self.size // LANES

    def __call__(
        self, a: Words, b: Words, c: Words, cbsz: int = 0, abid: int = 0, blgp: int = 0
    ) -> Words:
        """a, b, c [registers, 64] -> D [d_registers, 64], float32 or int32 as bits.

        Raises NotModelled for modifiers other than the choice of an 8-bit float.
        """
        for words, wanted in zip((a, b, c), self._shapes(), strict=True):
            assert words.shape == wanted, f"{self.name}: {words.shape} for {wanted}"
        of_a, of_b = self._sources(cbsz, abid, blgp)
        rows, columns = self._unpacked(a, of_a), self._unpacked(b, of_b)
        is_integer = of_a is I8
        total = self._matrix(c.view(np.int32 if is_integer else np.float32)).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            # Exact: of int8 all sums are below 2^53, and of floats one rounding follows.
            total += rows.astype(np.float64) @ columns.T.astype(np.float64)
            result = total.astype(np.int64) if is_integer else total.astype(np.float32)
        return self._packed(result.astype(np.uint32) if is_integer else result.view(np.uint32))

    def _shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple((n, LANES) for n in (self.a_registers, self.b_registers, self.d_registers))

    def _sources(self, cbsz: int, abid: int, blgp: int) -> tuple[Element, Element]:
        if self.chooses and abid == 0 and cbsz in _F8F6F4 and blgp in _F8F6F4:
            return _F8F6F4[cbsz], _F8F6F4[blgp]
        if (cbsz, abid, blgp) != (0, 0, 0):
            raise NotModelled(f"{self.name} with cbsz:{cbsz} abid:{abid} blgp:{blgp}")
        return self.a, self.b

    def _unpacked(self, words: Words, element: Element) -> NDArray[Any]:
        """[size, k] of a source; B comes out transposed, for it is laid out as A is."""
        of_lane = np.ascontiguousarray(words.T).view(element.bits)  # [64, k_lane]
        values = element.widen(of_lane).reshape(LANES // self.size, self.size, self._k_lane)
        return values.transpose(1, 0, 2).reshape(self.size, self.k)

    def _matrix(self, registers: NDArray[Any]) -> NDArray[Any]:
        """[size, size] of [d_registers, 64]."""
        groups = LANES // self.size
        split = registers.reshape(-1, 4, groups, self.size)
        return split.transpose(0, 2, 1, 3).reshape(self.size, self.size)

    def _packed(self, matrix: Words) -> Words:
        groups = LANES // self.size
        split = matrix.reshape(-1, groups, 4, self.size)
        return split.transpose(0, 2, 1, 3).reshape(self.d_registers, LANES)


# K of 16x16 and of 32x32, by what is multiplied.
_BOTH: tuple[tuple[str, Element, int, int], ...] = (
    ("f32", F32, 4, 2),
    ("f16", F16, 16, 8),
    ("bf16", BF16, 16, 8),
)
_GFX950: tuple[tuple[str, Element, int, int], ...] = (("f16", F16, 32, 16), ("bf16", BF16, 32, 16))


def _pair(
    kind: str, a: Element, b: Element, k: tuple[int, int], out: str = "f32", chooses: bool = False
) -> Iterator[MatrixOp]:
    for size, depth in zip((16, 32), k, strict=True):
        name = f"v_mfma_{out}_{size}x{size}x{depth}_{kind}"
        yield MatrixOp(name, size, depth, a, b, chooses)


def _ops(e4m3: Float8, e5m2: Float8, *, is_gfx950: bool) -> Iterator[MatrixOp]:
    for kind, element, *k in (*_BOTH, *(_GFX950 if is_gfx950 else ())):
        yield from _pair(kind, element, element, (k[0], k[1]))
    yield from _pair("i8", I8, I8, (32, 16), out="i32")
    floats = {"fp8": _fp8(e4m3), "bf8": _fp8(e5m2)}
    for of_a, a in floats.items():
        for of_b, b in floats.items():
            yield from _pair(f"{of_a}_{of_b}", a, b, (32, 16))
    if is_gfx950:
        yield from _pair("i8", I8, I8, (64, 32), out="i32")
        yield from _pair("f8f6f4", _F8F6F4[0], _F8F6F4[0], (128, 64), chooses=True)


MATRIX_BY_ARCH: Mapping[str, Mapping[str, MatrixOp]] = {
    "gfx942": {op.name: op for op in _ops(E4M3_FNUZ, E5M2_FNUZ, is_gfx950=False)},
    "gfx950": {op.name: op for op in _ops(E4M3, E5M2, is_gfx950=True)},
}
# Names of either; what both have holds gfx942's 8-bit floats. Use MATRIX_BY_ARCH to run code.
MATRIX: Mapping[str, MatrixOp] = {**MATRIX_BY_ARCH["gfx950"], **MATRIX_BY_ARCH["gfx942"]}
