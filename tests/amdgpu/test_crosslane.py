"""Every movement between lanes against the document's own words, one lane after another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from amdgpu import crosslane
from amdgpu.crosslane import Lanes, Mask, parse_dpp, parse_swizzle
from amdgpu.matrix import LANES, NotModelled

FULL = np.ones(LANES, np.bool_)
EXEC_MASKS = {
    "full": FULL,
    "lower": np.arange(LANES) < 37,
    "odd": np.arange(LANES) % 2 == 1,
    "one": np.arange(LANES) == 22,
    "none": np.zeros(LANES, np.bool_),
}
exec_masks = pytest.mark.parametrize("exec_mask", EXEC_MASKS.values(), ids=EXEC_MASKS)


def draw(seed: int) -> Lanes:
    return np.random.default_rng(seed).integers(0, 1 << 32, LANES, dtype=np.uint32)


def controls() -> Iterator[str]:
    for order in ("[0,1,2,3]", "[1,0,3,2]", "[3,3,0,2]", "[2,2,2,2]"):
        yield f"quad_perm:{order}"
    for amount in range(1, 16):
        yield from (f"row_shl:{amount}", f"row_shr:{amount}", f"row_ror:{amount}")
    yield from (f"row_newbcast:{lane}" for lane in (0, 7, 15))
    yield from ("wave_shl:1", "wave_shr:1", "wave_rol:1", "wave_ror:1")
    yield from ("row_mirror", "row_half_mirror", "row_bcast:15", "row_bcast:31")


def source_lane(control: str, lane: int) -> int | None:
    """The lane that `lane` reads, by the table of DPP_CTRL; None outside of what it may read."""
    name, _, value = control.partition(":")
    row, place = lane // 16, lane % 16
    amount = int(value) if value.isdigit() else 0
    within = {"row_shl": place + amount, "row_shr": place - amount}
    if name in within:
        return 16 * row + within[name] if 0 <= within[name] < 16 else None
    along = {"wave_shl": lane + 1, "wave_shr": lane - 1}
    if name in along:
        return along[name] if 0 <= along[name] < 64 else None
    if name == "row_bcast":
        return (16 * row - 1 if row else None) if amount == 15 else (31 if row >= 2 else None)
    return {
        "quad_perm": lambda: 4 * (lane // 4) + int(value[1 + 2 * (lane % 4)]),
        "row_ror": lambda: 16 * row + (place + 16 - amount) % 16,
        "row_newbcast": lambda: 16 * row + amount,
        "wave_rol": lambda: 0 if lane == 63 else lane + 1,
        "wave_ror": lambda: 63 if lane == 0 else lane - 1,
        "row_mirror": lambda: 16 * row + 15 - place,
        "row_half_mirror": lambda: 8 * (lane // 8) + 7 - lane % 8,
    }[name]()


@exec_masks
@pytest.mark.parametrize("bound_ctrl", [False, True])
@pytest.mark.parametrize(("rows", "banks"), [(15, 15), (0xA, 15), (15, 0x5), (0xC, 0xA), (0, 15)])
def test_dpp_lane_by_lane(exec_mask: Mask, bound_ctrl: bool, rows: int, banks: int) -> None:
    source, old = draw(1), draw(2)
    for control in controls():
        words = [control, f"row_mask:{rows:#x}", f"bank_mask:{banks:#x}"]
        dpp = parse_dpp([*words, "bound_ctrl:1"] if bound_ctrl else words)
        assert dpp is not None
        moved = dpp(source, exec_mask)
        actual = np.where(moved.is_written, moved.values, old)
        for lane in range(LANES):
            found = source_lane(control, lane)
            is_readable = found is not None and exec_mask[found]
            expected = old[lane]
            if exec_mask[lane] and rows >> lane // 16 & 1 and banks >> lane % 16 // 4 & 1:
                if is_readable:
                    expected = source[found]
                elif bound_ctrl:
                    expected = np.uint32(0)
            assert actual[lane] == expected, (control, lane)


def test_a_destination_that_is_the_source_is_read_whole() -> None:
    """A scan by row_shr:1 onto its own register adds each neighbour once."""
    register = np.arange(LANES, dtype=np.uint32)
    dpp = parse_dpp(["row_shr:1", "row_mask:0xf", "bank_mask:0xf"])
    assert dpp is not None
    moved = dpp(register, FULL)
    register[moved.is_written] += moved.values[moved.is_written]
    assert register[:4].tolist() == [0, 1, 3, 5] and register[16:19].tolist() == [16, 33, 35]


def test_a_reduction_as_compilers_write_it() -> None:
    """row_shr by 1, 2, 4, 8, then broadcasts: lane 63 holds the sum of all."""
    values = draw(3) % 1000
    total = values.copy()
    for words in (
        ["row_shr:1", "bound_ctrl:1"],
        ["row_shr:2", "bound_ctrl:1"],
        ["row_shr:4", "bound_ctrl:1"],
        ["row_shr:8", "bound_ctrl:1"],
        ["row_bcast:15", "row_mask:0xa"],
        ["row_bcast:31", "row_mask:0xc"],
    ):
        dpp = parse_dpp(words)
        assert dpp is not None
        moved = dpp(total, FULL)
        total = np.where(moved.is_written, total + moved.values, total)
    assert total[63] == values.sum()


def test_words_without_a_control_are_no_dpp() -> None:
    assert parse_dpp(["row_mask:0xf", "clamp"]) is None


@pytest.mark.parametrize(
    "word",
    [
        *("row_shl:0", "row_shl:16", "wave_shl:2", "row_bcast:7", "row_share:3", "row_mirror:1"),
        *("quad_perm:[0,1,2]", "quad_perm:[0,1,2,4]"),
    ],
)
def test_unknown_controls_are_refused(word: str) -> None:
    with pytest.raises(NotModelled, match=word.partition(":")[0]):
        parse_dpp([word])


def test_two_controls_are_refused() -> None:
    with pytest.raises(NotModelled, match="several"):
        parse_dpp(["row_shl:1", "row_shr:1"])


SWIZZLES = {
    "swizzle(SWAP,1)": lambda n: n ^ 1,
    "swizzle(SWAP,16)": lambda n: n ^ 16,
    "swizzle(REVERSE,8)": lambda n: n // 8 * 8 + 7 - n % 8,
    "swizzle(BROADCAST,4,3)": lambda n: n // 4 * 4 + 3,
    "swizzle(QUAD_PERM,3,1,0,0)": lambda n: n // 4 * 4 + (3, 1, 0, 0)[n % 4],
    'swizzle(BITMASK_PERM,"01pi0")': lambda n: n & 32 | 8 | n & 4 | (n & 2 ^ 2),
    'swizzle(BITMASK_PERM, "ppppi")': lambda n: n ^ 1,
    "0x401F": lambda n: n ^ 16,
    "0x0": lambda n: n & 32,
}


@exec_masks
@pytest.mark.parametrize("operand", SWIZZLES)
def test_swizzle_lane_by_lane(operand: str, exec_mask: Mask) -> None:
    source = draw(4)
    actual = crosslane.swizzle(source, parse_swizzle(operand), exec_mask)
    for lane in range(LANES):
        found = SWIZZLES[operand](lane)
        assert actual[lane] == (source[found] if exec_mask[found] else 0), lane


@pytest.mark.parametrize(
    "operand", ["swizzle(FFT,3)", "swizzle(SWAP,3)", 'swizzle(BITMASK_PERM,"pp")', "swizzle(SWAP)"]
)
def test_unknown_swizzles_are_refused(operand: str) -> None:
    with pytest.raises(NotModelled, match="swizzle"):
        parse_swizzle(operand)


@pytest.mark.parametrize("offset", [0xC020, 0xE000, 0x8100])
def test_unknown_offsets_are_refused(offset: int) -> None:
    with pytest.raises(NotModelled, match=hex(offset)):
        crosslane.swizzle_sources(offset)


@exec_masks
def test_bpermute_lane_by_lane(exec_mask: Mask) -> None:
    data, address = draw(5), draw(6)
    actual = crosslane.bpermute(address, data, 8, exec_mask)
    for lane in range(LANES):
        found = (int(address[lane]) + 8) // 4 % 64
        assert actual[lane] == (data[found] if exec_mask[found] else 0)


@exec_masks
def test_permute_lane_by_lane(exec_mask: Mask) -> None:
    data, address = draw(7), draw(8)
    expected = [0] * LANES
    for lane in range(LANES):
        if exec_mask[lane]:
            expected[(int(address[lane]) + 4) // 4 % 64] = int(data[lane])
    assert crosslane.permute(address, data, 4, exec_mask).tolist() == expected


def test_lane_reads_and_writes() -> None:
    source = draw(9)
    assert crosslane.readlane(source, 5) == crosslane.readlane(source, 64 + 5) == source[5]
    assert crosslane.readfirstlane(source, EXEC_MASKS["one"]) == source[22]
    assert crosslane.readfirstlane(source, EXEC_MASKS["none"]) == source[0]
    written = crosslane.writelane(source, -1, 63)
    assert written[63] == 0xFFFFFFFF and np.array_equal(written[:63], source[:63])


@pytest.mark.parametrize("width", [16, 32])
def test_swap_lane_by_lane(width: int) -> None:
    vdst, vsrc = draw(10), draw(11)
    expected_dst, expected_src = vdst.tolist(), vsrc.tolist()
    for lane in range(LANES):
        if lane // width % 2 == 0:
            low, high = lane, lane + width
            expected_dst[high], expected_src[low] = expected_src[low], expected_dst[high]
    swapped = crosslane.permlane_swap(vdst, vsrc, width, FULL)
    assert swapped.vdst.tolist() == expected_dst and swapped.vsrc.tolist() == expected_src


def test_a_swap_with_disabled_lanes_is_refused() -> None:
    with pytest.raises(NotModelled, match="permlane16"):
        crosslane.permlane_swap(draw(1), draw(2), 16, EXEC_MASKS["odd"])


def test_transpose_lane_by_lane() -> None:
    words = np.stack([draw(12), draw(13)])
    actual = crosslane.transpose_b16(words)

    def element(registers: Lanes, lane: int, number: int) -> int:
        return int(registers[number // 2, lane]) >> 16 * (number % 2) & 0xFFFF

    for lane in range(LANES):
        group, column = lane // 16 * 16, lane % 16
        for row in range(4):
            # Row `row` lies in lanes 4 * row .. + 3 of the group, 4 elements in each.
            expected = element(words, group + 4 * row + column // 4, column % 4)
            assert element(actual, lane, row) == expected
