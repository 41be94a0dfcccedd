"""hal-tiny: the demonstration model that ships with hal. README.md here is its model card."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The checkpoint folder: config, weights, tokenizer and chat template."""
    return Path(__file__).resolve().parent
