"""JSON lines, each with its number for the message if it is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hal.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Line:
    """One JSON object of a file."""

    file: str
    number: int
    fields: dict[str, object]

    def wrong(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.file} line {self.number} {reason}")

    def number_of(self, name: str, default: float | None = None) -> float:
        """A number; raises ConfigError if it is none, or missing without a default."""
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(f"needs a number {name!r}; got {value!r}")
        return value

    def ids_of(self, name: str) -> list[int]:
        """A list of whole numbers from 0 to 2^63 - 1."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(
            isinstance(item, int) and 0 <= item < 2**63 for item in value
        ):
            raise self.wrong(f"needs {name!r}, a list of whole numbers of at least 0")
        return value


Lines = list[Line]


def read_lines(path: str) -> Lines:
    """Raises ConfigError naming the line that is no JSON object; empty lines are left out."""
    try:
        texts = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    lines = list(_objects(path, texts))
    if not lines:
        raise ConfigError(f"{path} has no lines")
    return lines


def _objects(path: str, texts: list[str]) -> Iterator[Line]:
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} line {number} is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"{path} line {number} is no JSON object")
        yield Line(path, number, fields)
