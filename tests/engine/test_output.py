"""Streamed text equals the text decoded at once, for every way of cutting tokens into steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import sentencepiece_tokenizer, train_tokenizer

from hal.engine.output import OutputProcessor, StopMatcher, describe_logprobs
from hal.engine.request import FinishReason, Output, TokenLogprobs
from hal.engine.text_stream import TextStream
from hal.engine.tokenizer import Tokenizer
from hal.sampling_params import SamplingParams

BYTE_LEVEL = Tokenizer(train_tokenizer(), {"eos_token": "<|im_end|>"}, "byte level")
SENTENCEPIECE = Tokenizer(sentencepiece_tokenizer(), {"eos_token": "</s>"}, "sentencepiece")
TOKENIZERS = [BYTE_LEVEL, SENTENCEPIECE]
EOS = BYTE_LEVEL.eos_token_id
assert EOS is not None


def _outputs(
    token_ids: Sequence[int], cuts: Sequence[int], finish: FinishReason = FinishReason.LENGTH
) -> Iterator[Output]:
    """The ids in steps of the given sizes (the rest in one), the last of which finishes."""
    rest = tuple(token_ids)
    for cut in cuts:
        if cut < len(rest):
            yield Output(request_id="r", index=0, token_ids=rest[:cut])
            rest = rest[cut:]
    yield Output(request_id="r", index=0, token_ids=rest, finish_reason=finish)


def _deltas(
    processor: OutputProcessor,
    token_ids: Sequence[int],
    cuts: Sequence[int] = (),
    finish: FinishReason = FinishReason.LENGTH,
) -> list[str]:
    return [processor.process(output).text for output in _outputs(token_ids, cuts, finish)]


CUTS = st.lists(st.integers(0, 4), max_size=40)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=st.text(max_size=40), cuts=CUTS)
def test_deltas_of_any_text_add_up(tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)

    deltas = _deltas(OutputProcessor(tokenizer, SamplingParams()), token_ids, cuts)

    assert "".join(deltas) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(token_ids=st.lists(st.integers(0, 360), max_size=40), cuts=CUTS, skip=st.booleans())
def test_deltas_of_any_tokens_add_up(
    tokenizer: Tokenizer, token_ids: list[int], cuts: list[int], skip: bool
) -> None:
    params = SamplingParams(skip_special_tokens=skip)

    deltas = _deltas(OutputProcessor(tokenizer, params), token_ids, cuts)

    assert "".join(deltas) == tokenizer.decode(token_ids, skip_special_tokens=skip)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=st.text(st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), max_size=12))
def test_no_delta_ever_shows_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)

    deltas = _deltas(OutputProcessor(tokenizer, SamplingParams()), token_ids, [1] * len(token_ids))

    # U+FFFD may only be there because the text itself has it.
    assert "".join(deltas).count("\ufffd") == text.count("\ufffd")
    for delta in deltas:
        assert set(delta) <= set(text)


def test_an_unfinished_character_at_the_end_becomes_one_replacement() -> None:
    token_ids = [BYTE_LEVEL.token_id(char) for char in ("ð", "Ł", "Ļ")]  # three of four bytes
    processor = OutputProcessor(BYTE_LEVEL, SamplingParams())

    deltas = _deltas(processor, [i for i in token_ids if i is not None], [1, 1])

    assert deltas == ["", "", "\ufffd"]


def test_each_token_is_decoded_once() -> None:
    calls: list[int] = []

    def counted(token_id: int) -> bytes:
        calls.append(token_id)
        return BYTE_LEVEL.token_bytes(token_id)

    stream = TextStream(counted, skipped_ids=frozenset(), strip_start=0)
    token_ids = BYTE_LEVEL.encode("a long text " * 50)
    for token_id in token_ids:
        stream.feed([token_id])

    assert calls == token_ids


STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


def _first_complete(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """The specification: read character by character, the longest stop that ends here."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return end, max(complete, key=len)
    return None


