"""What moves values between the 64 lanes of a wave: DPP, swizzles, permutes, lane reads and swaps.

Every function takes whole registers as they were before the instruction and returns new ones, so
that a destination that is also a source cannot be read half-written.

Sources: AMD, "CDNA3 Instruction Set Architecture", sections on DPP, on LDS instructions without
memory (DS_SWIZZLE_B32, DS_PERMUTE_B32, DS_BPERMUTE_B32), and V_READLANE_B32 and its kin; "CDNA4
Instruction Set Architecture" for V_PERMLANE{16,32}_SWAP_B32 and section 11.4, transpose loads from
LDS. Names of modifiers: LLVM, "Syntax of AMDGPU Instruction Modifiers".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from amdgpu.matrix import LANES, NotModelled

Lanes = NDArray[np.uint32]  # [64]
Mask = NDArray[np.bool_]  # [64]
Sources = NDArray[np.int64]  # [64]: the lane that each lane reads, or NOBODY
ROW = 16
NOBODY = -1
_LANE = np.arange(LANES)
_ROW_BASE = _LANE & ~(ROW - 1)
_IN_ROW = _LANE & (ROW - 1)


@dataclass(frozen=True, slots=True)
class Moved:
    """values: of lanes where is_written; other lanes of the destination stay as they were."""

    values: Lanes
    is_written: Mask


@dataclass(frozen=True, slots=True)
class Dpp:
    """One DPP control with its masks. sources: by lane. is_selected: by row_mask and bank_mask."""

    sources: Sources
    is_selected: Mask
    bound_ctrl: bool

    def __call__(self, source: Lanes, exec_mask: Mask) -> Moved:
        """Src0 as each lane sees it.

        A lane whose source is outside of its row or disabled is not written; with bound_ctrl it
        reads 0. The masks are stronger: what they leave out is never written.
        """
        is_valid = (self.sources != NOBODY) & exec_mask[self.sources]
        values = np.where(is_valid, source[self.sources], np.uint32(0))
        is_written = exec_mask & self.is_selected
        return Moved(values, is_written if self.bound_ctrl else is_written & is_valid)


def parse_dpp(modifiers: Iterable[str]) -> Dpp | None:
    """Of `row_shr:8`, `row_mask:0xf` and their like; None where no word controls lanes.

    Raises NotModelled for a control that gfx942 and gfx950 do not have.
    """
    return _parsed_dpp(tuple(modifiers))


@cache
def _parsed_dpp(modifiers: tuple[str, ...]) -> Dpp | None:
    words = dict(word.partition(":")[::2] for word in modifiers)
    found = [(name, value) for name, value in words.items() if _is_control(name)]
    if not found:
        return None
    if len(found) > 1:
        raise NotModelled(f"several DPP controls: {' '.join(modifiers)}")
    rows, banks = (int(words.get(name, "0xf"), 0) for name in ("row_mask", "bank_mask"))
    # A row is 16 lanes, a bank 4 lanes of it; bit n of a mask is row or bank n.
    is_selected = ((rows >> (_LANE // ROW)) & (banks >> (_IN_ROW // 4)) & 1).astype(np.bool_)
    # "0" and "1" are written alike by this architecture's assembler.
    return Dpp(_sources(*found[0]), is_selected, bound_ctrl="bound_ctrl" in words)


def _is_control(name: str) -> bool:
    return name == "quad_perm" or (name.startswith(("row_", "wave_")) and name != "row_mask")


_CONTROLS: dict[str, Callable[[int], Sources]] = {
    "row_shl": lambda n: _within_row(_IN_ROW + n),
    "row_shr": lambda n: _within_row(_IN_ROW - n),
    "row_ror": lambda n: _ROW_BASE + (_IN_ROW - n) % ROW,
    "row_mirror": lambda _: _ROW_BASE + 15 - _IN_ROW,
    "row_half_mirror": lambda _: (_LANE & ~7) + 7 - (_LANE & 7),
    "row_newbcast": lambda n: _ROW_BASE + n,
    "wave_shl": lambda n: _or_nobody(_LANE + n, _LANE + n < LANES),
    "wave_shr": lambda n: _or_nobody(_LANE - n, _LANE - n >= 0),
    "wave_rol": lambda n: (_LANE + n) % LANES,
    "wave_ror": lambda n: (_LANE - n) % LANES,
}
_AMOUNTS = {
    **dict.fromkeys(("row_shl", "row_shr", "row_ror"), range(1, 16)),
    **dict.fromkeys(("wave_shl", "wave_shr", "wave_rol", "wave_ror"), range(1, 2)),
    "row_newbcast": range(16),
}


def _sources(name: str, value: str) -> Sources:
    if name == "quad_perm":
        order = np.array([int(n) for n in re.findall(r"\d+", value)])
        if order.shape == (4,) and order.max() < 4:
            return np.asarray((_LANE & ~3) + order[_LANE & 3], dtype=np.int64)
    elif name == "row_bcast" and value == "15":
        # The last lane of each row to all of the next one.
        return _or_nobody(_ROW_BASE - 1, _ROW_BASE > 0)
    elif name == "row_bcast" and value == "31":
        return _or_nobody(np.full(LANES, 31), _LANE > 31)
    elif name in _CONTROLS:
        amount = int(value, 0) if value else 0
        if amount in _AMOUNTS.get(name, range(1)):
            return _CONTROLS[name](amount)
    raise NotModelled(f"DPP control {name}:{value}")


def _within_row(position: Sources) -> Sources:
    return _or_nobody(_ROW_BASE + position, (position >= 0) & (position < ROW))


def _or_nobody(sources: Sources, is_valid: Mask) -> Sources:
    return np.where(is_valid, sources, NOBODY)


def swizzle(source: Lanes, offset: int, exec_mask: Mask) -> Lanes:
    """DS_SWIZZLE_B32: a lane whose source is disabled reads 0."""
    sources = swizzle_sources(offset)
    return np.where(exec_mask[sources], source[sources], np.uint32(0))


@cache
def swizzle_sources(offset: int) -> Sources:
    """The lane that each lane reads under the 16-bit `offset` of DS_SWIZZLE_B32.

    Raises NotModelled for the rotating and FFT modes.
    """
    if offset >> 8 == 0x80:  # quads: two bits for each lane of four
        return np.asarray((_LANE & ~3) + (offset >> 2 * (_LANE & 3) & 3), dtype=np.int64)
    if offset >> 15:
        raise NotModelled(f"ds_swizzle_b32 offset:{offset:#x}")
    # and, or, xor of the lane's number among 32.
    and_mask, or_mask, xor_mask = offset & 31, offset >> 5 & 31, offset >> 10 & 31
    return np.asarray(
        (_LANE & 32) + (((_LANE & 31 & and_mask) | or_mask) ^ xor_mask), dtype=np.int64
    )


def parse_swizzle(text: str) -> int:
    """The offset that an operand says: `swizzle(SWAP,16)` and its kin, or a number."""
    if "(" not in text:
        return int(text, 0)
    mode, *operands = (word.strip().strip('"') for word in re.split(r"[(),]", text)[1:-1])
    if mode == "BITMASK_PERM":
        return _mask_offset(operands[0])
    numbers = [int(word, 0) for word in operands]
    match mode, numbers:
        case "QUAD_PERM", [a, b, c, d]:
            return 0x8000 | a | b << 2 | c << 4 | d << 6
        case "SWAP", [size] if size in (1, 2, 4, 8, 16):
            return 31 | size << 10
        case "REVERSE", [size] if size in (2, 4, 8, 16, 32):
            return 31 | size - 1 << 10
        case "BROADCAST", [size, lane] if size in (2, 4, 8, 16, 32) and lane < size:
            return (32 - size) | lane << 5
    raise NotModelled(f"ds_swizzle_b32 {text}")


def _mask_offset(mask: str) -> int:
    """Five letters from the highest bit of a lane's number: 0, 1, p(reserve) or i(nvert) it."""
    if not re.fullmatch(r"[01pi]{5}", mask):
        raise NotModelled(f"swizzle(BITMASK_PERM,{mask!r})")
    fields = {"0": 0, "1": 1 << 5, "p": 1, "i": 1 | 1 << 10}
    return sum(fields[letter] << 4 - place for place, letter in enumerate(mask))


