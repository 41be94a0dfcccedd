"""What is served at a URL, and how many tokens its tokenizer makes of our words."""

from __future__ import annotations

import time
from dataclasses import dataclass

import h11
import orjson

from hal.cli.bench.load.http_client import CutOff, HttpClient
from hal.cli.bench.load.stream import Record, Style, ask
from hal.cli.bench.load.workload import TextSize, words
from hal.errors import ConfigError

_FEW_WORDS, _MANY_WORDS = 8, 136
_LONGEST_WORD_TOKENS = 8
"""So that the longer probe fits a small context even if every letter is a token."""


@dataclass(frozen=True, slots=True)
class Served:
    """max_model_len: None where the server does not say; others: models that it has as well."""

    model: str
    max_model_len: int | None = None
    others: tuple[str, ...] = ()


async def served_model(client: HttpClient, wanted: str | None) -> Served:
    """From /v1/models. Raises ConfigError that says what is wrong with the URL."""
    status, body = await _get(client, "/v1/models")
    if status == 401:
        raise ConfigError(f"{client.target.url} wants another key: set HAL_API_KEY or --api-key")
    cards = _cards(body) if status == 200 else []
    if wanted is not None:
        card = next((card for card in cards if card["id"] == wanted), {})
        return Served(wanted, _length(card))
    if not cards:
        raise ConfigError(
            f"{client.target.url}/v1/models answers {status} and names no model; is it an "
            "OpenAI-compatible server? If it is, give --model NAME"
        )
    first, *rest = cards
    return Served(str(first["id"]), _length(first), tuple(str(card["id"]) for card in rest))


async def _get(client: HttpClient, path: str) -> tuple[int, bytes]:
    try:
        async with client.request("GET", path) as answer:
            return answer.status, await answer.body()
    except OSError as error:
        raise ConfigError(
            f"no connection to {client.target.url}: {error.strerror or error}; is a server "
            "running there?"
        ) from error
    except (CutOff, h11.ProtocolError) as error:
        raise ConfigError(f"{client.target.url} does not speak HTTP/1.1 as expected") from error


def _cards(body: bytes) -> list[dict[str, object]]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list):
        return []
    return [card for card in data if isinstance(card, dict) and isinstance(card.get("id"), str)]


def _length(card: dict[str, object]) -> int | None:
    value = card.get("max_model_len")
    return value if isinstance(value, int) and value > 0 else None


async def text_size(
    client: HttpClient, style: Style, max_model_len: int | None, timeout_s: float
) -> TextSize | None:
    """From two requests of one token; None where the server counts no tokens.

    They are the warm-up too. Raises ConfigError if the server refuses them.
    """
    many = _MANY_WORDS
    if max_model_len is not None:
        many = max(_FEW_WORDS + 1, min(many, max_model_len // _LONGEST_WORD_TOKENS))
    counts = [await _count(client, style, n, timeout_s) for n in (_FEW_WORDS, many)]
    few_tokens, many_tokens = counts
    if few_tokens is None or many_tokens is None or many_tokens <= few_tokens:
        return None
    per_word = (many_tokens - few_tokens) / (many - _FEW_WORDS)
    return TextSize(max(0.0, few_tokens - per_word * _FEW_WORDS), per_word)


async def _count(client: HttpClient, style: Style, num_words: int, timeout_s: float) -> int | None:
    now = time.perf_counter()
    record = Record(now, now)
    await ask(client, style, record, style.body(words("probe", num_words), 1), timeout_s)
    if record.error:
        said = f" ({record.detail})" if record.detail else ""
        raise ConfigError(
            f"{client.target.url}{style.api.path} answers the first request with: {record.error}"
            f"{said}. Asked was model {style.model!r}; see --model, --api and --no-ignore-eos"
        )
    return record.prompt_tokens
