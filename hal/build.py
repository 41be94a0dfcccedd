"""The composition root: a device, kernels and a collective become an engine."""

from __future__ import annotations

import logging
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

import hal
from hal.assembly import Assembled, assemble, make_selector, plan_inputs, selection_policy
from hal.collective import Collective
from hal.config import Choice, EngineConfig, ModelLimits, ResolvedConfig, resolve
from hal.device import Capabilities, Device
from hal.devices import Opened, open_device
from hal.devices.affinity import AUTO, NONE, allowed_cpus, choose_affinity
from hal.engine.checkpoint import resolve_model
from hal.engine.engine import Engine
from hal.engine.grammar import Grammars
from hal.engine.layers.decoder import Decoder
from hal.engine.loader import load_weights
from hal.engine.model_config import ModelConfig, read_model_config
from hal.engine.model_runner import ModelRunner
from hal.engine.models import MODELS
from hal.engine.progress import Progress, SilentProgress
from hal.engine.scheduler import SchedulerConfig
from hal.engine.step_trace import open_trace
from hal.engine.weights import CheckpointReader
from hal.env import cache_folder, environment
from hal.errors import MemoryPlanError, UnsupportedError
from hal.evidence import evidence_of
from hal.explain import SiteReport, emulation_ledger, level_counts, site_reports
from hal.kv import KVGroup
from hal.memory import MemoryMode, MemoryPlan, MemoryRequest, plan_memory
from hal.pack_cache import PackCache
from hal.pack_cache.cache import device_label
from hal.select import Selection, SelectionPolicy, Selector

_logger = logging.getLogger("hal")

