"""Text for a terminal of 100 columns: titled sections, and lines that hang when they go on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

WIDTH = 100


def section(title: str, lines: Iterable[str]) -> str:
    """The lines under their title; "" where there are none."""
    body = "\n".join(lines)
    return f"{title}\n{body}" if body else ""


def hanging(text: str, first: str, rest: str) -> str:
    """`text` behind `first`; what goes on stands behind `rest`. Words are never broken."""
    return textwrap.fill(
        text,
        width=WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def wrapped(line: str) -> str:
    """A line with its own indent; what goes on stands four columns further in."""
    text = line.lstrip()
    indent = line[: len(line) - len(text)]
    return hanging(text, indent, f"{indent}    ")
