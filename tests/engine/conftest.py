"""Tiny checkpoints made once per session, and a longer search for the state machines.

The long search: pytest tests/engine --hypothesis-profile long
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("long", deadline=None, max_examples=5000, stateful_step_count=100)

CheckpointMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointMaker:
    """tiny_checkpoint(arch, **overrides): a folder, shared by all who ask for the same."""
    from tiny_checkpoints import make_checkpoint

    made: dict[str, Path] = {}

    def make(arch: str, **overrides: Any) -> Path:
        key = repr((arch, sorted(overrides.items())))
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp(arch), arch, **overrides)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with only the tiny byte-level tokenizer."""
    from tiny_checkpoints import save_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder
