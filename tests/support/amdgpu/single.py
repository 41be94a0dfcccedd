"""One instruction on given registers: for tests of the instruction tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amdgpu.assembly import parse
from amdgpu.kernel_text import kernel_text
from amdgpu.lds import Lds
from amdgpu.memory import Memory
from amdgpu.operands import SCALARS, SCC
from amdgpu.program import decode
from amdgpu.wave import ALL_LANES, LANES, Wave


def execute(
    text: str,
    vector: Mapping[int, NDArray[Any]] | None = None,
    scalar: Mapping[int, int] | None = None,
    *,
    exec_bits: int = ALL_LANES,
    scc: int = 0,
    arch: str = "gfx942",
) -> Wave:
    """`text`: one instruction or several lines. vector: first register -> 64 numbers of 32 or 64
    bits; scalar: register -> 32 bits. Nothing else is checked: hazards are launch.py's."""
    body = "\n".join(f"    {line.strip()}" for line in text.strip().split("\n"))
    steps = decode(parse(kernel_text(body, arch=arch)))
    wave = Wave(0, 256, 64, Memory(), Lds(1024))
    for register, values in (vector or {}).items():
        words = np.ascontiguousarray(values).view(np.uint32).reshape(LANES, -1)
        wave.vector[register : register + words.shape[1]] = words.T
    for register, value in (scalar or {}).items():
        wave.preset_scalars(register, [value])
    wave.scc = scc
    wave.define(range(SCALARS + SCC))
    wave.set_exec(exec_bits)
    with np.errstate(all="ignore"):
        for step in steps:
            step.execute(wave)
    return wave


def result(wave: Wave, register: int, kind: str = "u4") -> NDArray[Any]:
    """64 numbers of a numpy type of 4 or 8 bytes, from its first register on."""
    num_words = np.dtype(kind).itemsize // 4
    words = np.ascontiguousarray(wave.vector[register : register + num_words].T)
    return words.view(kind)[:, 0]
