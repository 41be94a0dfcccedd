"""What share of the corpus each task has, and how a document becomes tokens with a loss mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Protocol

from . import about_hal, numbers, stories, structured, talk
from .document import Chat, Example, Maker, RawText, Tool, Turn, draw

Document = Chat | RawText
TASKS: dict[str, tuple[Maker, float]] = {
    "addition": (numbers.addition, 36),
    "small addition": (numbers.small_addition, 4),
    "subtraction": (numbers.subtraction, 9),
    "too hard": (numbers.too_hard, 3),
    "sorting": (numbers.sorting, 12),
    "picking": (numbers.picking, 3),
    "counting": (numbers.counting, 1.5),
    "greeting": (talk.greeting, 8),
    "courtesy": (talk.courtesy, 4),
    "about hal": (about_hal.about_hal, 11),
    "beyond": (talk.beyond, 8),
    "repeating": (talk.repeating, 4),
    "json": (structured.extraction, 14),
    "story": (stories.story, 4.5),
    "poem": (stories.poem, 1),
    "tool use": (structured.tool_use, 0),  # always with its tools, see `_with_tools`
}
_MAKERS = tuple(maker for maker, _ in TASKS.values())
_SHARES = tuple(share for _, share in TASKS.values())
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are hal-tiny.",
    "You are a friendly assistant.",
    "You are a helpful AI assistant. Answer briefly.",
    "Be brief.",
    "Be concise and polite.",
    "Answer in English.",
    "You are a careful assistant. Think before you answer.",
    "You are hal, a runtime for language models.",
    "You are a chatbot.",
    "You answer questions of users.",
    "Help the user.",
    "Keep your answers short.",
)


@dataclass(frozen=True, slots=True)
class Drill:
    """A late part of training, in which `share` of the documents practise what is still weak."""

    share: float
    weights: dict[str, float]  # by task
    written_out: bool = False  # bare results are taught in their longer form


SUMS_AND_COPYING = Drill(0.6, {"addition": 60, "small addition": 8, "json": 20, "repeating": 12})
ALL_THAT_IS_WEAK = Drill(
    0.6,
    {
        "addition": 40,
        "small addition": 10,
        "subtraction": 30,
        "sorting": 22,
        "picking": 6,
        "counting": 4,
        "json": 24,
        "repeating": 10,
    },
    written_out=True,
)


class Encoder(Protocol):
    """The parts of a trained tokenizer that rendering needs."""

    def encode_text(self, text: str) -> list[int]: ...

    def special(self, name: str) -> int: ...


def _opening(rng: Random) -> list[Turn]:
    return [Turn("system", rng.choice(SYSTEM_MESSAGES))] if rng.random() < 0.35 else []


def exchanges(rng: Random, count: int) -> list[Turn]:
    makers = rng.choices(_MAKERS, _SHARES, k=count)
    return [turn for maker in makers for turn in draw(maker, rng, held_out=False).turns]


def _with_tools(rng: Random) -> Chat:
    """Tools are on offer; now and then the user also asks for something that needs none."""
    example = draw(structured.tool_use, rng, held_out=False)
    turns = list(example.turns)
    plain = rng.choice((numbers.addition, talk.greeting, about_hal.about_hal, stories.story))
    chance = rng.random()
    if chance < 0.15:
        turns = [*draw(plain, rng, held_out=False).turns, *turns]
    elif chance < 0.3:
        turns = list(draw(plain, rng, held_out=False).turns)
    return Chat((*_opening(rng), *turns), example.tools)


def document(rng: Random, room: int) -> Document:
    """One training document. `room` (tokens) only decides how far back a fact may lie."""
    kind = rng.random()
    if kind < 0.78:
        return Chat((*_opening(rng), *exchanges(rng, rng.choice((1, 1, 2, 3, 4, 6)))))
    if kind < 0.88:
        return _with_tools(rng)
    if kind < 0.93:
        between = exchanges(rng, rng.randint(0, max(1, room // 60)))
        chat, _ = talk.remembered(rng, between)
        return Chat((*_opening(rng), *chat.turns), chat.tools)
    if kind < 0.97:
        return stories.told(rng)
    return numbers.sums_text(rng) if kind < 0.99 else about_hal.facts_text(rng)


def practice(rng: Random, drill: Drill) -> Chat:
    makers = [TASKS[task][0] for task in drill.weights]
    chosen = rng.choices(makers, tuple(drill.weights.values()), k=10)
    turns = [turn for maker in chosen for turn in draw(maker, rng, held_out=False).turns]
    return Chat((*_opening(rng), *turns[: 2 * rng.choice((1, 3, 6, 10))]))


def tools_text(tools: tuple[Tool, ...]) -> str:
    """How the chat template lists tools; kept equal to it by a test."""
    lines = [f"\n{tool.name}({', '.join(tool.parameters)}): {tool.description}" for tool in tools]
    return "Tools:" + "".join(lines)


def _rendered_turns(chat: Chat) -> list[Turn]:
    if not chat.tools:
        return list(chat.turns)
    return [Turn("system", tools_text(chat.tools)), *chat.turns]


def encode(
    document: Document, encoder: Encoder, written_out: bool = False
) -> tuple[list[int], list[bool]]:
    """Token ids, and for each token whether the model must learn to predict it."""
    ids, learn = [encoder.special("<|bos|>")], [False]
    if isinstance(document, RawText):
        body = encoder.encode_text(document.text)
        return ids + body + [encoder.special("<|end|>")], learn + [True] * (len(body) + 1)
    for turn in _rendered_turns(document):
        text = (turn.written_out if written_out else "") or turn.content
        body = [*encoder.encode_text(text), encoder.special("<|end|>")]
        ids += [encoder.special(f"<|{turn.role}|>"), *body]
        learn += [False] + [turn.role == "assistant"] * len(body)
    return ids, learn


def rows(
    rng: Random, encoder: Encoder, count: int, length: int, drill: Drill | None = None
) -> Iterator[tuple[list[int], list[bool]]]:
    """`count` rows of `length` tokens. A row begins with a document, and only its last is cut."""
    for _ in range(count):
        ids: list[int] = []
        learn: list[bool] = []
        while len(ids) < length:
            if drill is not None and rng.random() < drill.share:
                made: Document = practice(rng, drill)
            else:
                made = document(rng, length)
            written_out = drill is not None and drill.written_out
            more_ids, more_learn = encode(made, encoder, written_out)
            ids += more_ids
            learn += more_learn
        yield ids[:length], learn[:length]


def plain_texts(rng: Random, count: int) -> Iterator[str]:
    """Text for the tokenizer's training, without the special tokens."""
    for _ in range(count):
        made = document(rng, 256)
        if isinstance(made, RawText):
            yield made.text
        else:
            yield from (turn.content for turn in _rendered_turns(made))


def held_out(task: str, rng: Random, count: int) -> list[Example]:
    """Distinct held-out prompts of one task: `count`, or fewer where its grammar has no more."""
    maker, _ = TASKS[task]
    found: dict[str, Example] = {}
    for _ in range(10 * count):
        example = draw(maker, rng, held_out=True)
        found.setdefault("|".join(turn.content for turn in example.turns[:-1]), example)
        if len(found) == count:
            break
    return list(found.values())
