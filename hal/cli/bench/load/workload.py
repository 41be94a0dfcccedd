"""What to ask: prompts of a wanted length and shape, the same for the same seed.

Lengths are tokens of the server's tokenizer. Prompts are words, and how many tokens those make is
measured by asking the server (see probe.py), so no tokenizer is needed here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from hal.cli.bench.trace_file import Line, Lines

SIGMA = 1.0
"""Of the logarithm of ShareGPT-like lengths."""
LONGEST = 2048
SHORTEST = 4
_MARGIN_TOKENS = 8

_WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city community name"
).split()


class Workload(StrEnum):
    """Values of --workload."""

    SHAREGPT = "sharegpt"
    FIXED = "fixed"
    PREFIX = "prefix"
    TRACE = "trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of a prompt and its answer; of a ShareGPT-like workload, their means.

    prefix: of the prompt, shared by every num_prefixes-th request of a prefix workload
    """

    input: int
    output: int
    prefix: int = 0
    num_prefixes: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a prompt; equal seeds make equal text."""

    seed: str
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One request: the parts of its prompt, or its text or token ids where a trace has them.

    at_s: when a trace sent it, from its first request; None without a timestamp
    """

    parts: tuple[Part, ...] = ()
    text: str = ""
    token_ids: tuple[int, ...] = ()
    output_tokens: int
    at_s: float | None = None

    @property
    def input_tokens(self) -> int:
        return sum(part.num_tokens for part in self.parts)


@dataclass(frozen=True, slots=True)
class TextSize:
    """How many tokens the server makes of a prompt: some for any (template, BOS), some per word."""

    fixed: float = 0.0
    per_word: float = 1.0

    def num_words(self, num_tokens: int) -> int:
        return max(1, round((num_tokens - self.fixed) / self.per_word))


def prompt_of(wanted: Wanted, size: TextSize) -> str | tuple[int, ...]:
    """Words for all parts; what the server adds to every prompt comes off the last part."""
    if wanted.text or wanted.token_ids:
        return wanted.text or wanted.token_ids
    *shared, last = wanted.parts
    free = TextSize(0.0, size.per_word)
    texts = [words(part.seed, free.num_words(part.num_tokens)) for part in shared]
    return " ".join([*texts, words(last.seed, size.num_words(last.num_tokens))])


def words(seed: str, count: int) -> str:
    return " ".join(random.Random(seed).choices(_WORDS, k=count))


def synthetic(kind: Workload, lengths: Lengths, count: int, seed: str) -> list[Wanted]:
    """`count` requests of a workload that is not a trace."""
    rng = random.Random(f"lengths {seed}")
    if kind is Workload.SHAREGPT:
        return [
            _unique(f"{seed} {i}", _lognormal(rng, lengths.input), _lognormal(rng, lengths.output))
            for i in range(count)
        ]
    if kind is Workload.FIXED:
        return [_unique(f"{seed} {i}", lengths.input, lengths.output) for i in range(count)]
    assert kind is Workload.PREFIX, kind
    return [_with_prefix(i, lengths, seed) for i in range(count)]


def _unique(seed: str, num_input: int, num_output: int) -> Wanted:
    return Wanted(parts=(Part(seed, num_input),), output_tokens=num_output)


def _with_prefix(index: int, lengths: Lengths, seed: str) -> Wanted:
    prefix = Part(f"{seed} prefix {index % lengths.num_prefixes}", lengths.prefix)
    own = Part(f"{seed} {index}", lengths.input - lengths.prefix)
    return Wanted(parts=(prefix, own), output_tokens=lengths.output)


def _lognormal(rng: random.Random, mean: int) -> int:
    drawn = rng.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA)
    return min(max(round(drawn), SHORTEST), LONGEST)


def from_trace(lines: Lines, output_tokens: int) -> list[Wanted]:
    """A request for each line: `prompt`, `prompt_token_ids`, or `input_length`, maybe `hash_ids`.

    Raises ConfigError for a line with none. `output_length` or `max_tokens` say how long the
    answer is, else it is `output_tokens`; `timestamp` is in seconds from any start, and where all
    have one, the requests are in its order.
    """
    found = list(_from_lines(lines, output_tokens))
    times = [wanted.at_s for wanted in found if wanted.at_s is not None]
    if len(times) < len(found):
        return found
    first = min(times)
    moved = [replace(one, at_s=at_s - first) for one, at_s in zip(found, times, strict=True)]
    return sorted(moved, key=lambda wanted: wanted.at_s or 0.0)


def _from_lines(lines: Lines, output_tokens: int) -> Iterator[Wanted]:
    for line in lines:
        given = next((n for n in ("output_length", "max_tokens") if n in line.fields), "")
        length = max(1, int(line.number_of(given))) if given else output_tokens
        at_s = line.number_of("timestamp") if "timestamp" in line.fields else None
        text = line.fields.get("prompt")
        if isinstance(text, str) and text:
            yield Wanted(text=text, output_tokens=length, at_s=at_s)
        elif "prompt_token_ids" in line.fields:
            ids = tuple(line.ids_of("prompt_token_ids"))
            yield Wanted(token_ids=ids, output_tokens=length, at_s=at_s)
        elif "input_length" in line.fields:
            yield Wanted(parts=_parts(line), output_tokens=length, at_s=at_s)
        else:
            raise line.wrong("has no text 'prompt', no 'prompt_token_ids' and no 'input_length'")


def _parts(line: Line) -> tuple[Part, ...]:
    """One for each hash id, as even as it goes: prompts that share ids share text."""
    length = max(1, int(line.number_of("input_length")))
    if "hash_ids" not in line.fields:
        return (Part(f"line {line.number}", length),)
    hashes = line.ids_of("hash_ids")[:length] or [line.number]
    share = length // len(hashes)
    sizes = [share] * (len(hashes) - 1) + [length - share * (len(hashes) - 1)]
    return tuple(Part(f"hash {h}", size) for h, size in zip(hashes, sizes, strict=True))


def fitted(wanted: Wanted, max_model_len: int) -> Wanted:
    """The request itself if prompt and answer fit; else shortened, the answer to half at least.

    Lengths in words are not exact, so a twentieth of the context is left free.
    """
    room = max_model_len - max_model_len // 20 - _MARGIN_TOKENS
    if not wanted.parts or wanted.input_tokens + wanted.output_tokens <= room:
        return wanted
    output = min(wanted.output_tokens, max(room // 2, room - wanted.input_tokens))
    left, parts = room - output, []
    for part in wanted.parts:
        if left > 0:
            parts.append(replace(part, num_tokens=min(part.num_tokens, left)))
        left -= part.num_tokens
    return replace(wanted, parts=tuple(parts), output_tokens=output)
