"""What hardware would hide: registers read undefined, or before memory has answered."""

from __future__ import annotations

from collections.abc import Iterable

from amdgpu.errors import PendingReadError, UndefinedReadError
from amdgpu.operands import ACCUMULATORS, EXEC, M0, SCALARS, SCC, VCC
from amdgpu.step import Step
from amdgpu.wave import ALL_LANES, Wave

_NAMES = {VCC: "vcc_lo", VCC + 1: "vcc_hi", M0: "m0", EXEC: "exec_lo", EXEC + 1: "exec_hi"}


def register_name(register: int) -> str:
    """As assembly writes it."""
    if register == SCC:
        return "scc"
    if register >= SCALARS:
        return _NAMES.get(register - SCALARS, f"s{register - SCALARS}")
    return f"v{register}" if register < ACCUMULATORS else f"a{register - ACCUMULATORS}"


def check_pending(wave: Wave, touched: frozenset[int]) -> None:
    """`touched`: read or written; a write would be overwritten by what comes back later."""
    for register in sorted(touched & wave.pending.keys()):
        access = wave.pending[register]
        raise PendingReadError(
            f"{register_name(register)} belongs to the access of line {access.line}, which no "
            "s_waitcnt has waited for"
        )


def check_defined(wave: Wave, read: Iterable[int], lanes: int) -> None:
    """`lanes`: that the instruction reads, as bits; of scalar registers any."""
    for register in sorted(read):
        missing = wave.undefined.get(register, 0)
        if register < SCALARS:
            missing &= lanes
        if missing:
            raise UndefinedReadError(
                f"wave {wave.number} reads {register_name(register)}, which nothing wrote"
                + ("" if register >= SCALARS else f", in lanes {_lanes(missing)}")
            )


def pass_on(wave: Wave, step: Step, lanes: int) -> None:
    """Results of step.passes become as undefined as their sources, in these lanes."""
    across = step.crossing_lanes(wave) if step.crossing_lanes else None
    sources = {to: wave.undefined.get(source, 0) for to, source in step.passes.items()}
    for register, bits in sources.items():
        found = bits if across is None else bits & across
        if register >= SCALARS:
            left = ALL_LANES if found else 0
        else:
            left = wave.undefined.get(register, 0) & ~lanes | found & lanes
        if left:
            wave.undefined[register] = left
        else:
            wave.undefined.pop(register, None)


def define(wave: Wave, written: Iterable[int], lanes: int) -> None:
    """Vector registers in these lanes, scalar ones whole; they are undefined so far."""
    for register in written:
        left = wave.undefined[register] & ~lanes if register < SCALARS else 0
        if left:
            wave.undefined[register] = left
        else:
            del wave.undefined[register]


def _lanes(bits: int) -> str:
    lanes = [lane for lane in range(ALL_LANES.bit_length()) if bits >> lane & 1]
    if len(lanes) == lanes[-1] - lanes[0] + 1:
        return f"{lanes[0]}" if len(lanes) == 1 else f"{lanes[0]} to {lanes[-1]}"
    return ", ".join(map(str, lanes[:8])) + (", …" if len(lanes) > 8 else "")
