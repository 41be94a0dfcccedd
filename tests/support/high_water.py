"""What a load holds at its highest."""

from __future__ import annotations

from pathlib import Path

from hal.engine.progress import SilentProgress


class HighWater(SilentProgress):
    """The process's private and shared-memory bytes at their highest, looked at every tensor."""

    def __init__(self) -> None:
        self.highest = 0

    def advance(self, amount: int) -> None:
        self.highest = max(self.highest, held_bytes())


def held_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
