"""Which accelerator the installed torch was built for, read without importing it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hal.devices.host import read_text


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """Version strings of the installed torch; empty = not built for that platform."""

    version: str
    cuda: str
    rocm: str


def torch_build() -> TorchBuild | None:
    """The installed torch, or None."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return read_build(Path(spec.origin).with_name("version.py"))


def read_build(version_py: Path) -> TorchBuild:
    """The build that torch's own `version.py` describes."""
    text = read_text(version_py)

    def value(name: str) -> str:
        found = re.search(rf"^{name}\b[^=\n]*= *'([^']*)'", text, re.MULTILINE)
        return found.group(1) if found else ""

    return TorchBuild(version=value("__version__"), cuda=value("cuda"), rocm=value("hip"))
