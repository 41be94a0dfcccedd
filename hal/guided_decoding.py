"""What an answer may look like: JSON schema, regex, choice or grammar, under vLLM's names."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from hal.errors import RequestError

MAX_GRAMMAR_CHARS = 256 * 1024
MAX_CHOICES = 4096

DEFAULT_WHITESPACE = "[ ]?"
"""Between JSON tokens: one space at most, so that no model can fill its answer with blanks."""

_KINDS = ("json", "regex", "choice", "grammar", "json_object")
_TEXTS = ("json", "regex", "grammar", "whitespace_pattern", "reasoning_start", "reasoning_end")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedDecodingParams:
    """Exactly one of json, regex, choice, grammar, json_object; a wrong value raises RequestError.

    json                a JSON schema, as text or as a mapping (kept as text)
    json_schema         the same under another name
    regex               in the syntax of Rust's regex crate: linear time, no look-around
    choice              the answer is one of these texts
    grammar             Lark's EBNF; the rule `start` is the whole answer
    json_object         any JSON object
    whitespace_pattern  a regex of what may stand between JSON tokens; one space at most by default
    reasoning_end       free text up to and with this mark comes first, and line breaks behind it
    reasoning_start     it begins with this mark or is left out; None: the prompt has begun it
    """

    json: str | Mapping[str, object] | None = None
    json_schema: str | Mapping[str, object] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    whitespace_pattern: str | None = None
    reasoning_end: str | None = None
    reasoning_start: str | None = None

    def __post_init__(self) -> None:
        if self.json_schema is not None:
            if self.json is not None:
                raise _wrong("json and json_schema are the same; give one of them")
            object.__setattr__(self, "json", self.json_schema)
            object.__setattr__(self, "json_schema", None)
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        self._check()

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(kind for kind in _KINDS if self._is_given(kind))

    def _is_given(self, kind: str) -> bool:
        return getattr(self, kind) not in (None, False)

    def _check(self) -> None:
        given = [kind for kind in _KINDS if self._is_given(kind)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise _wrong(f"guided decoding takes exactly one of {', '.join(_KINDS)}; got {found}")
        for name in _TEXTS:
            text = getattr(self, name)
            if text is not None and not isinstance(text, str):
                raise _wrong(f"{name} must be text; got {type(text).__name__}")
            if text is not None and len(text) > MAX_GRAMMAR_CHARS:
                raise _wrong(f"{name} has {len(text)} characters; at most {MAX_GRAMMAR_CHARS}")
        has_empty = "" in (self.reasoning_start, self.reasoning_end)
        if has_empty or (self.reasoning_start is not None and self.reasoning_end is None):
            raise _wrong("reasoning_start needs a reasoning_end, and neither may be empty")
        if self.whitespace_pattern is not None and not (self.json or self.json_object):
            raise _wrong("whitespace_pattern is for json and json_object only")


def _wrong(message: str) -> RequestError:
    return RequestError(message, param="guided_decoding")


def _schema_text(schema: object) -> str:
    """Always text, so that equal schemas are equal keys of a cache."""
    try:
        value = json_text.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(value, Mapping | bool):
            raise _wrong(f"a JSON schema is an object; got {type(value).__name__}")
        return json_text.dumps(value, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise _wrong(f"the JSON schema is not JSON: {error}") from error


def _choices(choice: Sequence[str]) -> tuple[str, ...]:
    is_list = isinstance(choice, list | tuple) and bool(choice)
    if not is_list or any(not isinstance(text, str) or not text for text in choice):
        raise _wrong("choice must be a list of non-empty texts")
    if len(choice) > MAX_CHOICES or sum(map(len, choice)) > MAX_GRAMMAR_CHARS:
        raise _wrong(
            f"choice has {len(choice)} texts of {sum(map(len, choice))} characters; at most "
            f"{MAX_CHOICES} of {MAX_GRAMMAR_CHARS} in all"
        )
    return tuple(choice)


def as_guided(value: object) -> GuidedDecodingParams:
    """The params themselves, or made of a mapping of their fields. Raises RequestError."""
    if isinstance(value, GuidedDecodingParams):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(f"guided_decoding is a GuidedDecodingParams; got {type(value).__name__}")
    known = [field.name for field in fields(GuidedDecodingParams)]
    unknown = [name for name in value if name not in known]
    if unknown:
        raise _wrong(f"guided_decoding has no {unknown[0]!r}; it has {', '.join(known)}")
    return GuidedDecodingParams(**value)
