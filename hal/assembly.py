"""A model bound to kernels with nothing allocated: what start-up sizes, and what planning sizes.

`hal.build` assembles for the device it has opened. For a device that is absent the same code runs
with `device=None`, so that a plan and a start-up cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import hal.kernels
from hal import opset
from hal.binding import Arena, Binder
from hal.collective import Collective
from hal.config import NO_CAPTURE, EngineConfig, ResolvedConfig
from hal.device import Capabilities, Device, Feature, Memory
from hal.engine.layers.builder import Builder, BuildOptions
from hal.engine.layers.decoder import Decoder
from hal.engine.model_config import ModelConfig
from hal.engine.model_runner import ModelRunner, RunnerConfig
from hal.engine.models import MODELS
from hal.engine.scheduler_config import check_swap
from hal.engine.slots import slots_bytes
from hal.errors import ConfigError, UnsupportedError
from hal.kv import KVGroup, group_layers, peak_blocks
from hal.memory import PlanInputs
from hal.select import SelectionPolicy, Selector

NUM_NULL_BLOCKS = 1

# Loading, and sampling, which runs eagerly behind a graph.
_NOT_IN_GRAPHS = frozenset(
    op.name
    for op in (
        opset.store,
        opset.adjust_logits,
        opset.mask_logits,
        opset.sample,
        opset.logprobs,
        opset.keep_tokens,
    )
)


@dataclass(frozen=True, slots=True)
class Assembled:
    """A model bound to kernels, nothing allocated yet; `binder.selector` says which and why.

    resolved: with graphs off where a chosen kernel cannot be captured
    """

    decoder: Decoder
    runner: ModelRunner
    binder: Binder
    kv_group: KVGroup
    resolved: ResolvedConfig


def selection_policy(config: EngineConfig) -> SelectionPolicy:
    """The user's wishes on kernels."""
    return SelectionPolicy(
        overrides=config.kernel_overrides,
        strict=config.strict,
        deterministic=config.deterministic,
    )


def make_selector(
    caps: Capabilities, policy: SelectionPolicy, *, is_present: bool = True
) -> Selector:
    """A Selector that knows every kernel: it checks --kernel against those that are registered."""
    hal.kernels.register_all()
    return Selector(caps, policy, is_present=is_present)


def assemble(
    model: ModelConfig,
    resolved: ResolvedConfig,
    selector: Selector,
    collective: Collective,
    device: Device | None,
) -> Assembled:
    """Choose a kernel for every site of the model and declare every buffer.

    device: None where the one that `selector` chooses for is absent; nothing can run then.
    Raises SelectionError, ConfigError for an illegal block size, UnsupportedError.
    """
    binder = Binder(selector, Arena(resolved.max_num_batched_tokens), device)
    options = BuildOptions(
        dtype=resolved.dtype,
        block_size=resolved.block_size,
        max_model_len=resolved.max_model_len,
        max_num_seqs=resolved.max_num_seqs,
        deterministic=resolved.config.deterministic,
        weights=resolved.weights,
        head_weights=resolved.head_weights,
        kv_dtype=resolved.kv_dtype,
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
    resolved = _settle_graphs(resolved, binder, collective)
    runner.uses_graphs = resolved.use_graphs
    return Assembled(decoder, runner, binder, _only_group(decoder), resolved)


def plan_inputs(assembled: Assembled, resolved: ResolvedConfig, memory: Memory) -> PlanInputs:
    """What the memory plan adds up for this assembly on a device with this memory."""
    logits_bytes = assembled.runner.sampler.logits_bytes
    if resolved.swap_bytes:
        check_swap(assembled.kv_group.spec.window, resolved.prefix_caching)
    return PlanInputs(
        memory=memory,
        request=resolved.memory,
        weights_bytes=assembled.decoder.parameters.num_bytes,
        activation_bytes=assembled.binder.arena.num_bytes - logits_bytes,
        logits_bytes=logits_bytes,
        graphs_bytes=assembled.runner.graphs_bytes,
        kv_bytes_per_block=assembled.kv_group.bytes_per_block(resolved.block_size),
        block_size=resolved.block_size,
        max_model_len=resolved.max_model_len,
        max_num_seqs=resolved.max_num_seqs,
        num_extra_blocks=NUM_NULL_BLOCKS,
        swap_bytes=resolved.swap_bytes,
        bookkeeping_bytes=slots_bytes(resolved.max_num_seqs, resolved.max_model_len),
        blocks_per_seq=peak_blocks(
            resolved.max_model_len,
            resolved.block_size,
            assembled.kv_group.spec.window,
            resolved.max_num_batched_tokens,
        ),
    )


def _settle_graphs(
    resolved: ResolvedConfig, binder: Binder, collective: Collective
) -> ResolvedConfig:
    """Graphs stay on where the device that runs has them and every kernel between token ids and
    logits can be captured."""
    caps = binder.selector.caps
    if not resolved.use_graphs:
        return resolved
    if Feature.GRAPHS not in caps.features:
        return resolved.without_graphs(NO_CAPTURE.format(caps.name))
    if not collective.is_capturable:
        return resolved.without_graphs(f"sums of ranks by {collective.name} cannot be captured")
    for selection in binder.selections:
        kernel = selection.kernel
        if selection.op not in _NOT_IN_GRAPHS and not kernel.traits.is_capturable(caps):
            return resolved.without_graphs(
                f"{selection.op} runs {kernel.name}, which cannot be captured on {caps.name}"
            )
    return resolved


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
