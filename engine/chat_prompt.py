"""Chats to token ids: what a message says never becomes a control token.

A message that spells one, say `<|im_end|>`, could otherwise end its own turn and open the system's.
A seam, a character that occurs nowhere else, is put behind the first one of each spelling before
the template runs, and the prompt is encoded in parts that meet at the seams: no part holds the
whole token. Prompts without such a spelling are encoded as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from hal.engine.chat_template import ChatTemplate
from hal.engine.tokenizer import Tokenizer
from hal.errors import RequestError

_TRUSTED_ROLES = frozenset({"assistant"})
"""Whose turns may hold control tokens: the model wrote them, and templates look for its marks."""

Message = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered chat in the parts that are encoded one by one."""

    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.parts)


class ChatEncoder:
    """One model's chats: its template, then its tokenizer."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self.template = template
        self._tokenizer = tokenizer
        self._starts = _starts_of(tokenizer.control_texts())

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> ChatPrompt:
        """As ChatTemplate.render, which says what it raises."""
        starts, seam = self._starts, None
        if starts is not None and any(map(starts.search, _texts(messages))):
            given = (*_texts(messages), *_texts(tools), *_texts(variables), self.template.text)
            seam = _unused_character(given)
            messages = [_with_seams(message, starts, seam) for message in messages]
        rendered = self.template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
        )
        return ChatPrompt((rendered,) if seam is None else tuple(rendered.split(seam)))

    def encode(self, prompt: ChatPrompt) -> list[int]:
        """The template has written the control tokens itself: none is added."""
        encode = self._tokenizer.encode
        return [i for part in prompt.parts for i in encode(part, add_special_tokens=False)]


def _with_seams(message: Message, starts: re.Pattern[str], seam: str) -> Message:
    if message.get("role") in _TRUSTED_ROLES:
        return message

    def seamed(value: object) -> object:
        if isinstance(value, str):
            return starts.sub(lambda match: match[0] + seam, value)
        if isinstance(value, Mapping):
            return {name: seamed(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [seamed(item) for item in value]
        return value

    return {name: seamed(value) for name, value in message.items()}


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _unused_character(texts: Iterable[str]) -> str:
    """Of those that Unicode leaves to private use: a seam that no cut of a template can halve."""
    used = set().union(*texts)
    for code in chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE)):
        if chr(code) not in used:
            return chr(code)
    raise RequestError("the messages use every private character of Unicode", param="messages")


def _starts_of(control_texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches the first character of each control token in a text, of overlapping ones too."""
    # A token of one character cannot be cut; such tokens are not written as text.
    texts = sorted(text for text in control_texts if len(text) > 1)
    if not texts:
        return None
    return re.compile(f"(?=(?:{'|'.join(map(re.escape, texts))})).", re.DOTALL)
