"""How a child process ended, in words."""

from __future__ import annotations

import signal


def exit_words(returncode: int) -> str:
    """ "exit code 3", "SIGABRT", or "signal 34" where the number has no name (real-time ones)."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def last_words(stderr: str) -> str:
    """The last line that it wrote, which is the cause by rule; "" where it wrote none."""
    lines = stderr.strip().splitlines()
    return lines[-1].strip() if lines else ""
