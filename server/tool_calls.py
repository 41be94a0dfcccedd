"""What a parser of answers says of one, and the scanner of one call written as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

_ARGUMENTS = ("arguments", "parameters")
_SPACES = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no part of a call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """Call `index` of the answer has a name; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of call `index`, a piece of JSON text."""

    index: int
    text: str


Event = Reasoning | Content | CallStart | CallArguments


class ToolParser(Protocol):
    """Reads one answer; the events are the same however the text is cut, but for where they are."""

    def feed(self, text: str) -> list[Event]:
        """What is certain after this much more text."""

    def finish(self) -> list[Event]:
        """What the end of the text makes of what was held back."""


def merged(events: Iterable[Event]) -> list[Event]:
    """Neighbours of one kind joined, empty ones left out."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        match last, event:
            case Content(before), Content(after):
                joined[-1] = Content(before + after)
            case Reasoning(before), Reasoning(after):
                joined[-1] = Reasoning(before + after)
            case CallArguments(index, before), CallArguments(other, after) if index == other:
                joined[-1] = CallArguments(index, before + after)
            case _, Reasoning("") | Content("") | CallArguments(_, ""):
                pass
            case _:
                joined.append(event)
    return joined


class ValueScanner:
    """Follows one JSON value to its end, without checking what is inside."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    @property
    def is_at_top(self) -> bool:
        """Whether a comma or a closing bracket would end the value."""
        return self._depth == 0 and not self._is_in_string

    def feed(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif self._is_in_string:
            self._is_escaped = char == "\\"
            self._is_in_string = char != '"'
        elif char == '"':
            self._is_in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1


class CallScanner:
    """One call as an object: {"name": ..., "arguments": {...}}; "parameters" means the same.

    Arguments are passed on as they come once the name is known.
    """

    def __init__(self, index: int) -> None:
        self.is_complete = False
        self.is_lost = False
        self._index = index
        self._raw: list[str] = []
        self._name: str | None = None
        self._key: str | None = None
        self._key_string: ValueScanner | None = None
        self._value: ValueScanner | None = None
        self._text: list[str] = []  # of the key or the value that is being read
        self._spaces: list[str] = []  # behind the value, or inside of it
        self._arguments: str | None = None  # waits for the name
        self._has_arguments = False
        self._passes_on = False
        self._is_open = False

    @property
    def raw(self) -> str:
        """All that was read."""
        return "".join(self._raw)

    @property
    def has_started(self) -> bool:
        """Whether a CallStart was given: it cannot be taken back."""
        return self._name is not None

    def feed(self, char: str) -> list[Event]:
        self._raw.append(char)
        if not self._is_open:
            self._is_open = char == "{"
            self.is_lost = not self._is_open and char not in _SPACES
            return []
        if self._value is not None:
            return self._feed_value(self._value, char)
        return self._feed_key(char)

    def _feed_key(self, char: str) -> list[Event]:
        if self._key_string is not None:
            self._text.append(char)
            self._key_string.feed(char)
            if self._key_string.is_at_top:
                self._key, self._key_string = _loaded_string("".join(self._text)), None
        elif char == '"':
            self._text, self._key_string = [char], ValueScanner()
            self._key_string.feed(char)
        elif char == ":" and self._key is not None:
            self._text, self._value = [], ValueScanner()
        elif char == "}":
            return self._complete()
        elif char not in _SPACES and char != ",":
            self.is_lost = True
        return []

    def _feed_value(self, value: ValueScanner, char: str) -> list[Event]:
        if value.is_at_top and char in ",}":
            events = self._end_value()
            return events + (self._complete() if char == "}" else [])
        value.feed(char)
        if not self._text and not self._passes_on and char not in _SPACES:
            # The text of a string is known at its end only.
            can_pass = self._name is not None and not self._has_arguments
            self._passes_on = can_pass and self._key in _ARGUMENTS and char != '"'
        if not self._passes_on:
            if self._text or char not in _SPACES:
                self._text.append(char)
            return []
        self._has_arguments = True
        self._spaces.append(char)
        if value.is_at_top and char in _SPACES:
            return []
        text = "".join(self._spaces)
        self._spaces.clear()
        return [CallArguments(self._index, text)]

    def _end_value(self) -> list[Event]:
        key, text = self._key, "".join(self._text).rstrip(_SPACES)
        self._key, self._value, self._passes_on = None, None, False
        self._spaces.clear()
        if key == "name" and self._name is None:
            self._name = _loaded_string(text)
            if self._name is None:
                self.is_lost = True
                return []
            start: list[Event] = [CallStart(self._index, self._name)]
            return start + self._waiting_arguments()
        if key in _ARGUMENTS and not self._has_arguments:
            self._has_arguments = True
            string = _loaded_string(text)
            self._arguments = text if string is None else string
            return self._waiting_arguments() if self._name is not None else []
        return []

    def _waiting_arguments(self) -> list[Event]:
        text, self._arguments = self._arguments, None
        return [] if text is None else [CallArguments(self._index, text)]

    def _complete(self) -> list[Event]:
        self.is_complete = True
        if self._name is None:
            self.is_lost = True
            return []
        return [] if self._has_arguments else [CallArguments(self._index, "{}")]


def _loaded_string(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
