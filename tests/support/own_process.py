"""Source run in a Python process of its own: binding threads and forking last until one ends."""

from __future__ import annotations

import os
import subprocess
import sys

TIMEOUT_S = 120


def run_alone(source: str, *arguments: str) -> None:
    """Fails with what the process wrote to stderr, unless it ends with exit code 0.

    Without a preloaded AddressSanitizer: GCC's keeps its locks through a fork, so that a child of a
    process whose threads are just starting may wait for ever.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", source, *arguments],
        env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
        timeout=TIMEOUT_S,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
