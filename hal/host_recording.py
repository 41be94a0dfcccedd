"""Who records launches on the host: its kernels know what they launch, its device does not."""

from __future__ import annotations

from collections.abc import Callable

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a function launches, without running it; returns the replay."""

_recorders: list[Recorder] = []


def register_recorder(recorder: Recorder) -> Recorder:
    """Called once by the package whose kernels run on the host."""
    _recorders.append(recorder)
    return recorder


def host_recorder() -> Recorder | None:
    """None before the kernels are registered."""
    return _recorders[-1] if _recorders else None
