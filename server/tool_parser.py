"""How families of models write tool calls; chosen from the chat template, or by the operator.

Parsers go through the text once, character by character, in linear time; none evaluates anything.
"""

from __future__ import annotations

import ast
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from hal.engine.output import StopMatcher
from hal.errors import ConfigError
from hal.server.tool_calls import (
    CallArguments,
    CallScanner,
    CallStart,
    Content,
    Event,
    ToolParser,
    ValueScanner,
    merged,
)

_SPACES = " \t\r\n"

MAX_NAME_CHARS = 256

Schemas = Mapping[str, Mapping[str, object]]
"""The JSON schema of each tool's parameters, by name."""


class CharParser(ABC):
    """Feeds characters to a state and counts calls; whitespace around calls is dropped."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._state: Callable[[str], list[Event]] = self._content
        self._blank: list[str] = []  # whitespace of the content that may stand before a call
        self._scanner = CallScanner(0)

    def feed(self, text: str) -> list[Event]:
        return merged(event for char in text for event in self._state(char))

    def finish(self) -> list[Event]:
        return merged([*self._end(), *self._flushed_blank()])

    @abstractmethod
    def _content(self, char: str) -> list[Event]:
        """The events of a character outside of calls."""

    @abstractmethod
    def _end(self) -> list[Event]:
        """What was held back when the text ends."""

    def _say(self, text: str) -> list[Event]:
        """Content, its trailing whitespace held back."""
        end = len(text.rstrip(_SPACES))
        if end == 0:
            self._blank.append(text)
            return []
        blank, self._blank = "".join(self._blank), [text[end:]]
        return [Content(blank + text[:end])]

    def _flushed_blank(self) -> list[Event]:
        blank = "".join(self._blank)
        return [Content(blank)] if blank and not self._num_calls else []

    def _scan(self, state: Callable[[str], list[Event]]) -> None:
        self._scanner, self._state = CallScanner(self._num_calls), state

    def _counted(self, events: list[Event]) -> list[Event]:
        if any(isinstance(event, CallStart) for event in events):
            self._num_calls += 1
            self._blank.clear()
        return events

    def _unread(self, prefix: str) -> list[Event]:
        """What a scanner has read without finding a call is content after all."""
        return [] if self._scanner.has_started else self._say(prefix + self._scanner.raw)


class PlainParser(CharParser):
    """All is content."""

    def _content(self, char: str) -> list[Event]:
        return [Content(char)]

    def _end(self) -> list[Event]:
        return []


class ArrayParser(CharParser):
    """The whole answer is a JSON array of calls, as the grammar of tool_choice has it."""

    def _content(self, char: str) -> list[Event]:
        if char in "{":
            self._scan(self._call)
            return self._call(char)
        return []

    def _call(self, char: str) -> list[Event]:
        events = self._counted(self._scanner.feed(char))
        if self._scanner.is_complete or self._scanner.is_lost:
            self._state = self._content
        return events

    def _end(self) -> list[Event]:
        return []


class TaggedParser(CharParser):
    """<tool_call>{"name": ..., "arguments": ...}</tool_call> (Hermes, Qwen2.5, Qwen3) or
    <tool_call><function=name><parameter=key>value</parameter></function></tool_call> (Qwen3-Coder).
    """

    _OPEN, _CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self, schemas: Schemas) -> None:
        super().__init__()
        self._schemas = schemas
        self._opening = StopMatcher((self._OPEN,))
        self._closing = StopMatcher((self._CLOSE,))
        self._markup = _MarkupCall(0, schemas)

    def _content(self, char: str) -> list[Event]:
        found = self._opening.feed(char)
        if found.finished_by_stop:
            self._scan(self._body)
        return self._say(found.text)

    def _body(self, char: str) -> list[Event]:
        if char == "<":
            self._markup = _MarkupCall(self._num_calls, self._schemas)
            self._state = self._markup_call
            return self._markup_call(char)
        if char not in _SPACES:
            self._state = self._call
            return self._call(char)
        return []

    def _call(self, char: str) -> list[Event]:
        events = self._counted(self._scanner.feed(char))
        if self._scanner.is_lost:
            events += self._unread(self._OPEN)
            self._state = self._content
        elif self._scanner.is_complete:
            self._closing, self._state = StopMatcher((self._CLOSE,)), self._close
        return events

    def _markup_call(self, char: str) -> list[Event]:
        events = self._counted(self._markup.feed(char))
        if self._markup.is_complete:
            self._closing, self._state = StopMatcher((self._CLOSE,)), self._close
        return events

    def _close(self, char: str) -> list[Event]:
        if self._closing.feed(char).finished_by_stop:
            self._opening, self._state = StopMatcher((self._OPEN,)), self._content
        return []

    def _end(self) -> list[Event]:
        if self._state == self._markup_call:
            return [] if self._markup.has_started else self._say(self._OPEN + self._markup.raw)
        if self._state in (self._body, self._call):
            return self._unread(self._OPEN)
        return self._say(self._opening.flush()) if self._state == self._content else []


class _MarkupCall:
    """One <function=name> with its parameters; each parameter's value is passed on when whole."""

    def __init__(self, index: int, schemas: Schemas) -> None:
        self.is_complete = False
        self.has_started = False
        self._index = index
        self._schemas = schemas
        self._raw: list[str] = []
        self._text: list[str] = []
        self._properties: Mapping[str, object] = {}
        self._key: str | None = None
        self._has_parameters = False
        self._ending = StopMatcher(("</parameter>",))

    @property
    def raw(self) -> str:
        return "".join(self._raw)

    def feed(self, char: str) -> list[Event]:
        if not self.has_started:
            self._raw.append(char)
        if self._key is not None:
            return self._feed_value(self._key, char)
        self._text.append(char)
        if char != ">":
            return []
        tag = "".join(self._text).strip(_SPACES)
        self._text.clear()
        if tag.startswith("<function="):
            return self._start(tag.removeprefix("<function=")[:-1].strip())
        if tag.startswith("<parameter="):
            self._key = tag.removeprefix("<parameter=")[:-1].strip()
            self._ending = StopMatcher(("</parameter>",))
        elif tag == "</function>" and self.has_started:
            self.is_complete = True
            return [CallArguments(self._index, "}" if self._has_parameters else "{}")]
        return []

    def _start(self, name: str) -> list[Event]:
        if self.has_started:
            return []
        self.has_started = True
        properties = self._schemas.get(name, {}).get("properties")
        self._properties = properties if isinstance(properties, Mapping) else {}
        return [CallStart(self._index, name)]

    def _feed_value(self, key: str, char: str) -> list[Event]:
        found = self._ending.feed(char)
        self._text.append(found.text)
        if not found.finished_by_stop:
            return []
        # One line break on either side belongs to the markup.
        value = "".join(self._text).removeprefix("\n").removesuffix("\n")
        self._text.clear()
        self._key = None
        pair = f"{json.dumps(key, ensure_ascii=False)}: {self._as_json(key, value)}"
        opening = ", " if self._has_parameters else "{"
        self._has_parameters = True
        return [CallArguments(self._index, opening + pair)] if self.has_started else []

    def _as_json(self, key: str, value: str) -> str:
        """A text unless the schema says otherwise; then what the model wrote, if that is JSON."""
        schema = self._properties.get(key)
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        if kind != "string":
            try:
                return json.dumps(json.loads(value), ensure_ascii=False)
            except (ValueError, RecursionError):
                pass  # a text after all
        return json.dumps(value, ensure_ascii=False)


