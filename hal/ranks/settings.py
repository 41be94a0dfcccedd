"""What a config means for several ranks: what it must not ask for, and each rank's part of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hal.collective import Collective
from hal.config import Choice, EngineConfig
from hal.devices import Opened
from hal.devices.affinity import AUTO, NONE
from hal.engine.model_config import ModelConfig
from hal.errors import ConfigError, MemoryPlanError, UnsupportedError
from hal.memory import MemoryPlan, PlanInputs, parse_swap_space, plan_memory
from hal.ranks.connect import Meeting
from hal.share import Cuttable
from hal.weights import UNQUANTIZED

MAX_RANKS = 64


def check_ranks(config: EngineConfig, model: ModelConfig, opened: Opened) -> None:
    """Raises UnsupportedError, or ConfigError that lists the sizes which divide the model."""
    size = config.tensor_parallel_size
    reason = _cannot_yet(config, model, opened)
    if reason is not None:
        raise UnsupportedError(f"not supported yet: tensor_parallel_size={size} {reason}")
    heads = Cuttable(
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        widths=(model.intermediate_size,),
    )
    illegal = heads.why_not(size)
    if size > MAX_RANKS or size > model.vocab_size:
        illegal = f"at most {min(MAX_RANKS, model.vocab_size)} ranks are possible"
    if illegal is not None:
        legal = ", ".join(map(str, heads.legal_sizes(MAX_RANKS)))
        raise ConfigError(
            f"tensor_parallel_size {size} cannot share this model: {illegal}. Legal sizes: {legal}"
        )


def _cannot_yet(config: EngineConfig, model: ModelConfig, opened: Opened) -> str | None:
    caps = opened.device.capabilities
    if caps.is_accelerator or opened.device.posed is not None or caps.vendor == "null":
        return f"on {caps.name}: ranks are processes on one CPU machine; use --device cpu"
    if model.experts is not None:
        return f"of {model.model_type}: experts are not cut yet; use one rank"
    if config.quantization != UNQUANTIZED:
        return (
            f"with quantization={config.quantization!r}: a row's scale would differ by rank; use "
            f"--quantization {UNQUANTIZED} or one rank"
        )
    if parse_swap_space(config.swap_space):
        return f"with swap_space={config.swap_space!r}: blocks of several ranks stay; leave it at 0"
    if config.cpu_affinity not in (AUTO, NONE):
        return f"with cpu_affinity={config.cpu_affinity!r}; leave it at auto"
    return None


def of_rank(config: EngineConfig, folder: Path, opened: Opened, num_threads: int) -> EngineConfig:
    """What every rank is built from; num_threads: of all ranks together."""
    return replace(
        config,
        model=str(folder),
        device=opened.spec,
        threads=max(1, num_threads // config.tensor_parallel_size),
        cache=False,
        offline=True,
    )


def rank_choices(config: EngineConfig, meeting: Meeting) -> tuple[Choice, ...]:
    """For the report; config: one rank's."""
    size = config.tensor_parallel_size
    return (
        Choice("tensor_parallel_size", str(size), "set by the user; each rank is a process"),
        Choice("collective", meeting.collective, meeting.reason),
        Choice("threads", str(config.threads), f"of each of {size} ranks: an equal share"),
        Choice(
            "cache", "off", "the parts of ranks are not kept yet: they are packed at each start"
        ),
    )


def plan_rank(inputs: PlanInputs, collective: Collective) -> MemoryPlan:
    """The plan of rank 0, and at most that of any other: all share one machine's memory evenly.

    Raises MemoryPlanError that says so.
    """
    size = collective.size
    try:
        return plan_memory(inputs.of_rank(size, collective.num_bytes))
    except MemoryPlanError as error:
        raise MemoryPlanError(
            f"on each of {size} ranks, which get 1/{size} of the memory each (a size for --memory "
            f"is {size} times what is said here): {error.message}"
        ) from error
