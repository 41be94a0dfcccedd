"""Tokens equal transformers' for the same folder; bytes per token add up to the library's text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import sentencepiece_tokenizer, train_tokenizer
from tokenizers import decoders, models, processors
from transformers import AutoTokenizer

from hal.engine.tokenizer import Tokenizer
from hal.errors import RequestError, TokenizerError

TEXTS = ["", " ", "Hello the world", "  two  spaces ", "Größe 東京 🙂 \n\t x", "<|im_end|>a</s>b"]


def _folder(
    folder: Path, backend: tokenizers.Tokenizer, config: dict[str, Any] | None = None
) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _copy(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(backend.to_str())


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return Tokenizer(train_tokenizer(), {}, "byte level")


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    return Tokenizer(sentencepiece_tokenizer(), {}, "sentencepiece")


BOS_CONFIGS: list[dict[str, Any]] = [
    {"bos_token": "<s>", "eos_token": "</s>"},
    {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
    {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False},
    {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True},
    {
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": "</s>",
        "add_eos_token": True,
    },
    {"eos_token": "</s>", "add_bos_token": True},
]


@pytest.mark.parametrize("config", BOS_CONFIGS)
@pytest.mark.parametrize("has_post_processor", [True, False])
def test_bos_and_eos_equal_transformers(
    tmp_path: Path, config: dict[str, Any], has_post_processor: bool
) -> None:
    backend = _copy(sentencepiece_tokenizer())
    if not has_post_processor:
        backend.post_processor = processors.Sequence([])
    folder = _folder(tmp_path, backend, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})

    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)

    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        plain = ours.encode(text, add_special_tokens=False)
        assert plain == theirs.encode(text, add_special_tokens=False)
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_id == theirs.eos_token_id == 2


def test_reads_what_transformers_saves(tokenizer_folder: Path) -> None:
    ours, theirs = Tokenizer.load(tokenizer_folder), AutoTokenizer.from_pretrained(tokenizer_folder)

    for text in TEXTS:
        token_ids = ours.encode(text)
        assert token_ids == theirs.encode(text)
        assert ours.decode(token_ids) == theirs.decode(token_ids, skip_special_tokens=True)
        assert ours.decode(token_ids, skip_special_tokens=False) == text
    assert ours.vocab_size == len(theirs)
    assert ours.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def test_the_older_map_file_names_special_tokens(tmp_path: Path) -> None:
    folder = _folder(tmp_path, train_tokenizer())
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')

    assert Tokenizer.load(folder).eos_token_id == 2


def test_named_tokens_are_special_even_if_listed_as_plain_vocabulary(tmp_path: Path) -> None:
    backend = _copy(train_tokenizer())
    plain_id = backend.token_to_id("a")
    ours = Tokenizer.load(_folder(tmp_path, backend, {"eos_token": "a"}))

    assert plain_id in ours.special_token_ids
    assert ours.decode([plain_id, *ours.encode("b")]) == "b"
    assert ours.vocab_size == backend.get_vocab_size()


def test_a_named_token_outside_the_vocabulary_never_grows_it(tmp_path: Path) -> None:
    ours = Tokenizer.load(_folder(tmp_path, train_tokenizer(), {"pad_token": "<|new|>"}))

    assert ours.token_id("<|new|>") is None
    assert ours.vocab_size == train_tokenizer().get_vocab_size()


def test_prompts_are_never_padded_or_cut(tmp_path: Path) -> None:
    backend = _copy(train_tokenizer())
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    ours = Tokenizer.load(_folder(tmp_path, backend))

    text = "the quick brown fox and more"
    assert ours.encode(text) == train_tokenizer().encode(text).ids


@given(st.lists(st.integers(0, 400), max_size=40))
def test_byte_level_decoding_equals_the_library_for_any_ids(token_ids: list[int]) -> None:
    ours = Tokenizer(train_tokenizer(), {}, "byte level")

    for skip in (True, False):
        expected = train_tokenizer().decode(token_ids, skip_special_tokens=skip)
        assert ours.decode(token_ids, skip_special_tokens=skip) == expected


@given(st.lists(st.text(max_size=12), max_size=4), st.booleans())
def test_byte_fallback_decoding_equals_the_library_for_any_text(
    texts: list[str], skip: bool
) -> None:
    backend = sentencepiece_tokenizer()
    ours = Tokenizer(backend, {}, "sentencepiece")
    token_ids = [token_id for text in texts for token_id in backend.encode(text).ids]

    expected = backend.decode(token_ids, skip_special_tokens=skip)
    assert ours.decode(token_ids, skip_special_tokens=skip) == expected


@given(st.text(max_size=40))
def test_token_bytes_add_up_to_the_text(text: str) -> None:
    ours = Tokenizer(train_tokenizer(), {}, "byte level")

    assert b"".join(map(ours.token_bytes, ours.encode(text))) == text.encode()


def test_added_tokens_with_characters_outside_the_byte_map() -> None:
    backend = _copy(train_tokenizer())
    backend.add_tokens(["a tool", "東京 call"])
    ours = Tokenizer(backend, {}, "byte level")

    token_ids = ours.encode("x a tool 東京 call é")
    assert ours.decode(token_ids) == backend.decode(token_ids) == "x a tool 東京 call é"


def test_ids_without_a_token_have_no_text(byte_level: Tokenizer) -> None:
    token_ids = [-1, 10**6, *byte_level.encode("a")]

    assert byte_level.decode(token_ids) == "a"
    assert byte_level.token_bytes(10**6) == b""


def test_a_completion_keeps_the_leading_space_of_its_first_word(sentencepiece: Tokenizer) -> None:
    token_ids = sentencepiece.encode("the", add_special_tokens=False)

    assert sentencepiece.text_stream().feed(token_ids) == "the"
    assert sentencepiece.text_stream(continues_text=True).feed(token_ids) == " the"


def test_a_lone_surrogate_is_the_requests_fault(byte_level: Tokenizer) -> None:
    with pytest.raises(RequestError, match="not valid Unicode") as caught:
        byte_level.encode("broken \ud83d")
    assert caught.value.param == "prompt"


def test_older_files_are_converted_once(tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    folder.mkdir()
    train_tokenizer().model.save(str(folder))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))

    first = Tokenizer.load(folder, cache)
    cached = list(cache.rglob("*"))
    written_at = [path.stat().st_mtime_ns for path in cached]
    second = Tokenizer.load(folder, cache)

    expected = train_tokenizer().encode("the quick brown 東京").ids
    assert first.encode("the quick brown 東京") == second.encode("the quick brown 東京") == expected
    assert [path.name for path in cached if path.is_file()] == ["tokenizer.json"]
    assert [path.stat().st_mtime_ns for path in cached] == written_at


def test_other_older_files_are_another_conversion(tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    folder.mkdir()
    train_tokenizer().model.save(str(folder))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    Tokenizer.load(folder, cache)
    shutil.copy(folder / "merges.txt", folder / "merges.bak")
    (folder / "merges.txt").write_text("#version: 0.2\n")

    assert Tokenizer.load(folder, cache).encode("the") != train_tokenizer().encode("the").ids


def test_a_conversion_that_fails_names_the_packages(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a sentencepiece model")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    with pytest.raises(TokenizerError, match="pip install sentencepiece protobuf"):
        Tokenizer.load(tmp_path, tmp_path / "cache")


def test_no_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="given as token ids still work"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)

    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a usable tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.Sequence([decoders.Strip(" ", 1, 0), decoders.Fuse()]),
        decoders.Sequence([decoders.Fuse(), decoders.ByteLevel()]),
    ],
    ids=["none", "wordpiece", "strip of each token", "bytes of fused text"],
)
def test_decoders_without_bytes_per_token_are_refused(decoder: decoders.Decoder | None) -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    if decoder is not None:
        backend.decoder = decoder

    with pytest.raises(TokenizerError, match="source: not supported yet"):
        Tokenizer(backend, {}, "source")