class BareJsonParser(CharParser):
    """The answer is calls, {"name": ..., "parameters": ...} with ; between them (Llama 3), or it is
    text."""

    _TAG = "<|python_tag|>"

    def __init__(self) -> None:
        super().__init__()
        self._tag = StopMatcher((self._TAG,))

    def _content(self, char: str) -> list[Event]:
        found = self._tag.feed(char)
        if found.text.strip(_SPACES) == "{":
            self._scan(self._call)
            return self._call("{")
        if not found.text.strip(_SPACES):
            return self._say(found.text)
        self._state = self._text
        return self._say(found.text + self._tag.flush())

    def _call(self, char: str) -> list[Event]:
        events = self._counted(self._scanner.feed(char))
        if self._scanner.is_lost:
            self._state = self._text
            return events + self._unread("")
        if self._scanner.is_complete:
            self._state = self._between
        return events

    def _between(self, char: str) -> list[Event]:
        if char == "{":
            self._scan(self._call)
            return self._call(char)
        if char in _SPACES + ";,":
            return []
        self._state = self._text
        return self._text(char)

    def _text(self, char: str) -> list[Event]:
        return self._say(char)

    def _end(self) -> list[Event]:
        if self._state == self._call:
            return self._unread("")
        return self._say(self._tag.flush()) if self._state == self._content else []


