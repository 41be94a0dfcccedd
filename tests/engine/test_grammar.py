"""Guided decoding: what is compiled is followed, what cannot be followed is refused by name."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hal.tiny
from hal import LLM, GuidedDecodingParams, SamplingParams
from hal.engine.grammar import Grammar, Grammars, Matcher, PendingMasks
from hal.engine.grammar_worker import GrammarWorker
from hal.engine.request import FinishReason
from hal.engine.tokenizer import Tokenizer
from hal.errors import GrammarError, RequestError, UnsupportedError

FOLDER = Path(hal.tiny.__file__).parent
VOCAB_SIZE = 2048
NUM_SCHEMAS = 120


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    found = Grammars(FOLDER, VOCAB_SIZE)
    yield found
    found.close()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("hal-tiny", device="cpu", max_model_len=512, max_num_seqs=32) as llm:
        yield llm


def guided(llm: LLM, params: list[GuidedDecodingParams]) -> list[str | None]:
    """One sampled answer for each; None where the token limit cut it."""
    everyone = [
        SamplingParams(guided_decoding=each, temperature=1.5, seed=i, max_tokens=200)
        for i, each in enumerate(params)
    ]
    done = [result.outputs[0] for result in llm.generate(["Say it: "] * len(params), everyone)]
    return [out.text if out.finish_reason == FinishReason.STOP else None for out in done]


def can_say(matcher: Matcher, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the masks let this text come, and the end after it."""
    words = np.zeros(matcher.num_words, np.int32)
    eos = tokenizer.eos_token_id
    assert eos is not None
    for token_id in [*tokenizer.encode(text, add_special_tokens=False), eos]:
        matcher.fill(words)
        if not words[token_id // 32] >> (token_id % 32) & 1:
            return False
        matcher.consume(token_id)
    return True


@pytest.mark.parametrize(
    ("params", "pattern"),
    [
        (GuidedDecodingParams(regex="[a-c]{3,5}-[0-9]{2}"), "[a-c]{3,5}-[0-9]{2}"),
        (GuidedDecodingParams(choice=["yes", "no", "<|end|>"]), r"yes|no|<\|end\|>"),
        (GuidedDecodingParams(grammar='start: "a" b+\nb: "x" | "y"'), "a[xy]+"),
        (GuidedDecodingParams(grammar='root ::= "hi" [0-9]'), "hi[0-9]"),
    ],
    ids=lambda value: value.kind if isinstance(value, GuidedDecodingParams) else "",
)
def test_every_kind_is_followed(llm: LLM, params: GuidedDecodingParams, pattern: str) -> None:
    answers = guided(llm, [params] * 12)
    whole = [answer for answer in answers if answer is not None]
    assert whole and all(re.fullmatch(pattern, answer) for answer in whole)


@pytest.mark.parametrize(
    ("params", "answer"),
    [
        (GuidedDecodingParams(regex="a+", reasoning_end="</think>"), "aaa"),
        (GuidedDecodingParams(choice=["yes", "no"], reasoning_end="</think>"), "no"),
        (GuidedDecodingParams(grammar='start: "b" start?', reasoning_end="</think>"), "bb"),
        (GuidedDecodingParams(json_object=True, reasoning_end="</think>"), '{"a": [1]}'),
        (GuidedDecodingParams(json={"type": "integer"}, reasoning_end="</think>"), "12"),
    ],
    ids=lambda value: value.kind if isinstance(value, GuidedDecodingParams) else "",
)
def test_a_grammar_begins_behind_the_reasoning(
    grammars: Grammars, tokenizer: Tokenizer, params: GuidedDecodingParams, answer: str
) -> None:
    thought = 'It is {"x": </thin\n 3.</think>'
    marked = replace(params, reasoning_start="<think>")
    for each, can_leave_out in ((params, False), (marked, True)):
        start = each.reasoning_start or ""
        grammar = grammars.compiled(each)

        def says(text: str, grammar: Grammar = grammar) -> bool:
            return can_say(grammar.matcher(), tokenizer, text)

        assert says(start + thought + answer) and says(f"{start}{thought}\n\n{answer}")
        assert says(answer) == can_leave_out
        assert not says(start + thought) and not says(start + thought + "?")


def test_a_model_thinks_before_a_guided_answer(llm: LLM) -> None:
    params = GuidedDecodingParams(regex="[0-9]{3}", reasoning_end=".")
    whole = [answer for answer in guided(llm, [params] * 8) if answer is not None]
    assert whole and all(re.fullmatch(r"[^.]+\.\n*[0-9]{3}", answer) for answer in whole)


def test_json_object_is_an_object(llm: LLM) -> None:
    answers = guided(llm, [GuidedDecodingParams(json_object=True)] * 8)
    whole = [json.loads(answer) for answer in answers if answer is not None]
    assert whole and all(isinstance(value, dict) for value in whole)


def test_sampled_answers_of_many_schemas_are_valid(llm: LLM) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the validator is the oracle here")
    rng = random.Random(7)
    schemas = [random_schema(rng, depth=2) for _ in range(NUM_SCHEMAS)]
    schemas[::4] = [behind_a_reference(schema) for schema in schemas[::4]]
    answers = guided(llm, [GuidedDecodingParams(json=schema) for schema in schemas])
    whole = [(s, json.loads(a)) for s, a in zip(schemas, answers, strict=True) if a is not None]
    assert len(whole) > NUM_SCHEMAS // 2, "most end by themselves"
    for schema, value in whole:
        jsonschema.validate(value, schema)


def random_schema(rng: random.Random, depth: int) -> dict[str, object]:
    leaves: list[dict[str, object]] = [
        {"type": "string", "minLength": 1, "maxLength": rng.randint(1, 9)},
        {"type": "string", "pattern": "^[a-f]{2,4}$"},
        {"type": "string", "format": "date"},
        {"type": "integer", "minimum": -5, "maximum": rng.randint(0, 500)},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 9.5},
        {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
        {"enum": ["red", 3, None, {"a": [1]}]},
        {"const": "fixed"},
        {"type": ["boolean", "null"]},
    ]
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(leaves)
    kind = rng.choice(("object", "array", "anyOf", "tuple"))
    inner = random_schema(rng, depth - 1)
    match kind:
        case "object":
            names = rng.sample(["name", "size", "tags", "next"], k=rng.randint(1, 3))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth - 1) for name in names},
                "required": names[: rng.randint(0, len(names))],
                "additionalProperties": False,
            }
        case "array":
            return {"type": "array", "items": inner, "minItems": 1, "maxItems": 3}
        case "tuple":
            return {"type": "array", "prefixItems": [inner, rng.choice(leaves)], "items": False}
        case _:
            return {"anyOf": [inner, rng.choice(leaves)]}


