"""What generation_config.json says: the ids that end a text, and sampling defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hal.engine.config_fields import ConfigFields
from hal.engine.tokenizer import Tokenizer
from hal.errors import ModelError, RequestError
from hal.sampling_params import SamplingParams

_INTEGER_KEYS = ("top_k",)
_NUMBER_KEYS = ("temperature", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Settings of one checkpoint; a request changes single fields with dataclasses.replace.

    max_new_tokens is the checkpoint's own limit of an answer, None where it has none.
    """

    eos_token_ids: frozenset[int] = frozenset()
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int | None = None


def read_generation_defaults(
    folder: Path, tokenizer: Tokenizer | None = None
) -> GenerationDefaults:
    """Read generation_config.json; without it, config.json still names the EOS ids.

    The tokenizer's own EOS ends a text as well: chat fine-tunes often change it there only.
    """
    fields = ConfigFields.read_optional(folder / "generation_config.json")
    eos_token_ids = fields.token_ids("eos_token_id")
    if not eos_token_ids:
        eos_token_ids = ConfigFields.read(folder / "config.json").token_ids("eos_token_id")
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        eos_token_ids = (*eos_token_ids, tokenizer.eos_token_id)
    return GenerationDefaults(
        eos_token_ids=frozenset(eos_token_ids),
        sampling_params=_sampling_params(fields),
        max_new_tokens=fields.optional_integer("max_new_tokens"),
    )


def _sampling_params(fields: ConfigFields) -> SamplingParams:
    given: dict[str, Any] = {
        **_present(fields, _INTEGER_KEYS, fields.integer),
        **_present(fields, _NUMBER_KEYS, fields.number),
    }
    try:
        return SamplingParams(**given)
    except RequestError as error:
        raise ModelError(f"{fields.source}: {error.message}") from error


def _present(
    fields: ConfigFields, keys: tuple[str, ...], get: Callable[[str], float]
) -> dict[str, float]:
    return {key: get(key) for key in keys if fields.first(key) is not None}