def bpermute(address: Lanes, data: Lanes, offset: int, exec_mask: Mask) -> Lanes:
    """DS_BPERMUTE_B32: lane i reads lane (address[i] + offset) / 4 of 64; 0 where disabled."""
    sources = _lanes_of(address, offset)
    return np.where(exec_mask[sources], data[sources], np.uint32(0))


def permute(address: Lanes, data: Lanes, offset: int, exec_mask: Mask) -> Lanes:
    """DS_PERMUTE_B32: lane i sends to lane (address[i] + offset) / 4 of 64.

    Of several senders the highest lane wins; who gets nothing reads 0.
    """
    result = np.zeros(LANES, dtype=np.uint32)
    targets = _lanes_of(address, offset)
    for lane in np.flatnonzero(exec_mask):
        result[targets[lane]] = data[lane]
    return result


def _lanes_of(address: Lanes, offset: int) -> Sources:
    return (address.astype(np.int64) + offset) // 4 % LANES


def readlane(source: Lanes, lane: int) -> int:
    """V_READLANE_B32, whatever EXEC holds."""
    return int(source[lane % LANES])


def readfirstlane(source: Lanes, exec_mask: Mask) -> int:
    """V_READFIRSTLANE_B32: of the lowest enabled lane, of lane 0 where none is."""
    return int(source[int(np.argmax(exec_mask))])


