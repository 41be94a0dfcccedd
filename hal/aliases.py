"""vLLM's names for our settings, in Python and as flags: mapped, accepted as no-ops, or refused.

A value that is not honoured is refused with its reason and never swallowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hal.config import EngineConfig
from hal.errors import ConfigError, UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """One foreign name.

    becomes: the EngineConfig field that takes the value, or None.
    neutral: values that ask for what we do anyway; any other is refused with `reason`.
    is_noop: every value is fine, because the setting cannot change an answer here.
    flag_type: how a flag's text is read; bool makes a switch.
    """

    name: str
    becomes: str | None = None
    neutral: tuple[bool | int | str, ...] = ()
    is_noop: bool = False
    reason: str = ""
    flag_type: type[bool] | type[int] | type[float] | type[str] = str


_ONE_RANK = (
    "ranks share each layer: use tensor_parallel_size, or one server per device behind a balancer"
)
_LOCAL_FILES = "pass the folder of the revision you want as MODEL"

ALIASES: tuple[Alias, ...] = (
    Alias(name="gpu_memory_utilization", becomes="memory", flag_type=float),
    Alias(name="enable_prefix_caching", becomes="prefix_caching", flag_type=bool),
    Alias(name="enable_chunked_prefill", becomes="chunked_prefill", flag_type=bool),
    Alias(name="pipeline_parallel_size", neutral=(1,), reason=_ONE_RANK, flag_type=int),
    Alias(name="data_parallel_size", neutral=(1,), reason=_ONE_RANK, flag_type=int),
    Alias(
        name="cpu_offload_gb",
        neutral=(0,),
        reason="weights stay in the device's memory; set it to 0",
        flag_type=float,
    ),
    Alias(
        name="trust_remote_code",
        neutral=(False,),
        reason="code from a model folder is never run; hal-info lists the architectures it knows",
        flag_type=bool,
    ),
    Alias(
        name="enable_lora",
        neutral=(False,),
        reason="merge the adapter into the weights first",
        flag_type=bool,
    ),
    Alias(
        name="speculative_config",
        reason="every token is decoded by the model itself; leave it out",
    ),
    Alias(
        name="tokenizer",
        reason="the tokenizer is read from the model folder; put its files there",
    ),
    Alias(
        name="tokenizer_mode",
        neutral=("auto",),
        reason="there is one tokenizer implementation; leave it at auto",
    ),
    Alias(name="skip_tokenizer_init", neutral=(False,), reason="leave it off", flag_type=bool),
    Alias(
        name="load_format",
        neutral=("auto", "safetensors"),
        reason="weights are read from safetensors files only",
    ),
    Alias(name="revision", reason=_LOCAL_FILES),
    Alias(name="tokenizer_revision", reason=_LOCAL_FILES),
    Alias(
        name="download_dir",
        reason="the hub's own cache is used; set HF_HOME to move it",
    ),
    Alias(
        name="num_gpu_blocks_override",
        reason="the memory plan decides; set memory instead",
        flag_type=int,
    ),
    Alias(name="served_model_name", is_noop=True),
    Alias(name="disable_log_stats", is_noop=True, flag_type=bool),
    Alias(name="disable_log_requests", is_noop=True, flag_type=bool),
    Alias(name="disable_custom_all_reduce", is_noop=True, flag_type=bool),
)

BY_NAME: Mapping[str, Alias] = {alias.name: alias for alias in ALIASES}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def apply_aliases(kwargs: Mapping[str, object]) -> dict[str, object]:
    """Keyword arguments for EngineConfig; raises ConfigError or UnsupportedError.

    None means "the default" for every name, as in vLLM's signatures.
    """
    settings: dict[str, object] = {}
    given_as: dict[str, str] = {}
    for name, value in kwargs.items():
        field = _field_of(name, value)
        if field is None or value is None:
            continue
        if field in settings and settings[field] != value:
            raise ConfigError(
                f"{given_as[field]}={settings[field]!r} and {name}={value!r} are the same setting; "
                "give one of them"
            )
        settings[field] = value
        given_as[field] = name
    return settings


def _field_of(name: str, value: object) -> str | None:
    """The EngineConfig field that takes the value, or None for an accepted no-op."""
    known = EngineConfig.field_names()
    if name in known:
        return name
    alias = BY_NAME.get(name)
    if alias is None:
        guess = nearest(name, [*known, *BY_NAME])
        hint = f"did you mean {guess}?" if guess else f"known settings: {', '.join(sorted(known))}"
        raise ConfigError(f"unknown setting {name}={value!r}; {hint}")
    if alias.becomes is not None:
        return alias.becomes
    if value is None or alias.is_noop or _is_neutral(alias, value):
        return None
    raise UnsupportedError(f"not supported yet: {name}={value!r}; {alias.reason}")


def _is_neutral(alias: Alias, value: object) -> bool:
    """True is not 1 here, but 0.0 is 0."""
    return any(
        neutral == value and isinstance(neutral, bool) == isinstance(value, bool)
        for neutral in alias.neutral
    )
