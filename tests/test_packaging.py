"""What pyproject.toml promises to people who install hal."""

from __future__ import annotations

import importlib
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_core_dependencies_stay_few() -> None:
    names = [re.split(r"[^A-Za-z0-9_-]", line)[0] for line in PROJECT["dependencies"]]
    assert len(names) == len(set(names)) <= 12


def test_extras() -> None:
    extras = {"cuda", "rocm", "opencl", "onnx", "otel", "guided", "test"}
    assert set(PROJECT["optional-dependencies"]) == extras


@pytest.mark.parametrize("script", sorted(PROJECT["scripts"]))
def test_console_scripts_exist(script: str) -> None:
    module, _, function = PROJECT["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    "path", [".ci/run", *(f"scripts/{p.name}" for p in ROOT.glob("scripts/*.sh"))]
)
def test_shell_scripts_can_run(path: str) -> None:
    assert os.access(ROOT / path, os.X_OK)
    assert (
        "set -euo pipefail" in (ROOT / path).read_text()
        or "set -uo pipefail" in (ROOT / path).read_text()
    )


def test_license_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
