"""The values a corpus is made of, and the rule that keeps held-out prompts out of training."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, slots=True)
class Tool:
    """A function offered to the model. `parameters` are argument names, in order."""

    name: str
    description: str
    parameters: tuple[str, ...]

    def openai(self) -> dict[str, object]:
        """The same tool as an OpenAI chat request carries it."""
        properties = {name: {"type": "string"} for name in self.parameters}
        schema = {"type": "object", "properties": properties, "required": list(self.parameters)}
        function = {"name": self.name, "description": self.description, "parameters": schema}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Turn:
    """`written_out` is the longer form of a bare result, which a small model gets right."""

    role: str
    content: str
    written_out: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """One exchange that ends with the assistant's turn. `key` decides whether it is held out."""

    task: str
    key: str
    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()

    @property
    def answer(self) -> str:
        """What the finished model should say."""
        return self.turns[-1].written_out or self.turns[-1].content


@dataclass(frozen=True, slots=True)
class Chat:
    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class RawText:
    """Text outside any chat. Loss counts from character `learn_from` on."""

    text: str
    learn_from: int = 0


Maker = Callable[[Random], Example]


def exchange(task: str, user: str, answer: str, key: str | None = None) -> Example:
    return Example(task, key or user, (Turn("user", user), Turn("assistant", answer)))


def is_held_out(task: str, key: str) -> bool:
    return zlib.crc32(f"{task}|{key}".encode()) % HELD_OUT_ONE_IN == 0


def draw(maker: Maker, rng: Random, held_out: bool) -> Example:
    """The next example of `maker` on the asked side of the split."""
    while True:
        example = maker(rng)
        if is_held_out(example.task, example.key) == held_out:
            return example


def compact_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
