"""Typed look-ups in a checkpoint's JSON files; every complaint names the file and the key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hal.errors import ModelError

_MAX_COUNT = 2**31 - 1


class ConfigFields:
    """One JSON object of a checkpoint. A key whose value is null counts as absent."""

    def __init__(self, values: Mapping[str, object], source: str) -> None:
        self._values = values
        self.source = source

    @classmethod
    def read(cls, path: Path) -> ConfigFields:
        """Parse `path`; raises ModelError when it is not a JSON object."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(
                f"{path} is not readable JSON: {error}. Download the file again."
            ) from error
        if not isinstance(values, dict):
            raise ModelError(f"{path} must hold a JSON object; it holds a {type(values).__name__}")
        return cls(values, str(path))

    @classmethod
    def read_optional(cls, path: Path) -> ConfigFields:
        """Like `read`, but a file that is absent is an empty object."""
        return cls.read(path) if path.is_file() else cls({}, str(path))

    def with_defaults(self, defaults: Mapping[str, object]) -> ConfigFields:
        """The same object with `defaults` where a key is absent."""
        return ConfigFields({**defaults, **self._values}, self.source)

    def first(self, *keys: str) -> object:
        """The value of the first of `keys` that is present and not null, else None."""
        for key in keys:
            value = self._values.get(key)
            if value is not None:
                return value
        return None

    def has(self, key: str) -> bool:
        """True when the key is written, even as null."""
        return key in self._values

    def integer(self, *keys: str, default: int | None = None) -> int:
        value = self.first(*keys)
        if value is None and default is not None:
            return default
        # Some exporters write counts as 4096.0.
        is_integral = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not is_integral or isinstance(value, bool):
            raise self._wrong(keys, "a whole number", value)
        assert isinstance(value, int | float)
        return int(value)

    def optional_integer(self, *keys: str) -> int | None:
        return None if self.first(*keys) is None else self.integer(*keys)

    def positive(self, *keys: str, default: int | None = None) -> int:
        value = self.integer(*keys, default=default)
        if not 0 < value <= _MAX_COUNT:
            raise self._wrong(keys, f"from 1 to {_MAX_COUNT}", value)
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        value = self.first(*keys)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(keys, "a number", value)
        if not math.isfinite(value):  # Python's JSON reader accepts NaN and Infinity
            raise self._wrong(keys, "a finite number", value)
        return float(value)

    def optional_number(self, *keys: str) -> float | None:
        return None if self.first(*keys) is None else self.number(*keys)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers; an absent key is an empty tuple."""
        items = self._items(key)
        if any(not isinstance(item, int | float) for item in items):
            raise self._wrong((key,), "a list of numbers", items)
        return tuple(float(item) for item in items)

    def flag(self, *keys: str, default: bool) -> bool:
        value = self.first(*keys)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(keys, "true or false", value)
        return value

    def text(self, *keys: str, default: str | None = None) -> str:
        value = self.first(*keys)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._wrong(keys, "a string", value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; an absent key is an empty tuple."""
        items = self._items(key)
        if any(not isinstance(item, str) for item in items):
            raise self._wrong((key,), "a list of strings", items)
        return tuple(items)

    def section(self, *keys: str) -> ConfigFields | None:
        """A nested object, or None when the key is absent."""
        value = self.first(*keys)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(keys, "an object", value)
        return ConfigFields(value, f"{self.source}: {keys[0]}")

    def section_names(self) -> tuple[str, ...]:
        """Keys whose value is an object."""
        return tuple(key for key, value in self._values.items() if isinstance(value, dict))

    def token_ids(self, key: str) -> tuple[int, ...]:
        """An id or a list of ids; an absent key is an empty tuple."""
        value = self.first(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(item, int) or isinstance(item, bool) for item in items):
            raise self._wrong((key,), "a token id or a list of them", value)
        return tuple(items)

    def _items(self, key: str) -> list[Any]:
        value = self.first(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong((key,), "a list", value)
        return value

    def _wrong(self, keys: tuple[str, ...], expected: str, value: object) -> ModelError:
        name = " or ".join(repr(key) for key in keys)
        got = "it is missing" if value is None else f"it is {value!r}"
        return ModelError(f"{self.source}: {name} must be {expected}; {got}")
