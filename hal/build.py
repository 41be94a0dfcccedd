"""The composition root: a device, kernels and a collective become an engine."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path

import hal.kernels
from hal.binding import Arena, Binder
from hal.collective import Collective
from hal.config import EngineConfig, ModelLimits, ResolvedConfig, resolve
from hal.device import Capabilities, Device
from hal.devices import Opened, open_device
from hal.engine.checkpoint import resolve_model
from hal.engine.engine import Engine
from hal.engine.layers.builder import Builder, BuildOptions
from hal.engine.layers.decoder import Decoder
from hal.engine.loader import load_weights
from hal.engine.model_config import ModelConfig, read_model_config
from hal.engine.model_runner import ModelRunner, RunnerConfig
from hal.engine.models import MODELS
from hal.engine.progress import Progress, SilentProgress
from hal.engine.scheduler import SchedulerConfig
from hal.engine.weights import CheckpointReader
from hal.errors import ConfigError, UnsupportedError
from hal.kv import KVGroup, group_layers
from hal.memory import MemoryPlan, PlanInputs, plan_memory
from hal.select import Selection, SelectionPolicy, Selector

NUM_NULL_BLOCKS = 1

_logger = logging.getLogger("hal")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """A running engine with everything that explains it."""

    engine: Engine
    runner: ModelRunner
    device: Device
    device_reason: str
    collective: Collective
    plan: MemoryPlan
    selections: tuple[Selection, ...]
    resolved: ResolvedConfig
    model: ModelConfig
    folder: Path
    kv_group: KVGroup

    def as_dict(self) -> dict[str, object]:
        """What GET /hal/plan and explain() show."""
        caps = self.device.capabilities
        return {
            "model": {"folder": str(self.folder), "architecture": self.model.architecture},
            "device": {
                "vendor": caps.vendor,
                "name": caps.name,
                "arch": caps.arch,
                "reason": self.device_reason,
                "collective": self.collective.name,
            },
            "choices": [
                {"name": c.name, "value": c.value, "reason": c.reason}
                for c in self.resolved.choices
            ],
            "memory": self.plan.as_dict(),
            "kernels": [selection.as_dict() for selection in self.selections],
        }


@dataclass(frozen=True, slots=True)
class _Assembled:
    """A model bound to kernels, nothing allocated yet."""

    decoder: Decoder
    runner: ModelRunner
    binder: Binder
    kv_group: KVGroup


def build_engine(config: EngineConfig, progress: Progress | None = None) -> BuiltEngine:
    """Open the device, choose kernels, plan memory, load weights; ready to take requests.

    Raises HalError subclasses only: device, model, memory and selection problems, each with the
    next step.
    """
    folder = resolve_model(config.model, offline=config.offline)
    model = read_model_config(folder, MODELS.keys())
    opened = open_device(config.device)
    device = opened.device
    limits = ModelLimits(dtype=model.dtype, max_position_embeddings=model.max_position_embeddings)
    resolved = resolve(config, device.capabilities, limits)
    _log_choices(opened, resolved)
    if config.threads is not None:
        _use_threads(config.threads)
    collective = device.collective()
    assembled = _assemble(model, resolved, device, collective)
    with CheckpointReader(folder) as reader:
        plan = plan_memory(_plan_inputs(assembled, resolved, device.capabilities))
        _allocate(assembled, device, plan)
        load_weights(assembled.decoder.parameters, reader, progress or SilentProgress())
    return BuiltEngine(
        engine=Engine(
            _scheduler_config(resolved, plan, assembled.kv_group),
            assembled.runner,
            random.Random(config.seed),
        ),
        runner=assembled.runner,
        device=device,
        device_reason=opened.reason,
        collective=collective,
        plan=plan,
        selections=assembled.binder.selector.report(),
        resolved=resolved,
        model=model,
        folder=folder,
        kv_group=assembled.kv_group,
    )


def _use_threads(num_threads: int) -> None:
    """Of this process: torch's kernels and the native ones both ask torch for the number."""
    import torch

    torch.set_num_threads(num_threads)


def _log_choices(opened: Opened, resolved: ResolvedConfig) -> None:
    _logger.info("device %s: %s", opened.spec, opened.reason)
    for choice in resolved.choices:
        _logger.info("%s %s: %s", choice.name, choice.value, choice.reason)


def _assemble(
    model: ModelConfig, resolved: ResolvedConfig, device: Device, collective: Collective
) -> _Assembled:
    hal.kernels.register_all()
    config = resolved.config
    policy = SelectionPolicy(
        overrides=config.kernel_overrides,
        strict=config.strict,
        deterministic=config.deterministic,
    )
    selector = Selector(device.capabilities, policy)
    binder = Binder(selector, Arena(resolved.max_num_batched_tokens), device)
    options = BuildOptions(
        dtype=resolved.dtype,
        block_size=resolved.block_size,
        max_model_len=resolved.max_model_len,
    )
    decoder = MODELS[model.model_type](Builder(model, options, binder, collective))
    _check_block_size(decoder, resolved.block_size)
    runner = ModelRunner(
        decoder,
        binder,
        RunnerConfig(
            max_num_seqs=resolved.max_num_seqs,
            max_model_len=resolved.max_model_len,
            block_size=resolved.block_size,
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            dtype=resolved.dtype,
        ),
    )
    return _Assembled(decoder, runner, binder, _only_group(decoder))


def _check_block_size(decoder: Decoder, block_size: int) -> None:
    for family in decoder.attention_families:
        if block_size not in family.legal_block_sizes:
            legal = ", ".join(str(size) for size in family.legal_block_sizes)
            raise ConfigError(
                f"--block-size {block_size} cannot run here; the attention kernels take {legal}"
            )


def _only_group(decoder: Decoder) -> KVGroup:
    groups = group_layers(decoder.kv_specs)
    if len(groups) > 1:
        kinds = " and ".join(f"{len(g.layers)} {g.spec.kind} layers" for g in groups)
        raise UnsupportedError(f"not supported yet: a model that mixes {kinds}")
    return groups[0]


def _plan_inputs(assembled: _Assembled, resolved: ResolvedConfig, caps: Capabilities) -> PlanInputs:
    logits_bytes = assembled.runner.sampler.logits_bytes
    return PlanInputs(
        memory=caps.memory,
        request=resolved.memory,
        weights_bytes=assembled.decoder.parameters.num_bytes,
        activation_bytes=assembled.binder.arena.num_bytes - logits_bytes,
        logits_bytes=logits_bytes,
        kv_bytes_per_block=assembled.kv_group.bytes_per_block(resolved.block_size),
        block_size=resolved.block_size,
        max_model_len=resolved.max_model_len,
        max_num_seqs=resolved.max_num_seqs,
        num_extra_blocks=NUM_NULL_BLOCKS,
    )


def _allocate(assembled: _Assembled, device: Device, plan: MemoryPlan) -> None:
    assembled.decoder.parameters.allocate(device)
    assembled.binder.arena.allocate(device)
    assembled.runner.start(plan.num_blocks)


def _scheduler_config(
    resolved: ResolvedConfig, plan: MemoryPlan, group: KVGroup
) -> SchedulerConfig:
    return SchedulerConfig(
        max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_model_len=resolved.max_model_len,
        block_size=resolved.block_size,
        num_blocks=plan.num_blocks,
        window=group.spec.window,
        prefix_caching=resolved.prefix_caching,
        chunked_prefill=resolved.chunked_prefill,
    )
