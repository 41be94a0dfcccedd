"""The corpus of hal-tiny: true answers, nothing held out leaks, tokens as the template has them."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SHIPPED = TOOLS.parent / "hal" / "tiny"
SAMPLES = 400


def _module(name: str) -> Any:
    if str(TOOLS) not in sys.path:
        sys.path.insert(0, str(TOOLS))
    return import_module(f"tiny_corpus.{name}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder made from a small sample of the corpus."""
    tokenizer = _module("tokenizer")
    texts = _module("mixture").plain_texts(Random(0), SAMPLES)
    made = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_tokenizer(tokenizer.train_tokenizer(texts, 700), made, 1024)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Any:
    return _module("tokenizer").TinyEncoder(tokenizer.backend_tokenizer)


def _all_texts(count: int) -> list[str]:
    return list(_module("mixture").plain_texts(Random(7), count))


def test_no_held_out_sum_occurs_in_training_in_either_order() -> None:
    document, numbers = _module("document"), _module("numbers")
    pattern = re.compile(r"\b(\d+) ?\+ ?(\d+)(?: ?=|\b)")
    seen = 0
    for text in _all_texts(6 * SAMPLES):
        for match in pattern.finditer(text):
            a, b = int(match[1]), int(match[2])
            if a < 100 and b < 100:
                seen += 1
                assert not document.is_held_out("addition", numbers.pair_key(a, b)), text
    assert seen > SAMPLES
    assert numbers.pair_key(17, 42) == numbers.pair_key(42, 17)


def test_every_written_sum_and_difference_is_true() -> None:
    pattern = re.compile(r"(\d+) ?([+-]) ?(\d+) ?= ?(-?\d+)")
    found = [match for text in _all_texts(4 * SAMPLES) for match in pattern.finditer(text)]
    assert {match[2] for match in found} == {"+", "-"}
    for match in found:
        a, b = int(match[1]), int(match[3])
        assert int(match[4]) == (a + b if match[2] == "+" else a - b), match[0]


def test_sorted_lists_hold_the_numbers_asked_for() -> None:
    numbers, rng = _module("numbers"), Random(3)
    for _ in range(SAMPLES):
        example = numbers.sorting(rng)
        down = "largest to" in example.turns[0].content or "descending" in example.turns[0].content
        asked = [int(number) for number in re.findall(r"\d+", example.turns[0].content)]
        assert [int(n) for n in example.answer.split(", ")] == sorted(asked, reverse=down)


def test_extracted_values_stand_in_the_sentence() -> None:
    structured, rng = _module("structured"), Random(3)
    for _ in range(SAMPLES):
        example = structured.extraction(rng)
        record = json.loads(example.answer)
        assert record
        if "JSON object with" not in example.turns[0].content:
            continue
        if "from:" in example.turns[0].content:
            assert all(str(value) in example.turns[0].content for value in record.values())


def test_held_out_prompts_are_distinct_and_on_their_side() -> None:
    document, mixture = _module("document"), _module("mixture")
    for task in mixture.TASKS:
        examples = mixture.held_out(task, Random(5), 20)
        assert len({example.turns for example in examples}) == 20
        assert all(document.is_held_out(example.task, example.key) for example in examples)


def test_documents_are_encoded_as_the_chat_template_renders_them(
    tokenizer: Any, encoder: Any
) -> None:
    mixture, chat_type = _module("mixture"), _module("document").Chat
    rng, with_tools = Random(9), 0
    for _ in range(SAMPLES // 4):
        made = mixture.document(rng, 256)
        if not isinstance(made, chat_type):
            continue
        with_tools += bool(made.tools)
        messages = [{"role": turn.role, "content": turn.content} for turn in made.turns]
        tools = [tool.openai() for tool in made.tools] or None
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        ids, _ = mixture.encode(made, encoder)
        assert tokenizer(text, add_special_tokens=False).input_ids == ids
    assert with_tools


def test_template_writes_tool_calls_as_the_model_does(tokenizer: Any) -> None:
    structured = _module("structured")
    arguments = {"city": "Oslo"}
    call = {"type": "function", "function": {"name": "get_time", "arguments": arguments}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "time in Oslo"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|bos|><|system|>Be brief.<|end|><|user|>time in Oslo<|end|><|assistant|>"
        + structured.tool_call_text("get_time", arguments)
        + "<|end|><|assistant|>"
    )


def test_loss_counts_for_answers_only(tokenizer: Any, encoder: Any) -> None:
    document, mixture = _module("document"), _module("mixture")
    turns = (document.Turn("user", "1+2="), document.Turn("assistant", "1 + 2 = 3"))
    ids, learn = mixture.encode(document.Chat(turns), encoder)
    learned = [token for token, wanted in zip(ids, learn, strict=True) if wanted]
    assert tokenizer.decode(learned) == "1 + 2 = 3<|end|>"


def test_bare_results_are_taught_written_out_when_asked(tokenizer: Any, encoder: Any) -> None:
    document, mixture = _module("document"), _module("mixture")
    answer = document.Turn("assistant", "42", written_out="17 + 25 = 42")
    chat = document.Chat((document.Turn("user", "17+25? Only the number."), answer))
    for written_out, end in (
        (False, "number.<|end|><|assistant|>42<|end|>"),
        (True, "25 = 42<|end|>"),
    ):
        ids, _ = mixture.encode(chat, encoder, written_out)
        assert tokenizer.decode(ids).endswith(end)


def test_rows_are_full_and_depend_on_the_seed_alone(encoder: Any) -> None:
    mixture = _module("mixture")
    first, again, other = (
        list(mixture.rows(Random(seed), encoder, 3, 200)) for seed in ("a", "a", "b")
    )
    assert first == again != other
    assert all(len(ids) == len(learn) == 200 for ids, learn in first)
    assert all(ids[0] == encoder.special("<|bos|>") for ids, _ in first)


@pytest.mark.parametrize("text", ["2026", "a 17+25 b", "naïve 東京 🙂\n\ttab"])
def test_each_digit_is_a_token_and_no_text_is_lost(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    pieces = [tokenizer.decode([token]) for token in ids]
    assert [piece for piece in pieces if re.search(r"\d", piece)] == re.findall(r"\d", text)


def test_shipped_model_is_small_and_its_recorded_figures_meet_the_targets() -> None:
    config = json.loads((SHIPPED / "config.json").read_text())
    assert config["model_type"] == "llama" and config["max_position_embeddings"] >= 1024
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 12e6
    scores = json.loads((SHIPPED / "metrics.json").read_text())["held_out"]
    short = {task for task in scores if scores[task]["prompts"] < 200}
    assert short <= {"courtesy"}  # its grammar has fewer
    assert scores["addition"]["exact_match"] >= 0.9
    assert scores["greeting"]["greeted"] >= 0.95
    assert scores["json"]["valid_json"] >= 0.95


def test_shipped_model_answers_held_out_prompts_as_its_figures_say() -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    evaluate = _module("evaluate")
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    model = LlamaForCausalLM.from_pretrained(SHIPPED).eval()
    sums = evaluate.prompts_of("addition", 11, 24)
    texts = evaluate.answers(model, tokenizer, sums)
    assert sum(text == asked.answer for text, asked in zip(texts, sums, strict=True)) >= 20
    greetings = evaluate.answers(model, tokenizer, evaluate.prompts_of("greeting", 11, 8))
    assert sum(map(evaluate.is_greeting, greetings)) >= 7
    records = evaluate.answers(model, tokenizer, evaluate.prompts_of("json", 11, 8))
    assert sum(map(evaluate.is_json_object, records)) >= 7