@given(
    text=st.text("abcd", max_size=30),
    stops=STOPS,
    cuts=st.lists(st.integers(0, 5), max_size=30),
    include=st.booleans(),
)
def test_stop_strings_do_not_depend_on_chunks(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    matcher = StopMatcher(tuple(stops), include_stop=include)
    shown, found, rest = "", None, text
    for cut in [*cuts, len(text)]:
        piece, rest = rest[:cut], rest[cut:]
        delta = matcher.feed(piece)
        shown += delta.text
        found = delta.finished_by_stop
        if found is not None:
            break
        held = len(text) - len(rest) - len(shown)
        suffix = text[len(shown) : len(shown) + held]
        # What is held back could still become a stop string, and nothing else is held.
        assert held == 0 or any(stop.startswith(suffix) and stop != suffix for stop in stops)
    else:
        shown += matcher.flush()

    expected = _first_complete(text, stops)
    if expected is None:
        assert (shown, found) == (text, None)
    else:
        end, stop = expected
        assert found == stop
        assert shown == text[: end if include else end - len(stop)]


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    processor = OutputProcessor(BYTE_LEVEL, SamplingParams(stop=["END", "\n\n"]))
    token_ids = [BYTE_LEVEL.encode(char)[0] for char in "an ENtity ENDless"]

    results = [processor.process(output) for output in _outputs(token_ids, [1] * 20)]

    assert "".join(result.text for result in results) == "an ENtity "
    assert results[-1].finished_by_stop == "END"
    assert [result.text for result in results[:6]] == ["a", "n", " ", "", "", "ENt"]


def test_after_a_stop_string_nothing_more_comes() -> None:
    processor = OutputProcessor(BYTE_LEVEL, SamplingParams(stop="b"))
    token_ids = [BYTE_LEVEL.encode(char)[0] for char in "abab"]

    results = [processor.process(output) for output in _outputs(token_ids, [1, 1, 1])]

    assert [result.text for result in results] == ["a", "", "", ""]
    assert [result.finished_by_stop for result in results] == [None, "b", "b", "b"]


def test_held_text_is_shown_when_the_sequence_ends() -> None:
    processor = OutputProcessor(BYTE_LEVEL, SamplingParams(stop="xyz"))

    assert _deltas(processor, BYTE_LEVEL.encode("axy"), [1, 1]) == ["a", "", "xy"]


def test_a_stop_string_may_be_completed_by_the_replacement_character() -> None:
    half = [i for i in (BYTE_LEVEL.token_id("Ã"),) if i is not None]
    processor = OutputProcessor(BYTE_LEVEL, SamplingParams(stop="\ufffd"))

    (output,) = _outputs([*BYTE_LEVEL.encode("a"), *half], [])
    delta = processor.process(output)

    assert (delta.text, delta.finished_by_stop) == ("a", "\ufffd")


def test_stop_strings_count_only_after_min_tokens() -> None:
    params = SamplingParams(stop="b", min_tokens=3)
    token_ids = [BYTE_LEVEL.encode(char)[0] for char in "abbab"]

    for cuts in ([], [1] * 5, [2, 2]):
        processor = OutputProcessor(BYTE_LEVEL, params)
        assert "".join(_deltas(processor, token_ids, cuts)) == "abba"


@pytest.mark.parametrize(("include", "text"), [(False, "hi"), (True, "hi!")])
def test_a_stop_token_is_text_only_on_request(include: bool, text: str) -> None:
    params = SamplingParams(include_stop_str_in_output=include)
    token_ids = [BYTE_LEVEL.encode(char)[0] for char in "hi!"]

    deltas = _deltas(OutputProcessor(BYTE_LEVEL, params), token_ids, [1, 1], FinishReason.STOP)

    assert "".join(deltas) == text


def test_special_tokens_are_shown_only_on_request() -> None:
    token_ids = BYTE_LEVEL.encode("a<|im_start|>b<|im_end|>")
    shown = OutputProcessor(BYTE_LEVEL, SamplingParams(skip_special_tokens=False))
    hidden = OutputProcessor(BYTE_LEVEL, SamplingParams())

    assert "".join(_deltas(shown, token_ids, [], FinishReason.STOP)) == "a<|im_start|>b"
    assert "".join(_deltas(hidden, token_ids, [], FinishReason.STOP)) == "ab"


@pytest.mark.parametrize(("continues", "text"), [(False, "the end"), (True, " the end")])
def test_a_completion_keeps_its_leading_space(continues: bool, text: str) -> None:
    token_ids = SENTENCEPIECE.encode("the end", add_special_tokens=False)
    processor = OutputProcessor(SENTENCEPIECE, SamplingParams(), continues_text=continues)

    assert "".join(_deltas(processor, token_ids, [1] * 9)) == text


def test_logprobs_are_spelled_with_exact_bytes() -> None:
    half = BYTE_LEVEL.token_id("Ã")
    whole = BYTE_LEVEL.encode("a")[0]
    assert half is not None
    logprobs = TokenLogprobs(
        token_id=half, logprob=-1.5, rank=2, top_ids=(whole, half), top_logprobs=(-0.5, -1.5)
    )

    position = describe_logprobs(BYTE_LEVEL, logprobs)

    assert (position.chosen.token, position.chosen.data) == ("\ufffd", b"\xc3")
    assert [(top.token, top.data, top.logprob) for top in position.top] == [
        ("a", b"a", -0.5),
        ("\ufffd", b"\xc3", -1.5),
    ]
