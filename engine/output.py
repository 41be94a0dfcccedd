"""What the engine's tokens mean to a reader: text without half characters, ended by stop strings.

Shared by the Python API and the server front.
"""

from __future__ import annotations

from dataclasses import dataclass

from hal.engine.request import FinishReason, Output, TokenLogprobs
from hal.engine.tokenizer import Tokenizer
from hal.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of one sequence; `finished_by_stop` is the stop string that ended it."""

    text: str
    finished_by_stop: str | None = None


class StopMatcher:
    """Finds the stop string that is complete first, however the text arrives.

    Where two are complete at the same character, the longer one wins. Only a suffix that is a
    proper prefix of a stop string is held back.
    """

    def __init__(self, stop_strings: tuple[str, ...], *, include_stop: bool = False) -> None:
        self._stop_strings = stop_strings
        self._include_stop = include_stop
        self._held = ""

    def feed(self, text: str) -> TextDelta:
        """The part of all text so far that is certain to be output."""
        if not self._stop_strings:
            return TextDelta(text)
        buffer = self._held + text
        found = [
            (buffer.find(stop) + len(stop), stop) for stop in self._stop_strings if stop in buffer
        ]
        if found:
            end, stop = min(found, key=lambda match: (match[0], -len(match[1])))
            self._held = ""
            return TextDelta(buffer[: end if self._include_stop else end - len(stop)], stop)
        cut = len(buffer) - self._num_undecided(buffer)
        self._held = buffer[cut:]
        return TextDelta(buffer[:cut])

    def flush(self) -> str:
        """The text ended: what was held back is ordinary text."""
        held, self._held = self._held, ""
        return held

    def _num_undecided(self, buffer: str) -> int:
        """Length of the longest suffix of `buffer` that begins some stop string."""
        longest = 0
        for stop in self._stop_strings:
            start = max(0, len(buffer) - len(stop) + 1)
            while (start := buffer.find(stop[0], start)) >= 0:
                if stop.startswith(buffer[start:]):
                    longest = max(longest, len(buffer) - start)
                    break
                start += 1
        return longest


class OutputProcessor:
    """Turns the Outputs of one sequence into text deltas.

    `continues_text`: True for a completion of a prompt, False for an answer to a chat.
    """

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, *, continues_text: bool = False
    ) -> None:
        self._stream = tokenizer.text_stream(
            skip_special_tokens=params.skip_special_tokens, continues_text=continues_text
        )
        self._matcher = StopMatcher(
            params.stop_strings, include_stop=params.include_stop_str_in_output
        )
        self._shows_stop_token = params.include_stop_str_in_output
        self._num_unmatched = params.min_tokens
        self._stop: str | None = None

    def process(self, output: Output) -> TextDelta:
        """The text that `output` adds. Once a stop string was found, nothing more comes.

        A stop token is the last of `output.token_ids` when the engine reports STOP; like a stop
        string it is part of the text only with include_stop_str_in_output.
        """
        if self._stop is not None:
            return TextDelta("", self._stop)
        token_ids = output.token_ids
        if output.finish_reason is FinishReason.STOP and not self._shows_stop_token:
            token_ids = token_ids[:-1]
        delta = self._feed(token_ids)
        if output.finish_reason is not None and delta.finished_by_stop is None:
            delta = self._finish(delta.text)
        self._stop = delta.finished_by_stop
        return delta

    def _feed(self, token_ids: tuple[int, ...]) -> TextDelta:
        # Stop strings count only after min_tokens tokens, as stop tokens do.
        free = token_ids[: self._num_unmatched]
        self._num_unmatched -= len(free)
        before = self._stream.feed(free)
        delta = self._matcher.feed(self._stream.feed(token_ids[len(free) :]))
        return TextDelta(before + delta.text, delta.finished_by_stop)

    def _finish(self, text: str) -> TextDelta:
        delta = self._matcher.feed(self._stream.flush())
        rest = "" if delta.finished_by_stop is not None else self._matcher.flush()
        return TextDelta(text + delta.text + rest, delta.finished_by_stop)


@dataclass(frozen=True, slots=True)
class LogprobText:
    """One token with its logprob: `data` is exact, `token` shows half characters as U+FFFD."""

    token: str
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The token chosen at one position, and the most likely ones in falling order."""

    chosen: LogprobText
    top: tuple[LogprobText, ...]


def describe_logprobs(tokenizer: Tokenizer, logprobs: TokenLogprobs) -> PositionLogprobs:
    """Spell out the engine's token ids."""
    pairs = zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
    return PositionLogprobs(
        chosen=_spell(tokenizer, logprobs.token_id, logprobs.logprob),
        top=tuple(_spell(tokenizer, token_id, logprob) for token_id, logprob in pairs),
    )


def _spell(tokenizer: Tokenizer, token_id: int, logprob: float) -> LogprobText:
    data = tokenizer.token_bytes(token_id)
    return LogprobText(data.decode("utf-8", "replace"), data, logprob)
