"""Guided decoding: grammars compiled within limits, kept in a cache, followed token by token.

llguidance does the work (optional: the extra `guided`). A stranger's grammar is compiled first in a
process that can be killed (`grammar_worker.py`); what it survived is compiled here again.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hal.engine.batch import Int32
from hal.engine.generation_config import read_generation_defaults
from hal.engine.grammar_worker import GrammarWorker
from hal.engine.tokenizer import Tokenizer
from hal.errors import GrammarError, UnsupportedError
from hal.guided_decoding import DEFAULT_WHITESPACE, GuidedDecodingParams

if TYPE_CHECKING:
    import llguidance

CACHE_BYTES = 64 * 2**20
"""Of compiled grammars, as measured while the worker compiled them."""

_MAX_LEXER_STATES = 20_000  # about 2 kB each, made as a text is followed
_MAX_SHOWN_CHARS = 400
_WORD_BITS = 32


class Matcher:
    """Follows one answer; not shared between sequences."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._matcher = grammar.compiled.deep_copy()
        self.num_words = -(-grammar.vocab_size // _WORD_BITS)

    def consume(self, token_id: int) -> None:
        """Go on by a token that the last mask allowed."""
        self._matcher.consume_token(token_id)

    def fill(self, words: Int32) -> None:
        """Set the bit of every token that may come next; `words` is contiguous."""
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed further, such as a limit of the parser."""
        if not self._matcher.is_error():
            return None
        self._grammar.is_spent = True
        return _first_lines(self._matcher.get_error())


@dataclass(slots=True)
class Grammar:
    """A compiled grammar of a model with `vocab_size` ids; `num_bytes` is about its size.

    is_spent: a limit was met; matchers share what the lexer has built, so new ones would meet it
    """

    compiled: llguidance.LLMatcher
    vocab_size: int
    num_bytes: int
    is_spent: bool = False

    def matcher(self, token_ids: Sequence[int] = ()) -> Matcher:
        """A new one, after these tokens of an answer that was begun."""
        matcher = Matcher(self)
        for token_id in token_ids:
            matcher.consume(token_id)
        return matcher


class PendingMasks:
    """The masks of a step's guided rows, computed when asked for: beside the forward pass.

    rows [M] int32: which of the sampled rows they are for
    """

    def __init__(self, rows: Int32, matchers: Sequence[Matcher]) -> None:
        self.rows = rows
        self._matchers = matchers

    def words(self) -> Int32:
        """[M, ceil(vocab_size / 32)] int32, as the op mask_logits takes them."""
        words = np.zeros((len(self._matchers), self._matchers[0].num_words), np.int32)
        for row, matcher in zip(words, self._matchers, strict=True):
            matcher.fill(row)
        return words


class Grammars:
    """Compiles and caches for the tokenizer of one model folder. Any thread may call it."""

    def __init__(self, folder: Path, vocab_size: int, cache_bytes: int = CACHE_BYTES) -> None:
        self.vocab_size = vocab_size
        self._folder = folder
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[GuidedDecodingParams, Grammar] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._compile_lock = threading.Lock()  # held for seconds; the cache's never is
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._worker: GrammarWorker | None = None

    @property
    def num_cached_bytes(self) -> int:
        with self._cache_lock:
            return sum(grammar.num_bytes for grammar in self._cache.values())

    def compiled(self, params: GuidedDecodingParams) -> Grammar:
        """Raises GrammarError naming the keyword, place or limit; UnsupportedError without
        llguidance; TokenizerError without a tokenizer."""
        found = self._cached(params)
        if found is not None:
            return found
        with self._compile_lock:
            found = self._cached(params)
            if found is not None:
                return found
            tokenizer = self._loaded()
            assert self._worker is not None
            num_bytes = self._worker.compile(params)
            grammar = Grammar(compile_grammar(tokenizer, params), self.vocab_size, num_bytes)
            self._keep(params, grammar)
            return grammar

    def close(self) -> None:
        """End the worker; the next grammar starts another."""
        if self._worker is not None:
            self._worker.close()

    def _loaded(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            tokenizer = load_grammar_tokenizer(self._folder)
            if tokenizer.vocab_size > self.vocab_size:
                raise GrammarError(
                    f"the tokenizer has {tokenizer.vocab_size} tokens and the model "
                    f"{self.vocab_size}: guided decoding needs every token in the model",
                    param="guided_decoding",
                )
            self._worker = GrammarWorker(self._folder)
            self._tokenizer = tokenizer
        return self._tokenizer

    def _cached(self, params: GuidedDecodingParams) -> Grammar | None:
        with self._cache_lock:
            found = self._cache.get(params)
            if found is None or found.is_spent:
                return None
            self._cache.move_to_end(params)
            return found

    def _keep(self, params: GuidedDecodingParams, grammar: Grammar) -> None:
        with self._cache_lock:
            self._cache[params] = grammar
            while sum(g.num_bytes for g in self._cache.values()) > self._cache_bytes:
                self._cache.popitem(last=False)


def load_grammar_tokenizer(folder: Path) -> llguidance.LLTokenizer:
    """The vocabulary as bytes; control tokens are never part of a text."""
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "guided decoding needs llguidance, which is not installed; run "
            "pip install 'hal-runtime[guided]'"
        ) from error
    tokenizer = Tokenizer.load(folder)
    eos_token_ids = sorted(read_generation_defaults(folder, tokenizer).eos_token_ids)
    if not eos_token_ids:
        raise GrammarError(
            "this model names no end-of-sequence token, so a guided answer could not end",
            param="guided_decoding",
        )
    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(_Vocabulary(tokenizer, eos_token_ids[0])),
        n_vocab=tokenizer.vocab_size,
        eos_token=eos_token_ids,
    )


class _Vocabulary:
    """What llguidance.TokenizerWrapper reads."""

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_token_ids | {eos_token_id})

    def __call__(self, text: str) -> list[int]:
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        if self._tokenizer.special_token_ids.isdisjoint(token_ids):
            return token_ids
        # A text that spells a control token: character by character it stays a text.
        return [i for c in text for i in self._tokenizer.encode(c, add_special_tokens=False)]


def compile_grammar(
    tokenizer: llguidance.LLTokenizer, params: GuidedDecodingParams
) -> llguidance.LLMatcher:
    """Raises GrammarError. Bounded in time and memory by llguidance's own limits only."""
    import llguidance

    limits = llguidance.LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
    source = _behind_reasoning(_source(params), params)
    matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=limits)
    if matcher.is_error():
        raise GrammarError(_explained(params, matcher.get_error()), param="guided_decoding")
    return matcher


