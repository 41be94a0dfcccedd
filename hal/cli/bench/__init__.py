"""`hal-bench`: recorded traces drawn and replayed, and load for servers."""

from hal.cli.bench.command import main

__all__ = ["main"]
