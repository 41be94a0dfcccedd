"""How families of models mark their reasoning, and the split of an answer into it and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hal.engine.output import StopMatcher
from hal.engine.tokenizer import Tokenizer
from hal.errors import ConfigError
from hal.guided_decoding import GuidedDecodingParams
from hal.server.tool_calls import Content, Event, Reasoning, ToolParser, merged
from hal.server.tool_parser import CharParser

_SPACES = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Marks:
    """The texts around a model's reasoning, which stands at the start of an answer."""

    opening: str
    closing: str

    def is_open_after(self, prompt: str) -> bool:
        """Whether the chat template has opened the reasoning that the model goes on with."""
        return prompt.rstrip(_SPACES).endswith(self.opening)

    def are_special_in(self, tokenizer: Tokenizer) -> bool:
        """Whether a special token writes one, which texts do not show by default."""
        ids = {tokenizer.token_id(self.opening), tokenizer.token_id(self.closing)}
        return not ids.isdisjoint(tokenizer.special_token_ids)


FAMILIES: Mapping[str, Marks | None] = {
    "deepseek-r1": Marks("<think>", "</think>"),
    "mistral": Marks("[THINK]", "[/THINK]"),
    "none": None,
    "qwen3": Marks("<think>", "</think>"),
}
"""Marks by the names of --reasoning-parser."""


def marks_of(template: str, wanted: str | None = None) -> Marks | None:
    """Of the operator's choice, or what the chat template writes; None: nothing is split."""
    if wanted is not None:
        if wanted not in FAMILIES:
            raise ConfigError(
                f"--reasoning-parser {wanted!r} is not one of {', '.join(sorted(FAMILIES))}"
            )
        return FAMILIES[wanted]
    return next((m for m in FAMILIES.values() if m is not None and m.closing in template), None)


@dataclass(frozen=True, slots=True)
class Split:
    """How the answers to one prompt are split; is_open: the prompt ends in the opening mark."""

    marks: Marks
    is_open: bool

    def guided(self, params: GuidedDecodingParams) -> GuidedDecodingParams:
        """The same for what follows the reasoning."""
        opening = None if self.is_open else self.marks.opening
        return replace(params, reasoning_start=opening, reasoning_end=self.marks.closing)


class ReasoningParser(CharParser):
    """Reasoning up to the closing mark, then what `answer` reads in the rest.

    Where the prompt has not opened it, the answer has to begin with the opening mark. Whitespace at
    both ends of the reasoning, and behind it, is dropped.
    """

    def __init__(self, split: Split, answer: ToolParser) -> None:
        super().__init__()
        self.has_reasoning = split.is_open
        self._opening = split.marks.opening
        self._closing = StopMatcher((split.marks.closing,))
        self._answer = answer
        self._begun = ""  # the start of what may become the opening mark
        self._has_thought = False
        if split.is_open:
            self._state = self._reasoning

    @property
    def is_before_answer(self) -> bool:
        """Whether the reasoning has not ended, or may still begin."""
        return self._state in (self._content, self._reasoning)

    def feed(self, text: str) -> list[Event]:
        return self._rest(text) if self._state == self._rest else super().feed(text)

    def finish(self) -> list[Event]:
        return merged([*super().finish(), *self._answer.finish()])

    def _content(self, char: str) -> list[Event]:
        if not self._begun and char in _SPACES:
            self._blank.append(char)
            return []
        self._begun += char
        if self._begun == self._opening:
            self._blank.clear()
            self.has_reasoning, self._state = True, self._reasoning
            return []
        return [] if self._opening.startswith(self._begun) else self._no_reasoning()

    def _no_reasoning(self) -> list[Event]:
        blank = "".join(self._blank)
        self._blank.clear()
        self._state = self._rest
        return self._rest(blank + self._begun)

    def _reasoning(self, char: str) -> list[Event]:
        found = self._closing.feed(char)
        if not found.finished_by_stop:
            return self._thought(found.text)
        self._blank.clear()
        self._state = self._between
        return []

    def _thought(self, text: str) -> list[Event]:
        said = self._say(text if self._has_thought else text.lstrip(_SPACES))
        self._has_thought |= bool(said)
        return [Reasoning(event.text) for event in said if isinstance(event, Content)]

    def _between(self, char: str) -> list[Event]:
        if char in _SPACES:
            return []
        self._state = self._rest
        return self._rest(char)

    def _rest(self, text: str) -> list[Event]:
        return self._answer.feed(text)

    def _end(self) -> list[Event]:
        if self._state == self._content:
            return self._no_reasoning()
        if self._state != self._reasoning:
            return []
        events = self._thought(self._closing.flush())
        self._blank.clear()
        return events