def _source(params: GuidedDecodingParams) -> str:
    """llguidance's own description of the grammar."""
    import llguidance
    from llguidance.gbnf_to_lark import any_to_lark

    make = llguidance.LLMatcher
    if params.json is not None or params.json_object:
        schema = str(params.json) if params.json is not None else '{"type": "object"}'
        whitespace = params.whitespace_pattern
        return make.grammar_from_json_schema(
            schema,
            # lenient would ignore what is not supported; a schema must not turn it on
            overrides={
                "whitespace_pattern": DEFAULT_WHITESPACE if whitespace is None else whitespace,
                "lenient": False,
            },
        )
    if params.regex is not None:
        return make.grammar_from_regex(params.regex)
    if params.choice is not None:
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in params.choice)
        return make.grammar_from_lark(f"start: {texts}")
    try:
        return make.grammar_from_lark(any_to_lark(params.grammar or ""))
    except Exception as error:
        raise GrammarError(
            f"the grammar cannot be read: {_first_lines(str(error))}", param="guided_decoding"
        ) from error


def _behind_reasoning(source: str, params: GuidedDecodingParams) -> str:
    """The grammar after free text that ends in a mark."""
    if params.reasoning_end is None:
        return source
    # llguidance describes a grammar as Lark, or as JSON with a list of one.
    is_json = source.startswith("{")
    answer = json.loads(source)["grammars"][0] if is_json else {"lark_grammar": source}
    opening, start = "", "reasoning @answer"
    if params.reasoning_start is not None:
        opening, start = json.dumps(params.reasoning_start), "@answer | reasoning @answer"
    lark = (
        f"start: {start}\n"
        f"reasoning: {opening} text /\\n*/\n"
        f"text[suffix={json.dumps(params.reasoning_end)}]: /(?s:.*)/\n"
    )
    grammars = [{"lark_grammar": lark}, {**answer, "name": "answer"}]
    return json.dumps({"grammars": grammars})


def _explained(params: GuidedDecodingParams, error: str) -> str:
    prefix = "Unimplemented keys: "
    if error.startswith(prefix):
        names = ", ".join(repr(name) for name in json.loads(error.removeprefix(prefix)))
        return f"not supported yet in a JSON schema: {names}. Leave it out"
    return f"{params.kind} cannot be followed: {_first_lines(error)}"


def _first_lines(error: str) -> str:
    text = error.split("<state>")[0].removesuffix("<non-verbose/>").strip()
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + " ..."
