"""Which collective a group of ranks uses and why, and the test that it passes before it is used."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hal.collective import Collective
from hal.config import AUTO
from hal.device import Device
from hal.dtypes import DType
from hal.errors import RANK_LOST, EngineError, UnsupportedError
from hal.kernels.cpu.collective import SharedMemoryCollective, create_region
from hal.kernels.cpu.native import ranks_unavailable
from hal.share import Share

SHARED_MEMORY, GLOO = SharedMemoryCollective.name, "gloo"

# Python and torch are loaded, on a busy machine and from a cold disk.
START_TIMEOUT_S = 180.0
# Of one wait for another rank: they run the same step, so more means that one hangs.
STEP_TIMEOUT_S = 120.0
_TESTED_SIZES = (1, 1000, 200_000)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks of one group find each other.

    point: of shared memory its descriptor, of gloo a file's path
    """

    collective: str
    reason: str
    point: str

    @property
    def descriptors(self) -> tuple[int, ...]:
        """That every rank inherits."""
        return (int(self.point),) if self.collective == SHARED_MEMORY else ()

    def close(self) -> None:
        """Once all ranks have met."""
        if self.collective == SHARED_MEMORY:
            os.close(int(self.point))
        else:
            Path(self.point).unlink(missing_ok=True)


def usual_collective() -> str:
    """Of several ranks on this machine's CPU."""
    return GLOO if ranks_unavailable() else SHARED_MEMORY


def arrange(wanted: str, size: int) -> Meeting:
    """A meeting for `--collective`; raises UnsupportedError where that cannot be used here."""
    missing = ranks_unavailable()
    if wanted == SHARED_MEMORY and missing:
        raise UnsupportedError(
            f"not supported here: collective={wanted!r}: {missing}. Use --collective gloo"
        )
    if wanted == GLOO or missing:
        if not torch.distributed.is_available():
            raise UnsupportedError(
                f"not supported here: {GLOO}: torch {torch.__version__} is built without it"
                + (f"; and {SHARED_MEMORY}: {missing}" if missing else "")
            )
        why = "set by the user" if wanted == GLOO else f"shared memory cannot be used: {missing}"
        descriptor, path = tempfile.mkstemp(prefix="hal-ranks-")
        os.close(descriptor)
        Path(path).unlink()  # gloo makes it
        return Meeting(GLOO, why, path)
    why = "the quickest between processes of one machine" if wanted == AUTO else "set by the user"
    return Meeting(SHARED_MEMORY, why, str(create_region(size)))


def connect(collective: str, share: Share, point: str) -> Collective:
    """This rank's end, with the patience of a start; with gloo it returns when all are there."""
    if collective == SHARED_MEMORY:
        return SharedMemoryCollective(share, int(point), START_TIMEOUT_S)
    from hal.devices.gloo import GlooCollective  # not every torch is built with it

    return GlooCollective(share, point, START_TIMEOUT_S)


def self_test(collective: Collective, device: Device) -> None:
    """Sums and columns of all ranks against what they must be; raises EngineError."""
    share = Share(collective.rank, collective.size)
    for size in _TESTED_SIZES:
        # Small whole numbers: their sums are exact.
        ramp = (np.arange(size) % 16).astype(np.float32)
        x = device.upload(ramp + np.float32(share.rank), into=device.empty((size,), DType.FLOAT32))
        collective.all_reduce(x)
        collective.check()
        expected = ramp * share.size + sum(range(share.size))
        _compare(collective, f"all_reduce of {size}", device.download(x), expected)
    whole = np.arange(3 * (2 * share.size + 1), dtype=np.float32).reshape(3, -1)
    columns = share.of(whole.shape[1])
    own = device.upload(np.ascontiguousarray(whole[:, columns.start : columns.stop]))
    out = device.empty(whole.shape, DType.FLOAT32)
    collective.all_gather(own, out)
    collective.check()
    _compare(collective, "all_gather", device.download(out), whole)


def _compare(
    collective: Collective, what: str, found: NDArray[Any], expected: NDArray[Any]
) -> None:
    wrong = np.flatnonzero(found.reshape(-1) != expected.reshape(-1))
    if len(wrong):
        at = int(wrong[0])
        raise EngineError(
            f"self-test of {collective.name}, rank {collective.rank} of {collective.size}: {what} "
            f"gave {found.reshape(-1)[at]} at {at}, expected {expected.reshape(-1)[at]}. "
            "Use another --collective and report this",
            code=RANK_LOST,
        )