# Of the host's memory, where --memory speaks of the device that another one poses as.
_HOST_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Posed:
    """What would run on the device that ours poses as: chosen and sized, never allocated."""

    capabilities: Capabilities
    selector: Selector
    plan: MemoryPlan

    @property
    def selections(self) -> tuple[Selection, ...]:
        """Every site of the model with the kernel that it would have there."""
        return self.selector.report()

    @property
    def sites(self) -> tuple[SiteReport, ...]:
        """The same as rows, with the evidence for each choice."""
        return site_reports(self.selector, evidence_of)

    def as_dict(self) -> dict[str, object]:
        caps = self.capabilities
        return {
            "device": {"vendor": caps.vendor, "name": caps.name, "arch": caps.arch},
            "memory": self.plan.as_dict(),
            "kernels": [site.as_json() for site in self.sites],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """A running engine with everything that explains it.

    plan, selections: of what runs; `posed` has those of the device that ours poses as, if any
    weights: where they came from, in words
    """

    engine: Engine
    decoder: Decoder
    runner: ModelRunner
    device: Device
    device_reason: str
    collective: Collective
    plan: MemoryPlan
    weights: str
    selector: Selector
    resolved: ResolvedConfig
    model: ModelConfig
    folder: Path
    kv_group: KVGroup
    posed: Posed | None

    @property
    def selections(self) -> tuple[Selection, ...]:
        """Every site of the model with its kernel."""
        return self.selector.report()

    @property
    def sites(self) -> tuple[SiteReport, ...]:
        """The same as rows, with the evidence for each choice."""
        return site_reports(self.selector, evidence_of)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Every setting as it is by now: a capture may be refused while the engine runs."""
        graphs = self.runner.graphs
        if graphs is None or graphs.refusal is None:
            return self.resolved.choices
        return self.resolved.without_graphs(graphs.refusal).choices

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
                {"name": c.name, "value": c.value, "reason": c.reason} for c in self.choices
            ],
            "memory": self.plan.as_dict(),
            "weights": self.weights,
            "levels": level_counts(self.sites),
            "kernels": [site.as_json() for site in self.sites],
            "posed": None if self.posed is None else self.posed.as_dict(),
        }

    def plan_text(self) -> str:
        """The memory plan for people, and the posed one before it."""
        if self.posed is None:
            return str(self.plan)
        name = self.posed.capabilities.name
        return f"on {name}\n{self.posed.plan}\nhere, for the reference kernels\n{self.plan}"


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
    resolved = resolve(config, device.posed or device.capabilities, limits)
    resolved = replace(resolved, choices=(*resolved.choices, _place_threads(config, device)))
    collective = device.collective()
    posed = None if device.posed is None else _pose(device.posed, model, resolved, collective)
    selector = make_selector(device.capabilities, _run_policy(config, posed))
    assembled = assemble(model, resolved, selector, collective, device)
    _log_choices(opened, assembled.resolved)
    _log_emulation(device.posed or device.capabilities, posed.selector if posed else selector)
    plan = _plan(assembled, resolved, device, posed)
    with CheckpointReader(folder) as reader:
        cache = _pack_cache(config, device)
        weights = _load(assembled, device, plan, reader, progress or SilentProgress(), cache)
    return BuiltEngine(
        engine=Engine(
            _scheduler_config(resolved, plan, assembled.kv_group),
            assembled.runner,
            random.Random(config.seed),
            Grammars(folder, model.vocab_size),
            trace=None if config.trace is None else open_trace(config.trace),
        ),
        decoder=assembled.decoder,
        runner=assembled.runner,
        device=device,
        device_reason=opened.reason,
        collective=collective,
        plan=plan,
        weights=weights,
        selector=assembled.binder.selector,
        resolved=assembled.resolved,
        model=model,
        folder=folder,
        kv_group=assembled.kv_group,
        posed=posed,
    )


def _pose(
    caps: Capabilities, model: ModelConfig, resolved: ResolvedConfig, collective: Collective
) -> Posed:
    """Choose and size for the absent device; raises what its own start-up would raise."""
    selector = make_selector(caps, selection_policy(resolved.config), is_present=False)
    assembled = assemble(model, resolved, selector, collective, device=None)
    plan = plan_memory(plan_inputs(assembled, resolved, caps.memory))
    return Posed(capabilities=caps, selector=selector, plan=plan)


def _run_policy(config: EngineConfig, posed: Posed | None) -> SelectionPolicy:
    """The user's wishes; where the device poses, those on kernels are met by the posed selection.

    --deterministic is a promise about the tokens, so it binds what runs.
    """
    if posed is None:
        return selection_policy(config)
    return SelectionPolicy(deterministic=config.deterministic)


def _plan(
    assembled: Assembled, resolved: ResolvedConfig, device: Device, posed: Posed | None
) -> MemoryPlan:
    """The plan of what runs; where the device poses, --memory sized the posed plan already."""
    memory = device.capabilities.memory
    if posed is None:
        return plan_memory(plan_inputs(assembled, resolved, memory))
    spare = int(memory.available_bytes * _HOST_SHARE)
    inputs = replace(
        plan_inputs(assembled, resolved, replace(memory, available_bytes=spare)),
        request=MemoryRequest(MemoryMode.SIZE, spare),
    )
    try:
        return _with_blocks_of(posed.plan, plan_memory(inputs))
    except MemoryPlanError as error:
        raise MemoryPlanError(
            f"{posed.capabilities.name} would hold it, but the reference kernels run in this "
            f"host's memory, which --memory does not change here: {error.message}"
        ) from error


def _with_blocks_of(posed: MemoryPlan, plan: MemoryPlan) -> MemoryPlan:
    """No more KV blocks than the posed device has, so that scheduling is as it would be there."""
    num_blocks = min(posed.num_blocks, plan.num_blocks)
    kv_bytes = plan.kv_bytes // plan.num_blocks * num_blocks
    unused_bytes = plan.unused_bytes + plan.kv_bytes - kv_bytes
    return replace(plan, num_blocks=num_blocks, kv_bytes=kv_bytes, unused_bytes=unused_bytes)


def _place_threads(config: EngineConfig, device: Device) -> Choice:
    """Of this process: how many threads run its kernels, and where; raises ConfigError.

    torch's kernels and the native ones both ask torch for the number.
    """
    import torch

    from hal.kernels.cpu.threads import PLACEMENT

    caps, wanted = device.capabilities, config.cpu_affinity
    if caps.is_accelerator and wanted not in (AUTO, NONE):
        raise UnsupportedError(
            f"not supported yet: cpu_affinity={wanted!r} for {caps.name}, whose kernels run on no "
            "CPU; leave it at auto, or start this process under taskset"
        )
    cpus = () if caps.is_accelerator else allowed_cpus()
    chosen = choose_affinity(wanted, config.threads, torch.get_num_threads(), cpus)
    if (num_threads := config.threads or chosen.num_threads) is not None:
        torch.set_num_threads(num_threads)
    if chosen.process is not None:
        os.sched_setaffinity(0, chosen.process)
    if not caps.is_accelerator:
        PLACEMENT.bind(chosen.workers, chosen.num_nodes, is_asked_for=wanted != AUTO)
    return Choice("cpu_affinity", chosen.value, chosen.reason)


def _log_choices(opened: Opened, resolved: ResolvedConfig) -> None:
    _logger.info("device %s: %s", opened.spec, opened.reason)
    for choice in resolved.choices:
        _logger.info("%s %s: %s", choice.name, choice.value, choice.reason)


def _log_emulation(caps: Capabilities, selector: Selector) -> None:
    """What does not run native, once at start; loudly on an accelerator, where it surprises."""
    level = logging.WARNING if caps.is_accelerator else logging.INFO
    for line in emulation_ledger(site_reports(selector, evidence_of)):
        _logger.log(level, "%s: %s", caps.name, line)


def _pack_cache(config: EngineConfig, device: Device) -> PackCache | None:
    """Where packed weights are kept; None where the user says so, or has no home for them."""
    folder = cache_folder(environment()) if config.cache else None
    if folder is None:
        return None
    caps = device.capabilities
    return PackCache(
        folder,
        device=device_label(caps),
        release=hal.__version__,
        num_threads=config.threads or caps.compute_units,
    )


def _load(
    assembled: Assembled,
    device: Device,
    plan: MemoryPlan,
    reader: CheckpointReader,
    progress: Progress,
    cache: PackCache | None,
) -> str:
    """Where the weights came from."""
    assembled.decoder.parameters.allocate(device)
    assembled.binder.arena.allocate(device)
    assembled.runner.start(plan.num_blocks)
    weights = load_weights(assembled.decoder.parameters, reader, progress, cache=cache)
    assembled.runner.warm_up()
    device.synchronize()  # what loading left in flight fails here, not in the first step
    return weights


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
        cache=resolved.cache_policy,
        chunked_prefill=resolved.chunked_prefill,
        static_batching=resolved.config.static_batching,
    )
