"""What the CPU device's capture records: launches of the native module, as one list."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hal.errors import UnsupportedError
from hal.host_recording import register_recorder
from hal.kernels.cpu import native


@register_recorder
def record(run: Callable[[], None]) -> Callable[[], None]:
    """The launches of `run`, none of which happens now; the replay is one call into the module.

    It runs on as many threads as torch has by then. Raises UnsupportedError without the module.
    """
    if reason := native.module_unavailable():
        raise UnsupportedError(f"{reason}; or run with --enforce-eager")
    recording = native.load().Recording()
    recording.begin()
    try:
        run()
    finally:
        recording.end()
    return lambda: recording.replay(torch.get_num_threads())
