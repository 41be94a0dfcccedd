"""Reasoning is found where it stands, and the same however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import ConfigError
from hal.server.reasoning import FAMILIES, Marks, ReasoningParser, Split, marks_of
from hal.server.tool_calls import Event, merged
from hal.server.tool_parser import PlainParser, TaggedParser
from hal.server.tools import ChoiceReader, Tools, whole_choice

THINK = Marks("<think>", "</think>")
CALL = '<tool_call>{"name": "f", "arguments": {"a": [1]}}</tool_call>'
TOOLS = Tools(specs=[], schemas={"f": {}}, forced=(), is_parallel=True)

CASES: list[tuple[bool, str, str, str, int]] = [
    (False, "<think>\nHm, 2 < 3.\n</think>\n\nYes.", "Hm, 2 < 3.", "Yes.", 0),
    (False, " \n<think>a\n\n b </think>c</think> <think>d", "a\n\n b", "c</think> <think>d", 0),
    (False, "No thought <think>at all</think>", "", "No thought <think>at all</think>", 0),
    (False, "\n <th", "", "\n <th", 0),
    (False, "  ", "", "  ", 0),
    (False, "", "", "", 0),
    (False, "<think>\n\n</think>\n\nDone.\n", "", "Done.\n", 0),
    (False, "<think>cut </th", "cut </th", "", 0),
    (False, "<think>cut \n", "cut", "", 0),
    (True, "Hm.</think>Yes.", "Hm.", "Yes.", 0),
    (True, "\nHm.\n</think>\n", "Hm.", "", 0),
    (True, "never </thin", "never </thin", "", 0),
    (True, f"I may {CALL} it.\n</think>\n\nOn it.\n{CALL}", f"I may {CALL} it.", "On it.", 1),
    (False, f"<think>x</think>{CALL}{CALL}", "x", "", 2),
    (False, f"Sure: {CALL}", "", "Sure:", 1),
]


def read(text: str, cuts: list[int], *, is_open: bool) -> tuple[list[Event], int]:
    """The events of all pieces, and how many tokens the reasoning had with one for each piece."""
    reader = ChoiceReader(TOOLS, "hermes", Split(THINK, is_open))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    events: list[Event] = []
    for i, piece in enumerate(pieces):
        events += reader.read(piece, len(piece), is_last=i == len(pieces) - 1)
    return merged(events), reader.num_reasoning


@pytest.mark.parametrize(("is_open", "text", "reasoning", "content", "num_calls"), CASES)
def test_a_whole_answer_is_split(
    is_open: bool, text: str, reasoning: str, content: str, num_calls: int
) -> None:
    events, _ = read(text, [], is_open=is_open)
    found = whole_choice(events, "call")
    assert (found.reasoning, found.content, len(found.calls)) == (reasoning, content, num_calls)
    assert all(call.arguments == '{"a": [1]}' for call in found.calls)


PIECES = ["<think>", "</think>", "</thi", "<", " ", "\n", "a", "Köln", CALL, "<tool_call>", "k>"]


@given(
    text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    is_open=st.booleans(),
    data=st.data(),
)
def test_every_cut_gives_the_same_split(text: str, is_open: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    whole, _ = read(text, [], is_open=is_open)
    by_char, num_by_char = read(text, list(range(1, len(text))), is_open=is_open)
    assert read(text, cuts, is_open=is_open)[0] == whole == by_char
    assert 0 <= num_by_char <= len(text)


@pytest.mark.parametrize(
    ("is_open", "text", "num_reasoning"),
    [
        (False, "<think>ab</think>\n\nxyz", len("<think>ab</think>")),
        (True, "ab</think>xyz", len("ab</think>")),
        (True, "ab", 2),
        (False, "abc", 0),
        (False, "<thank", 0),
    ],
)
def test_tokens_of_the_reasoning(is_open: bool, text: str, num_reasoning: int) -> None:
    assert read(text, list(range(1, len(text))), is_open=is_open)[1] == num_reasoning


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        ("{{ '<think>\\n' }}{% set c = c.split('</think>')[-1] %}", THINK),
        ("[THINK]{{ m }}[/THINK]", Marks("[THINK]", "[/THINK]")),
        ("{{ messages }}", None),
    ],
)
def test_the_marks_are_the_templates(template: str, marks: Marks | None) -> None:
    assert marks_of(template) == marks


def test_the_operator_decides() -> None:
    assert marks_of("</think>", "none") is None
    assert marks_of("", "qwen3") == marks_of("", "deepseek-r1") == THINK
    with pytest.raises(ConfigError, match="deepseek-r1, mistral, none, qwen3"):
        marks_of("", "deepseek")
    assert FAMILIES["mistral"] == Marks("[THINK]", "[/THINK]")


@pytest.mark.parametrize("prompt", ["<user>x<think>", "<user>x<think>\n"])
def test_a_prompt_that_opens_the_reasoning(prompt: str) -> None:
    assert THINK.is_open_after(prompt)
    assert not THINK.is_open_after(prompt + "\n</think>\n\n")


def test_long_blanks_take_linear_time() -> None:
    parser = ReasoningParser(Split(THINK, is_open=False), TaggedParser({}))
    assert parser.feed(" " * 200_000) == []
    assert parser.is_before_answer
    events = merged([*parser.feed("x"), *parser.finish()])
    assert whole_choice(events, "").content == " " * 200_000 + "x"


def test_without_tools_the_rest_is_content_as_it_is() -> None:
    parser = ReasoningParser(Split(THINK, is_open=True), PlainParser())
    events = merged([*parser.feed("a</think> b \n"), *parser.finish()])
    assert whole_choice(events, "").content == "b \n"