class MistralParser(CharParser):
    """[TOOL_CALLS] and a JSON array of calls, or name[ARGS]{...} or name{...} for each call."""

    _TAG, _ARGS = "[TOOL_CALLS]", "[ARGS]"

    def __init__(self) -> None:
        super().__init__()
        self._tag = StopMatcher((self._TAG,))
        self._name = ""
        self._value = ValueScanner()

    def _content(self, char: str) -> list[Event]:
        found = self._tag.feed(char)
        if found.finished_by_stop:
            self._name, self._state = "", self._head
        return self._say(found.text)

    def _head(self, char: str) -> list[Event]:
        """An array, or a name up to its arguments."""
        if char == "[" and not self._name:
            self._state = self._array
        elif char == "{":
            name = self._name.removesuffix(self._ARGS).strip(_SPACES)
            index, self._value, self._state = self._num_calls, ValueScanner(), self._arguments
            events = self._counted([CallStart(index, name)])
            return [*events, *self._arguments(char)]
        elif len(self._name) > MAX_NAME_CHARS:
            self._leave()
            return self._say(self._TAG + self._name + char)
        elif self._name or char not in _SPACES:
            self._name += char
        return []

    def _array(self, char: str) -> list[Event]:
        if char == "{":
            self._scan(self._call)
            return self._call(char)
        if char == "]":
            self._leave()
        return []

    def _call(self, char: str) -> list[Event]:
        events = self._counted(self._scanner.feed(char))
        if self._scanner.is_lost:
            self._leave()
            return events + self._unread(self._TAG)
        if self._scanner.is_complete:
            self._state = self._array
        return events

    def _arguments(self, char: str) -> list[Event]:
        self._value.feed(char)
        if self._value.is_at_top:
            self._leave()
        return [CallArguments(self._num_calls - 1, char)]

    def _leave(self) -> None:
        self._tag, self._state = StopMatcher((self._TAG,)), self._content

    def _end(self) -> list[Event]:
        if self._state == self._head:
            return self._say(self._TAG + self._name)
        if self._state == self._call:
            return self._unread(self._TAG)
        return self._say(self._tag.flush()) if self._state == self._content else []


class PythonicParser(CharParser):
    """The answer is a list of Python calls, [f(a=1), g()], with literals only, or it is text."""

    def __init__(self) -> None:
        super().__init__()
        self._source: list[str] = []
        self._depth = 0
        self._quote = ""
        self._is_escaped = False

    def _content(self, char: str) -> list[Event]:
        if char in _SPACES:
            return self._say(char)
        self._state = self._calls if char == "[" else self._text
        return [] if char == "[" else self._say(char)

    def _calls(self, char: str) -> list[Event]:
        self._source.append(char)
        if self._quote:
            closes = char == self._quote and not self._is_escaped
            self._is_escaped = char == "\\" and not self._is_escaped
            self._quote = "" if closes else self._quote
            return []
        if char in "\"'":
            self._quote = char
        elif char in "([{":
            self._depth += 1
        elif char in ")]}":
            self._depth -= 1
            if self._depth == 0 and char == ")":
                return self._whole_call()
            if self._depth < 0:
                self._state = self._text
                return [] if self._num_calls else self._say("[" + "".join(self._source))
        return []

    def _whole_call(self) -> list[Event]:
        source = "".join(self._source)
        found = _python_call(source.strip(_SPACES + ","))
        if found is None:
            self._state = self._text
            return self._say(source if self._num_calls else "[" + source)
        self._source.clear()
        name, arguments = found
        index = self._num_calls
        return self._counted([CallStart(index, name), CallArguments(index, arguments)])

    def _text(self, char: str) -> list[Event]:
        return self._say(char)

    def _end(self) -> list[Event]:
        if self._state != self._calls or self._num_calls:
            return []
        return self._say("[" + "".join(self._source))


def _python_call(source: str) -> tuple[str, str] | None:
    """Name and arguments as JSON of `f(a=1)`; None unless it is one call with literals by name."""
    try:
        node = ast.parse(source, mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            return None
        arguments = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
        return ast.unparse(node.func), json.dumps(arguments, ensure_ascii=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


FAMILIES: Mapping[str, Callable[[Schemas], ToolParser]] = {
    "hermes": TaggedParser,
    "llama3-json": lambda schemas: BareJsonParser(),
    "mistral": lambda schemas: MistralParser(),
    "pythonic": lambda schemas: PythonicParser(),
    "qwen": TaggedParser,
}
"""Parsers of --tool-call-parser by name."""

_MARKS = (
    ("[TOOL_CALLS]", "mistral"),
    ("<function=", "qwen"),
    ("<tool_call>", "hermes"),
    ("func_name1(", "pythonic"),
    ("python_tag", "llama3-json"),
    ('"parameters": dictionary', "llama3-json"),
)


def family_of(template: str, wanted: str | None = None) -> str:
    """The operator's choice, or what the chat template writes; hermes where it says nothing."""
    if wanted is not None:
        if wanted not in FAMILIES:
            raise ConfigError(
                f"--tool-call-parser {wanted!r} is not one of {', '.join(sorted(FAMILIES))}"
            )
        return wanted
    return next((family for mark, family in _MARKS if mark in template), "hermes")
