"""What an instruction becomes: a closure over the wave, and what hazards ask about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from amdgpu.assembly import Instruction
from amdgpu.wave import Wave

NONE: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """reads, writes: registers, vector ones in the lanes of EXEC.

    crossing: vector registers read in other lanes: those of crossing_lanes(wave)
    lanes_written: where they are not those of EXEC
    passes: result -> source that may be undefined, for then the result is: what compilers copy or
        compute without using it
    stops: "barrier" or "end". touched: registers of all kinds together.
    """

    instruction: Instruction
    execute: Callable[[Wave], None]
    reads: frozenset[int] = NONE
    writes: frozenset[int] = NONE
    crossing: frozenset[int] = NONE
    crossing_lanes: Callable[[Wave], int] | None = None
    lanes_written: Callable[[Wave], int] | None = None
    passes: Mapping[int, int] = field(default_factory=dict)
    stops: str = ""
    touched: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        moved = self.passes.values()
        object.__setattr__(self, "touched", self.reads.union(self.crossing, self.writes, moved))
