"""Text to token ids and back, as the checkpoint's own tokenizer files say.

The `tokenizers` library reads tokenizer.json directly: importing transformers' AutoTokenizer
takes two seconds. It is used once, for folders that have only a slow tokenizer's files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers
from tokenizers import AddedToken

from hal.engine.config_fields import ConfigFields
from hal.engine.slow_tokenizer import converted_tokenizer_file
from hal.engine.text_stream import PieceRules, TextStream, read_piece_rules
from hal.errors import RequestError, TokenizerError

_TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class Tokenizer:
    """One checkpoint's tokenizer.

    `special_tokens` has the named ones (bos_token, eos_token, ...) as templates use them.
    Text that spells a control token becomes that control token; chats keep the two apart, see
    hal.engine.chat_prompt.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], source: str
    ) -> None:
        self._backend = backend
        self._rules: PieceRules = read_piece_rules(backend.decoder, source)
        self._bytes: dict[int, bytes] = {}
        self.special_tokens = dict(special_tokens)
        self.special_token_ids = _special_ids(backend)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def load(cls, folder: Path, cache_folder: Path | None = None) -> Tokenizer:
        """Read the tokenizer of a model folder; raises TokenizerError.

        `cache_folder` keeps tokenizers converted from older formats (~/.cache/hal by default).
        """
        path = folder / _TOKENIZER_FILE
        if not path.is_file():
            path = converted_tokenizer_file(folder, cache_folder)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # the library raises nothing narrower
            if not isinstance(error, Exception) and not _is_panic(error):
                raise
            raise TokenizerError(
                f"{path} is not a usable tokenizer: {error}. Download it again."
            ) from error
        # A file may carry its trainer's padding and truncation; prompts are never cut silently.
        backend.no_padding()
        backend.no_truncation()
        fields = ConfigFields.read_optional(folder / _CONFIG_FILE)
        special_tokens = _named_tokens(folder, fields)
        _mark_special(backend, special_tokens.values())
        return cls(backend, special_tokens, str(path))

    def fingerprint(self) -> bytes:
        """Equal for tokenizers that give every text the same ids."""
        return hashlib.sha256(self._backend.to_str().encode()).digest()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; `add_special_tokens` adds BOS where tokenizer.json's post-processor does.

        Flags like add_bos_token are older than that post-processor and not read, as in
        transformers 5.

        Pass False for a rendered chat template: templates write BOS themselves.
        """
        try:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            raise RequestError(f"the text is not valid Unicode: {error}", param="prompt") from error
        except BaseException as error:
            if not _is_panic(error):
                raise
            raise RequestError(f"the tokenizer failed on it: {error}", param="prompt") from error
        return list(encoding.ids)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of all `token_ids`; ids outside the vocabulary have none."""
        stream = self.text_stream(skip_special_tokens=skip_special_tokens)
        return stream.feed(token_ids) + stream.flush()

    def text_stream(
        self, *, skip_special_tokens: bool = True, continues_text: bool = False
    ) -> TextStream:
        """An incremental decoder. `continues_text` keeps a first word's leading space, which
        SentencePiece drops at the start of a text but a completion of a prompt needs."""
        return TextStream(
            self.token_bytes,
            skipped_ids=self.special_token_ids if skip_special_tokens else frozenset(),
            strip_start=0 if continues_text else self._rules.strip_start,
        )

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that this token adds to a text."""
        data = self._bytes.get(token_id)
        if data is None:
            token = self._backend.id_to_token(token_id) if token_id >= 0 else None
            data = b"" if token is None else self._rules.to_bytes(token)
            self._bytes[token_id] = data
        return data

    def control_texts(self) -> list[str]:
        """How control tokens are written in a text."""
        texts = (self._backend.id_to_token(token_id) for token_id in self.special_token_ids)
        return [text for text in texts if text]

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it."""
        found: int | None = self._backend.token_to_id(token)
        return found

    @property
    def bos_token_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._named_id("eos_token")

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_id(token)


def _is_panic(error: BaseException) -> bool:
    """Whether it is a failed assertion of the Rust library, which is no Exception in Python."""
    return type(error).__name__ == "PanicException"


def _special_ids(backend: tokenizers.Tokenizer) -> frozenset[int]:
    added = backend.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


def _named_tokens(folder: Path, fields: ConfigFields) -> dict[str, str]:
    """bos_token, eos_token, ... by name; tokenizer_config.json wins over the older map file."""
    older = ConfigFields.read_optional(folder / "special_tokens_map.json")
    found = {name: _token_text(fields.first(name) or older.first(name)) for name in _NAMED_TOKENS}
    return {name: text for name, text in found.items() if text is not None}


def _token_text(value: object) -> str | None:
    # Either the token itself or an AddedToken written as an object.
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _mark_special(backend: tokenizers.Tokenizer, tokens: Iterable[str]) -> None:
    """Named tokens are control tokens even where tokenizer.json lists them as plain vocabulary."""
    special = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in dict.fromkeys(tokens)
            if token not in special and backend.token_to_id(token) is not None
        ]
    )
