"""What an op is asked for, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any


def describe(problem: Any) -> str:
    """A problem in words, no fact twice: "in_features 2048, out_features 8192, bfloat16".

    Of a dataclass inside it the fields are told, unless it has words of its own.
    """
    return ", ".join(dict.fromkeys(_facts(problem)))


def _facts(problem: Any) -> Iterator[str]:
    for field in fields(problem):
        value = getattr(problem, field.name)
        if is_dataclass(value) and type(value).__str__ is object.__str__:
            yield from _facts(value)
        elif isinstance(value, bool):
            if value:
                yield field.name
        elif isinstance(value, Enum):
            yield str(value)
        elif value is not None:
            yield f"{field.name} {value:g}" if isinstance(value, float) else f"{field.name} {value}"
