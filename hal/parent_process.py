"""A child process that is of no use without its parent ends with it, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Linux kills this process when the thread that started it ends; elsewhere nothing does.

    `parent_pid` is what started it: where that is gone already, this process ends now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.stderr.flush()
        os._exit(0)
