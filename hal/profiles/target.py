"""What a plan is made for, as users write it: "h200", "2xmi300x"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hal.errors import ConfigError

MAX_DEVICES = 256
_COUNTED = re.compile(r"(-?\d+)\s*x\s*(.*)")


@dataclass(frozen=True, slots=True)
class Target:
    """`count` equal devices; `name` is a profile, an arch, or a kind that `--device` knows."""

    name: str
    count: int = 1
    is_counted: bool = False

    def __str__(self) -> str:
        return f"{self.count}x{self.name}" if self.is_counted else self.name


def parse_target(text: str) -> Target:
    """Split "2xmi300x" into its count and its name; raises ConfigError."""
    target = text.strip().lower()
    match = _COUNTED.fullmatch(target)
    name = target if match is None else match.group(2)
    if not name:
        raise ConfigError(f"--device {text!r} names no device; write it like h200 or 2xmi300x")
    if match is None:
        return Target(name)
    count = int(match.group(1)[:9])
    if not 1 <= count <= MAX_DEVICES:
        raise ConfigError(f"--device {text}: the count must be from 1 to {MAX_DEVICES}")
    return Target(name, count, is_counted=True)
