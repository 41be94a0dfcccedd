"""--config FILE: a TOML file of flags. The command line and the environment win over it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from hal.errors import ConfigError

Setting = bool | str | list[str]
"""As the flag reads it: a switch, a text, or the texts of a flag that may be repeated."""


def read_settings(path: Path) -> Iterator[tuple[str, Setting]]:
    """Each flag's name, with dashes, and its value. Raises ConfigError naming file and entry."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from error
    for name, value in table.items():
        yield name.replace("_", "-"), _setting(value, f"--config {path}: {name}")


def _setting(value: object, where: str) -> Setting:
    match value:
        case bool():
            return value
        case str() | int() | float():
            return str(value)
        case list() if all(isinstance(item, str) for item in value):
            return value
        case _:
            raise ConfigError(
                f"{where}: a {type(value).__name__} cannot be a flag; give a text, a number, true, "
                "false or a list of texts"
            )
