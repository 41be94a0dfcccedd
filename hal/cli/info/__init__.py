"""`hal-info` and its subcommands: what a device can do, what fits it, what runs on it and why."""

from hal.cli.info.command import main

__all__ = ["main"]
