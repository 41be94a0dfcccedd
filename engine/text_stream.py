"""From token ids to text, exactly and in linear time: tokens are bytes, text is their UTF-8.

Decoding a growing list of ids again and again costs quadratic time, and looking for U+FFFD at
the end cannot tell half a character from a real one. Both kinds of tokenizer that checkpoints use
(byte-level BPE, and SentencePiece with byte fallback) define bytes per token, so bytes it is.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tokenizers.decoders import Decoder

from hal.errors import TokenizerError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class PieceRules:
    """How a tokenizer's decoder turns token strings into bytes.

    replacements: (from, to) strings, as U+2581 to a space. strip_start: how many leading spaces
    of a whole text belong to the tokenizer and not to the text.
    """

    is_byte_level: bool = False
    has_byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    strip_start: int = 0

    def to_bytes(self, token: str) -> bytes:
        """The bytes of one token string."""
        if self.is_byte_level:
            return _byte_level_bytes(token)
        for old, new in self.replacements:
            token = token.replace(old, new)
        match = _BYTE_TOKEN.fullmatch(token) if self.has_byte_fallback else None
        return bytes.fromhex(match[1]) if match else token.encode()


class TextStream:
    """Text of a growing sequence of tokens; holds incomplete characters back.

    Every way of cutting the same ids into `feed` calls gives the same text.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        *,
        skipped_ids: frozenset[int],
        strip_start: int,
    ) -> None:
        self._token_bytes = token_bytes
        self._skipped_ids = skipped_ids
        self._strip_left = strip_start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Iterable[int]) -> str:
        """The characters that these tokens complete."""
        data = b"".join(self._token_bytes(i) for i in token_ids if i not in self._skipped_ids)
        return self._strip(self._utf8.decode(data))

    def flush(self) -> str:
        """What the end of the text makes of an incomplete character: U+FFFD, or nothing."""
        return self._strip(self._utf8.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        while self._strip_left and text:
            if text[0] != " ":
                self._strip_left = 0
            else:
                self._strip_left -= 1
                text = text[1:]
        return text


def read_piece_rules(decoder: Decoder | None, source: str) -> PieceRules:
    """Understand a tokenizer's decoder; raises TokenizerError for one without bytes per token."""
    if decoder is None:
        raise _unknown(source, "no decoder")
    # The library shows a decoder's parameters only in its pickled state, which is JSON.
    spec = json.loads(decoder.__getstate__())
    steps = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    rules = PieceRules()
    is_fused = False
    for step in steps:
        match step:
            case {"type": "ByteLevel"} if not is_fused:
                rules = replace(rules, is_byte_level=True)
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                rules = replace(rules, replacements=(*rules.replacements, (old, new)))
            case {"type": "ByteFallback"}:
                rules = replace(rules, has_byte_fallback=True)
            case {"type": "Fuse"}:
                is_fused = True
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if is_fused:
                rules = replace(rules, strip_start=start)
            case _:
                raise _unknown(source, f"decoder {step.get('type')}")
    return rules


def _unknown(source: str, what: str) -> TokenizerError:
    return TokenizerError(
        f"{source}: not supported yet: {what}; known are byte-level BPE and SentencePiece with "
        "byte fallback. Requests given as token ids still work."
    )


def _byte_level_table() -> dict[str, int]:
    """GPT-2's map of bytes to printable characters, inverted (openai/gpt-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return table


_BYTE_OF = _byte_level_table()


def _byte_level_bytes(token: str) -> bytes:
    # A token with any character outside the map is an added one and stands for itself.
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode()
