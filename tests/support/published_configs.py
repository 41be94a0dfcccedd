"""config.json of published models, as far as sizes go, with the number of their parameters.

The counts are those of the published weight files; a tied matrix counts once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Published:
    """One model; `config` has the keys that its config.json has."""

    config: dict[str, Any]
    num_parameters: int


def _read() -> dict[str, Published]:
    path = Path(__file__).with_suffix(".json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {name: Published(row["config"], row["parameters"]) for name, row in rows.items()}


PUBLISHED = _read()


def write_config(folder: Path, name: str, **overrides: Any) -> str:
    """A folder that holds nothing but this model's config.json; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**PUBLISHED[name].config, **overrides}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)
