"""Messages to prompt text through the checkpoint's Jinja template; the only place that runs one.

Templates come with downloaded checkpoints, so they are untrusted programs: they run in Jinja's
immutable sandbox, see plain JSON values only, and their output is limited. The environment has
the filters and functions that templates on the hub expect (those of transformers).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from hal.engine.config_fields import ConfigFields
from hal.errors import RequestError, TokenizerError

MAX_OUTPUT_CHARS = 4 * 2**20
MAX_COUNTED = 1_000_000
"""Numbers that one rendering may count through: loops in loops would never end otherwise."""

_DEFAULT = "default"
_TOOL_USE = "tool_use"
_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})

Clock = Callable[[], datetime]


class ChatTemplate:
    """The templates of one checkpoint by name; none at all is an error only when one is needed."""

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        source: str,
        *,
        clock: Clock = datetime.now,
        max_output_chars: int = MAX_OUTPUT_CHARS,
    ) -> None:
        self._special_tokens = dict(special_tokens)
        self._source = source
        self.text = "\n".join(sources.values())
        """What the templates say, for those who look for a model's ways in them."""
        self._max_output_chars = max_output_chars
        environment = make_environment(clock)
        self._templates = {
            name: _compile(environment, text, source) for name, text in sources.items()
        }

    @property
    def has_template(self) -> bool:
        return bool(self._templates)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt; encode it without special tokens, which the template has written itself.

        `variables` are further names the template may read (chat_template_kwargs). Raises
        TokenizerError without a template, RequestError where the template refuses the messages.
        """
        extra = {**(variables or {})}
        if overridden := _OWN_VARIABLES & extra.keys():
            raise RequestError(
                f"chat_template_kwargs must not set {', '.join(sorted(overridden))}",
                param="chat_template_kwargs",
            )
        template = self._choose(has_tools=tools is not None)
        values = {
            **self._special_tokens,
            **extra,
            # APIs send content=None beside tool calls; templates expect the key to be left out.
            "messages": [
                {key: item for key, item in message.items() if item is not None}
                for message in messages
            ],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return self._run(template, {name: _plain(value) for name, value in values.items()})

    def _choose(self, *, has_tools: bool) -> jinja2.Template:
        if has_tools and _TOOL_USE in self._templates:
            return self._templates[_TOOL_USE]
        if _DEFAULT in self._templates:
            return self._templates[_DEFAULT]
        found = f"only {', '.join(sorted(self._templates))}" if self._templates else "none"
        raise TokenizerError(
            f"{self._source} has no default chat template (found: {found}). Start with "
            "--chat-template FILE, or send plain prompts to /v1/completions."
        )

    def _run(self, template: jinja2.Template, values: dict[str, object]) -> str:
        parts: list[str] = []
        num_chars = 0
        try:
            for part in template.generate({**values, "range": _CountedRange().range}):
                num_chars += len(part)
                if num_chars > self._max_output_chars:
                    raise RequestError(
                        f"the chat template wrote more than {self._max_output_chars} characters; "
                        "send fewer or shorter messages",
                        param="messages",
                    )
                parts.append(part)
        except RequestError:
            raise
        except Exception as error:  # a template is a program: it may fail in any way
            raise RequestError(
                f"the chat template does not accept these messages: {error}", param="messages"
            ) from error
        return "".join(parts)


def load_chat_template(
    folder: Path, special_tokens: Mapping[str, str], override: Path | None = None
) -> ChatTemplate:
    """The operator's file, else chat_template.jinja, else tokenizer_config.json's entry.

    Raises TokenizerError for a file that is missing or is not valid Jinja.
    """
    path = override if override is not None else folder / "chat_template.jinja"
    if override is not None or path.is_file():
        return ChatTemplate({_DEFAULT: _read(path)}, special_tokens, str(path))
    config = folder / "tokenizer_config.json"
    sources = _configured(ConfigFields.read_optional(config))
    return ChatTemplate(sources, special_tokens, str(config if sources else folder))


def make_environment(clock: Clock) -> ImmutableSandboxedEnvironment:
    """The one factory of Jinja environments."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: clock().strftime(layout)
    environment.globals["namespace"] = _PublicNamespace
    return environment


class _CountedRange:
    """`range` for one rendering."""

    def __init__(self) -> None:
        self._num_left = MAX_COUNTED

    def range(self, *bounds: int) -> range:
        found = range(*bounds)
        self._num_left -= len(found)
        if self._num_left < 0:
            raise OverflowError(f"it counts through more than {MAX_COUNTED} numbers")
        return found


class _GenerationTag(Extension):
    """`{% generation %}` marks assistant text for training masks; here its body is just text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _PublicNamespace(Namespace):
    """`namespace()` without underscore names, which could reach Python's internals."""

    # No named parameter: templates may write namespace(self=...).
    def __init__(*args: Any, **attributes: Any) -> None:
        own, *positional = args
        values = dict(*positional, **attributes)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(own, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r} starts with _")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which models have never seen.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _plain(value: object) -> object:
    """A copy made of JSON types; raises RequestError for anything with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise RequestError(
        f"messages must be made of JSON values; got a {type(value).__name__}", param="messages"
    )


def _compile(environment: ImmutableSandboxedEnvironment, text: str, source: str) -> jinja2.Template:
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(
            f"{source}: the chat template is not valid Jinja at line {error.lineno}: "
            f"{error.message}. Correct it, or give another with --chat-template FILE."
        ) from error
    except (RecursionError, MemoryError, ValueError, SyntaxError) as error:
        # Jinja's parser calls itself, and makes Python of what it has read.
        raise TokenizerError(
            f"{source}: the chat template cannot be compiled: {type(error).__name__}. Give another "
            "with --chat-template FILE."
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read the chat template {path}: {error}") from error


def _configured(fields: ConfigFields) -> dict[str, str]:
    """tokenizer_config.json has one template, or a list of {name, template}."""
    value = fields.first("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {_DEFAULT: value}
    entries = value if isinstance(value, list) else [value]
    named = [ConfigFields(entry, fields.source) for entry in entries if isinstance(entry, dict)]
    if len(named) != len(entries):
        raise TokenizerError(f"{fields.source}: 'chat_template' is neither text nor a named list")
    return {entry.text("name"): entry.text("template") for entry in named}
