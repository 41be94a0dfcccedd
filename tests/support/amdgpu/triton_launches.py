"""Launches of Triton programs, compiled for an AMD arch and run by the emulator on CPU tensors.

Triton decides when it is imported whether it interprets, and for whom when it first compiles: a
process that poses as an AMD card launches nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amdgpu.launch import Value, launch
from hal.device import Capabilities
from hal.kernels.triton.program import Program, observed_by
from hal.kernels.triton.verify.targets import capabilities_of, pose_as

BUFFER_OPS = "AMDGCN_USE_BUFFER_OPS"


@contextmanager
def emulated(arch: str, has_buffer_ops: bool = False) -> Iterator[Capabilities]:
    """Within, this process poses as a card of `arch`, whose launches the emulator runs.

    Without buffer instructions every lane that reads or writes has an address to be checked; with
    them, Triton's default, those that a mask leaves out are sent past the end of a buffer.
    """
    os.environ[BUFFER_OPS] = "1" if has_buffer_ops else "0"
    caps = capabilities_of(arch)
    pose_as(caps, form=1 + has_buffer_ops)
    with observed_by(_launch):
        yield caps


def _launch(
    program: Program,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
) -> None:
    if 0 in grid:
        return
    compiled = program.function.warmup(*arguments, grid=grid, **constants)
    names = program.function.arg_names
    given = dict(zip(names, arguments, strict=False)) | constants
    # Constants, and numbers that the compiler made constants, are no arguments of the code.
    signature = compiled.src.signature
    kept = [value_of(given[name]) for name in names if signature[name] != "constexpr"]
    text = compiled.asm["amdgcn"]
    assert "\tbuffer_load" not in text or os.environ[BUFFER_OPS] == "1", f"the form of {program}"
    launch(text, compiled.metadata, grid, kept)


def value_of(argument: Any) -> Value:
    """As the emulator takes it: a tensor becomes an array over the same memory."""
    return array_of(argument) if isinstance(argument, torch.Tensor) else argument


_BITS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}


def array_of(tensor: torch.Tensor) -> NDArray[Any]:
    """Of dtypes that numpy lacks, their bits."""
    found = tensor.detach().view(_BITS.get(tensor.dtype, tensor.dtype)).numpy()
    assert isinstance(found, np.ndarray)
    return found