def behind_a_reference(schema: dict[str, object]) -> dict[str, object]:
    return {
        "$defs": {"it": schema},
        "type": "object",
        "properties": {"it": {"$ref": "#/$defs/it"}},
        "required": ["it"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("keyword", "schema", "wrong"),
    [
        ("not", {"not": {"type": "integer"}}, 1),
        ("uniqueItems", {"type": "array", "uniqueItems": True}, [1, 1]),
        ("contains", {"type": "array", "contains": {"const": 7}}, [1]),
        ("propertyNames", {"type": "object", "propertyNames": {"maxLength": 1}}, {"ab": 1}),
        ("if", {"if": {"type": "integer"}, "then": {"const": 2}}, 1),
        ("dependentRequired", {"type": "object", "dependentRequired": {"a": ["b"]}}, {"a": 1}),
        ("dependentSchemas", {"type": "object", "dependentSchemas": {"a": False}}, {"a": 1}),
        ("unevaluatedProperties", {"type": "object", "unevaluatedProperties": False}, {"a": 1}),
        ("unevaluatedItems", {"type": "array", "unevaluatedItems": False}, [1]),
        ("minProperties", {"type": "object", "minProperties": 1}, {}),
        ("maxProperties", {"type": "object", "maxProperties": 0}, {"a": 1}),
        ("oneOf", {"oneOf": [{"type": "integer"}, {"const": 1}]}, 1),
        ("allOf", {"allOf": [{"minimum": 3}, {"type": "integer"}]}, 1),
        ("multipleOf", {"type": "integer", "multipleOf": 2}, 1),
        ("minLength", {"type": "string", "minLength": 3}, "ab"),
        ("exclusiveMaximum", {"type": "number", "exclusiveMaximum": 2}, 2),
        ("patternProperties", {"patternProperties": {"^a": {"type": "null"}}}, {"ab": 1}),
        ("format", {"type": "string", "format": "ipv4"}, "1.2.3"),
    ],
)
def test_a_keyword_is_kept_or_refused_by_name(
    grammars: Grammars, tokenizer: Tokenizer, keyword: str, schema: object, wrong: object
) -> None:
    """Never accepted and ignored: an answer that breaks it cannot be said."""
    try:
        grammar = grammars.compiled(GuidedDecodingParams(json=json.dumps(schema)))
    except GrammarError as error:
        assert keyword in error.message
    else:
        text = json.dumps(wrong, separators=(",", ":"))
        assert not can_say(grammar.matcher(), tokenizer, text)


def test_a_schema_cannot_turn_the_checks_off(grammars: Grammars) -> None:
    schema = {"x-guidance": {"lenient": True}, "not": {"type": "null"}}
    with pytest.raises(GrammarError, match="'not'"):
        grammars.compiled(GuidedDecodingParams(json=schema))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "a(?=b)"}, "look-ahead"),
        ({"grammar": "start: foo"}, "unknown name"),
        ({"grammar": "root ::= ("}, "."),
        ({"json": {"type": "strin"}}, "strin"),
        ({"json": {"$ref": "http://127.0.0.1/x"}}, "127.0.0.1"),
        ({"json": {"type": "integer", "minimum": 2, "maximum": 1}}, "minimum"),
        ({"json_object": True, "whitespace_pattern": "("}, "."),
    ],
)
def test_what_is_wrong_is_named(grammars: Grammars, params: dict[str, object], says: str) -> None:
    with pytest.raises(GrammarError, match=says):
        grammars.compiled(GuidedDecodingParams(**params))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "exactly one of .* got none"),
        ({"regex": "a", "json_object": True}, "got regex and json_object"),
        ({"json": "{"}, "not JSON"),
        ({"json": [1]}, "is an object; got list"),
        ({"json": {}, "json_schema": {}}, "the same"),
        ({"choice": []}, "non-empty"),
        ({"choice": ["a", ""]}, "non-empty"),
        ({"choice": ["a"] * 5000}, "5000 texts"),
        ({"regex": "a" * 300_000}, "300000 characters"),
        ({"regex": "a", "whitespace_pattern": " "}, "json and json_object only"),
        ({"regex": "a", "reasoning_start": "<a>"}, "needs a reasoning_end"),
        ({"regex": "a", "reasoning_end": ""}, "neither may be empty"),
        ({"regex": "a", "reasoning_end": 3}, "must be text"),
    ],
)
def test_params_are_checked(params: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        GuidedDecodingParams(**params)
    assert caught.value.param == "guided_decoding"


def test_a_mapping_of_fields_will_do() -> None:
    """As in a line of JSON."""
    made = SamplingParams(guided_decoding={"regex": "a+"})  # type: ignore[arg-type]
    assert made.guided_decoding == GuidedDecodingParams(regex="a+")
    for wrong, says in (({"xml": 1}, "no 'xml'; it has json"), ("a+", "got str")):
        with pytest.raises(RequestError, match=says):
            SamplingParams(guided_decoding=wrong)  # type: ignore[arg-type]


def test_what_would_keep_the_end_away_is_refused() -> None:
    yes = GuidedDecodingParams(choice=["yes"])
    for settings in ({"ignore_eos": True}, {"min_tokens": 3}):
        with pytest.raises(RequestError, match="the grammar decides") as caught:
            SamplingParams(guided_decoding=yes, **settings)
        assert caught.value.param in settings


def test_equal_grammars_are_compiled_once_and_the_cache_has_a_budget() -> None:
    grammars = Grammars(FOLDER, VOCAB_SIZE, cache_bytes=1_000_000)
    try:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        first = grammars.compiled(GuidedDecodingParams(json=schema))
        assert grammars.compiled(GuidedDecodingParams(json_schema=json.dumps(schema))) is first
        for i in range(20):
            grammars.compiled(GuidedDecodingParams(json={**schema, "required": ["a"] * i}))
            assert 0 < grammars.num_cached_bytes <= 1_000_000
        assert grammars.compiled(GuidedDecodingParams(json=schema)) is not first, "it was dropped"
    finally:
        grammars.close()


def test_a_slow_or_large_grammar_kills_the_worker_only() -> None:
    letters = GuidedDecodingParams(regex="[a-z]+")
    for worker, says in (
        (GrammarWorker(FOLDER, timeout_s=1e-6), r"longer than 1e-06 s"),
        (GrammarWorker(FOLDER, max_bytes=1), "more than 0 MiB"),
    ):
        try:
            pids = set()
            for _ in range(2):
                with pytest.raises(GrammarError, match=says):
                    worker.compile(GuidedDecodingParams(regex="(a|b|c){1,900}" * 400))
                pids.add(worker.pid)
            assert pids == {None}, "it is gone, and the next grammar started another"
        finally:
            worker.close()
    worker = GrammarWorker(FOLDER)
    try:
        assert worker.compile(letters) > 0
        pid = worker.pid
        assert worker.compile(letters) > 0 and worker.pid == pid
    finally:
        worker.close()


def test_grammar_bombs_are_refused_or_bounded(grammars: Grammars) -> None:
    deep: object = {"type": "integer"}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    bombs: list[dict[str, object]] = [
        {"regex": "(a{1,3000}){1,3000}b"},
        {"regex": "((((a|b)*c){1,200}){1,200}){1,200}"},
        {"regex": "(" * 2000 + "a" + ")" * 2000},
        {"regex": "|".join(f"{'x' * i}.*{'y' * i}" for i in range(300))},
        {"json": deep},
        {"json": {"type": "array", "minItems": 10**6, "items": {"type": "integer"}}},
        {"json": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}},
        {"json": {"type": "string", "maxLength": 10**7}},
        {"json": {"enum": list(range(20_000))}},
        {"grammar": "start: a\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(2000))},
        {"grammar": "start: start start | "},
    ]
    for bomb in bombs:
        try:
            compiled = grammars.compiled(GuidedDecodingParams(**bomb))
        except RequestError as error:
            assert len(error.message) < 1000
        else:
            PendingMasks(np.zeros(1, np.int32), [compiled.matcher()]).words()


def test_a_matcher_resumes_where_a_preempted_answer_was(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    grammar = grammars.compiled(GuidedDecodingParams(regex="abc[0-9]{3}"))
    begun = grammar.matcher(tokenizer.encode("abc12", add_special_tokens=False))
    assert can_say(begun, tokenizer, "7")
    assert not can_say(grammar.matcher(), tokenizer, "7")


def test_a_grammar_that_cannot_be_followed_ends_its_own_request(llm: LLM) -> None:
    grammars = llm._open().engine._grammars
    assert grammars is not None
    lost = GuidedDecodingParams(regex="[0-9]{40}")
    compiled = grammars.compiled(lost).compiled
    compiled.consume_token(0)  # a control token: it is in its error state from now on
    assert compiled.is_error()
    with pytest.raises(Exception, match="HAL-E430: .*guided decoding cannot go on"):
        guided(llm, [lost])
    assert guided(llm, [GuidedDecodingParams(choice=["on"])]) == ["on"], "others do"
    (again,) = guided(llm, [lost])
    assert again is not None and re.fullmatch("[0-9]{40}", again), "it was compiled anew"


def test_without_llguidance_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'hal-runtime\[guided\]'"):
        Grammars(FOLDER, VOCAB_SIZE).compiled(GuidedDecodingParams(choice=["yes"]))
