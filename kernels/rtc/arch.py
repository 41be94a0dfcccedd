"""What the kernels are compiled for: which headers of src/ an arch takes, and its tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hal.device import Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class TileOrder:
    """How the lanes of a warp hold 16 rows by 32 columns of a weight: the constants of a header.

    code_lanes: that hold codes of their own; lane_rows, lane_pieces: rows of the 16, and runs of 8
        columns of the 32, that each of them holds
    warp: its lanes; tokens: of a tile; token_tiles: that a block can make
    header: of src/
    """

    header: str
    token_tiles: int
    warp: int
    tokens: int
    code_lanes: int
    lane_rows: int
    lane_pieces: int

    def row(self, lane: int, i: int) -> int:
        """The i-th row that a lane holds."""
        return lane // 4 + 8 * i if self.lane_rows == 2 else lane % 16

    def piece(self, lane: int, i: int) -> int:
        """The i-th run of 8 columns that a lane holds."""
        return lane % 4 if self.lane_rows == 2 else lane // 16 * self.lane_pieces + i


MMA = TileOrder(
    header="tile_mma.h", token_tiles=4, warp=32, tokens=8, code_lanes=32, lane_rows=2, lane_pieces=1
)

MFMA = TileOrder(
    header="tile_mfma.h",
    token_tiles=4,
    warp=64,
    tokens=16,
    code_lanes=64,
    lane_rows=1,
    lane_pieces=1,
)
WMMA_GFX11 = TileOrder(
    header="tile_wmma_gfx11.h",
    token_tiles=1,
    warp=32,
    tokens=16,
    code_lanes=16,
    lane_rows=1,
    lane_pieces=4,
)
WMMA_GFX12 = TileOrder(
    header="tile_wmma_gfx12.h",
    token_tiles=2,
    warp=32,
    tokens=16,
    code_lanes=32,
    lane_rows=1,
    lane_pieces=2,
)

# By prefix of the arch: those whose machine code is checked (hal-info verify).
ORDERS: Mapping[str, TileOrder] = {
    **dict.fromkeys(("sm_8", "sm_9", "sm_10", "sm_12"), MMA),
    **dict.fromkeys(("gfx90a", "gfx942"), MFMA),
    "gfx11": WMMA_GFX11,
    "gfx12": WMMA_GFX12,
}
VENDOR_HEADERS = {"nvidia": "nvidia.h", "amd": "amd.h"}


@dataclass(frozen=True, slots=True)
class Target:
    """What machine code is for."""

    vendor: str
    arch: str

    @property
    def order(self) -> TileOrder:
        """Raises ValueError for an arch that `needs_arch` objects to."""
        return ORDERS[max((p for p in ORDERS if self.arch.startswith(p)), key=len)]

    @property
    def headers(self) -> tuple[str, str]:
        """Of src/: the vendor's, and the one for its tiles."""
        return (VENDOR_HEADERS[self.vendor], self.order.header)


def target_of(caps: Capabilities) -> Target:
    return Target(caps.vendor, caps.arch)


def needs_arch(caps: Capabilities, _problem: object) -> str | None:
    """For every kernel here."""
    if caps.vendor not in VENDOR_HEADERS:
        known = ", ".join(VENDOR_HEADERS)
        return f"is written for devices of {known}; {caps.name} is of {caps.vendor}"
    if not caps.arch.startswith(tuple(ORDERS)):
        return f"is compiled and checked for archs {', '.join(ORDERS)}; {caps.name} is {caps.arch}"
    return None
