"""Folders with nothing but a published config.json, and tiny checkpoints for real engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_configs import write_config

Maker = Callable[..., Any]


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., str]:
    """published(name, **overrides): the path of a folder with that config.json."""
    made = 0

    def make(name: str, **overrides: Any) -> str:
        nonlocal made
        made += 1
        return write_config(tmp_path / f"{name}-{made}", name, **overrides)

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_checkpoint(arch, **overrides): a folder, shared by all who ask for the same."""
    from tiny_checkpoints import make_checkpoint

    made: dict[str, Path] = {}

    def make(arch: str, **overrides: Any) -> Path:
        key = repr((arch, sorted(overrides.items())))
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp(arch), arch, **overrides)
        return made[key]

    return make
