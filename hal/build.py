"""The composition root: a device, kernels and a collective become an engine."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path

from hal.assembly import Assembled, assemble, plan_inputs, selection_policy
from hal.collective import Collective
from hal.config import EngineConfig, ModelLimits, ResolvedConfig, resolve
from hal.device import Device
from hal.devices import Opened, open_device
from hal.engine.checkpoint import resolve_model
from hal.engine.engine import Engine
from hal.engine.layers.decoder import Decoder
from hal.engine.loader import load_weights
from hal.engine.model_config import ModelConfig, read_model_config
from hal.engine.model_runner import ModelRunner
from hal.engine.models import MODELS
from hal.engine.progress import Progress, SilentProgress
from hal.engine.scheduler import SchedulerConfig
from hal.engine.weights import CheckpointReader
from hal.evidence import level_of
from hal.explain import SiteReport, site_reports
from hal.kv import KVGroup
from hal.memory import MemoryPlan, plan_memory
from hal.select import Selection, Selector

_logger = logging.getLogger("hal")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """A running engine with everything that explains it."""

    engine: Engine
    decoder: Decoder
    runner: ModelRunner
    device: Device
    device_reason: str
    collective: Collective
    plan: MemoryPlan
    selector: Selector
    resolved: ResolvedConfig
    model: ModelConfig
    folder: Path
    kv_group: KVGroup

    @property
    def selections(self) -> tuple[Selection, ...]:
        """Every site of the model with its kernel."""
        return self.selector.report()

    @property
    def sites(self) -> tuple[SiteReport, ...]:
        """The same as rows, with the evidence for each choice."""
        return site_reports(self.selector, level_of)

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
            "kernels": [site.as_json() for site in self.sites],
        }


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
    assembled = assemble(
        model, resolved, Selector(device.capabilities, selection_policy(config)), collective, device
    )
    with CheckpointReader(folder) as reader:
        plan = plan_memory(plan_inputs(assembled, resolved, device.capabilities.memory))
        _allocate(assembled, device, plan)
        load_weights(assembled.decoder.parameters, reader, progress or SilentProgress())
    return BuiltEngine(
        engine=Engine(
            _scheduler_config(resolved, plan, assembled.kv_group),
            assembled.runner,
            random.Random(config.seed),
        ),
        decoder=assembled.decoder,
        runner=assembled.runner,
        device=device,
        device_reason=opened.reason,
        collective=collective,
        plan=plan,
        selector=assembled.binder.selector,
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


def _allocate(assembled: Assembled, device: Device, plan: MemoryPlan) -> None:
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