def writelane(destination: Lanes, value: int, lane: int) -> Lanes:
    """V_WRITELANE_B32, whatever EXEC holds: all other lanes stay."""
    result = destination.copy()
    result[lane % LANES] = np.uint32(value & 0xFFFFFFFF)
    return result


@dataclass(frozen=True, slots=True)
class Swapped:
    """Both registers of a swap, as they are after it."""

    vdst: Lanes
    vsrc: Lanes


def permlane_swap(vdst: Lanes, vsrc: Lanes, width: int, exec_mask: Mask) -> Swapped:
    """V_PERMLANE16_SWAP_B32 (width 16) and V_PERMLANE32_SWAP_B32 (32), of gfx950.

    Odd groups of `width` lanes of vdst change places with the even groups of vsrc. Of one register
    given twice a swap has no meaning. Raises NotModelled where lanes are disabled.
    """
    if not exec_mask.all():
        raise NotModelled(f"v_permlane{width}_swap_b32 with disabled lanes")
    new_dst, new_src = (x.reshape(-1, 2, width).copy() for x in (vdst, vsrc))
    new_dst[:, 1] = vsrc.reshape(-1, 2, width)[:, 0]
    new_src[:, 0] = vdst.reshape(-1, 2, width)[:, 1]
    return Swapped(new_dst.reshape(LANES), new_src.reshape(LANES))


def transpose_b16(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """DS_READ_B64_TR_B16 of gfx950: words [2, 64], as each lane's address would load 8 bytes.

    16 lanes hold 4 rows of 16 elements of 16 bits, four lanes a row; lane i of them gets column i.
    """
    elements = np.ascontiguousarray(words.T).view(np.uint16).reshape(-1, 4, ROW)
    columns = np.ascontiguousarray(elements.transpose(0, 2, 1)).reshape(LANES, 4)
    return np.ascontiguousarray(columns.view(np.uint32).T)
