"""Tool calls of every family are found, and the same however the text is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import ConfigError
from hal.server.tool_calls import CallArguments, CallStart, Content, Event, ToolParser, merged
from hal.server.tool_parser import FAMILIES, ArrayParser, PlainParser, family_of

SCHEMAS = {"add": {"properties": {"a": {"type": "integer"}, "s": {"type": "string"}}}}
Calls = list[tuple[str, object]]

CASES: list[tuple[str, str, str, Calls]] = [
    ("hermes", "just text <tool", "just text <tool", []),
    (
        "hermes",
        'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "s": "}"}}\n</tool_call>',
        "Let me see.",
        [("add", {"a": 1, "s": "}"})],
    ),
    (
        "hermes",
        '<tool_call>{"name":"f","arguments":{}}</tool_call>\n'
        '<tool_call>{"name":"g","arguments": {"x": [1, {"y": "\\"{"}]} }</tool_call>',
        "",
        [("f", {}), ("g", {"x": [1, {"y": '"{'}]})],
    ),
    (
        "hermes",
        '<tool_call>{"arguments": {"a": 2}, "name": "add"}</tool_call>',
        "",
        [("add", {"a": 2})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 3}"}</tool_call>',
        "",
        [("add", {"a": 3})],
    ),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]),
    ("hermes", "<tool_call>what?</tool_call>", "<tool_call>what?</tool_call>", []),
    ("hermes", '<tool_call>{"nam', '<tool_call>{"nam', []),
    (
        "qwen",
        "Well.\n\n<tool_call>\n<function=add>\n<parameter=a>\n41\n</parameter>\n"
        "<parameter=s>\nline 1\n12\n</parameter>\n</function>\n</tool_call>",
        "Well.",
        [("add", {"a": 41, "s": "line 1\n12"})],
    ),
    (
        "qwen",
        "<tool_call><function=f></function></tool_call>"
        "<tool_call><function=add><parameter=s>7</parameter><parameter=z>[1]</parameter>"
        "</function></tool_call>",
        "",
        [("f", {}), ("add", {"s": "7", "z": [1]})],
    ),
    (
        "llama3-json",
        '{"name": "add", "parameters": {"a": 1}}; {"name": "f", "parameters": {}}',
        "",
        [("add", {"a": 1}), ("f", {})],
    ),
    (
        "llama3-json",
        '<|python_tag|>{"name": "add", "parameters": {"a": 1}}',
        "",
        [("add", {"a": 1})],
    ),
    ("llama3-json", 'The answer is {"name": 1}.', 'The answer is {"name": 1}.', []),
    ("llama3-json", '{"person": {"name": "x"}}', '{"person": {"name": "x"}}', []),
    (
        "mistral",
        'Ok. [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, {"name": "f", "arguments": {}}]',
        "Ok.",
        [("add", {"a": 1}), ("f", {})],
    ),
    (
        "mistral",
        '[TOOL_CALLS]add[ARGS]{"a": {"b": 1}}[TOOL_CALLS]f{"x": "}"}',
        "",
        [("add", {"a": {"b": 1}}), ("f", {"x": "}"})],
    ),
    ("mistral", "no calls [TOOL", "no calls [TOOL", []),
    (
        "pythonic",
        "[add(a=1, s='it\\'s ])'), mod.f(x=[1, {'y': None}], z=-2.5)]",
        "",
        [("add", {"a": 1, "s": "it's ])"}), ("mod.f", {"x": [1, {"y": None}], "z": -2.5})],
    ),
    ("pythonic", "[1, 2] is a list", "[1, 2] is a list", []),
    ("pythonic", "[f(open('x'))]", "[f(open('x'))]", []),
    ("pythonic", "f(a=1)", "f(a=1)", []),
]


def read(parser: ToolParser, pieces: list[str]) -> list[Event]:
    events = [event for piece in pieces for event in parser.feed(piece)]
    return merged([*events, *parser.finish()])


def calls_of(events: list[Event]) -> Calls:
    """Names with their arguments; each call has its start first and its index in order."""
    names: list[str] = []
    arguments: list[str] = []
    for event in events:
        if isinstance(event, CallStart):
            assert event.index == len(names)
            names.append(event.name)
            arguments.append("")
        elif isinstance(event, CallArguments):
            assert event.index == len(names) - 1
            arguments[event.index] += event.text
    return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


def content_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


@pytest.mark.parametrize(("family", "text", "content", "calls"), CASES)
def test_calls_are_found(family: str, text: str, content: str, calls: Calls) -> None:
    whole = read(FAMILIES[family](SCHEMAS), [text])
    assert (content_of(whole), calls_of(whole)) == (content, calls)
    assert read(FAMILIES[family](SCHEMAS), list(text)) == whole, "one character at a time"


def test_the_forced_array() -> None:
    text = '[{"name": "add", "arguments": {"a": 1}}, {"name":"f","arguments":{"b": []}}]'
    events = read(ArrayParser(), list(text))
    assert calls_of(events) == [("add", {"a": 1}), ("f", {"b": []})]
    assert content_of(events) == ""


def test_arguments_are_streamed_as_they_come() -> None:
    parser = FAMILIES["hermes"](SCHEMAS)
    parser.feed('<tool_call>{"name": "add", "arguments": {"s": "ab')
    assert parser.feed("cd") == [CallArguments(0, "cd")]


_PIECES = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<function=add>", "</function>", "<parameter=a>"),
        *("</parameter>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "add", '),
        *('"arguments": {"a": 1}', '"parameters": ', "}", "{", "[", "]", "(", ")", "add(a=1)"),
        *('"', "\\", ",", ";", ":", " ", "\n", "x", "é", "'", "="),
    ]
)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@given(pieces=st.lists(_PIECES, max_size=30), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_cutting_the_text_changes_nothing(family: str, pieces: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    cut = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    whole = read(FAMILIES[family](SCHEMAS), [text])
    assert read(FAMILIES[family](SCHEMAS), cut) == whole
    if not any(isinstance(event, CallStart) for event in whole):
        assert not any(isinstance(event, CallArguments) for event in whole)


@given(text=st.text("<tol_cal>[TOOL_S]{}\n abc"))
def test_without_a_call_the_content_is_the_text(text: str) -> None:
    for family in ("hermes", "mistral", "llama3-json", "pythonic"):
        assert content_of(read(FAMILIES[family](SCHEMAS), list(text))) == text
    assert content_of(read(PlainParser(), list(text))) == text


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("<tool_call>\n<function=example>", "qwen"),
        ("[TOOL_CALLS]", "mistral"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
        ("<|python_tag|>", "llama3-json"),
        ("nothing", "hermes"),
    ],
)
def test_the_family_is_read_from_the_template(template: str, family: str) -> None:
    assert family_of(template) == family
    assert family_of(template, "mistral") == "mistral"
    with pytest.raises(ConfigError, match="hermes, llama3-json"):
        family_of(template, "gpt")
