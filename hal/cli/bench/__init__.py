"""`hal-bench`: looks at recorded traces, offline and without a device."""

from hal.cli.bench.command import main

__all__ = ["main"]
