"""What a model takes on a device, as inputs of the one memory plan that start-up uses too.

Two bases. "engine" assembles the model with the device's kernels and sums exactly what start-up
allocates. "config" derives the shapes from config.json, for what this version cannot assemble:
several devices, checkpoints that come quantised, architectures without a model file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from hal.assembly import (
    NUM_NULL_BLOCKS,
    assemble,
    make_selector,
    plan_inputs,
    selection_policy,
)
from hal.collective import Collective, SingleRank
from hal.config import AUTO, ResolvedConfig, resolve
from hal.device import MemoryKind
from hal.dtypes import DType
from hal.engine.model_config import ModelConfig
from hal.errors import ConfigError, SelectionError
from hal.kv import KV_SCALE_BYTES, peak_blocks
from hal.memory import PlanInputs, memory_budget
from hal.planning.model import PlannedModel
from hal.planning.parallel import COLLECTIVE_BYTES, PlannedRank
from hal.planning.quantization import Scheme, planned_scheme, weight_bytes
from hal.planning.settings import PlanSettings
from hal.planning.shape import KVLayers
from hal.planning.target import PlanDevice
from hal.sampling_params import MAX_LOGPROBS
from hal.select import Selector
from hal.weights import UNQUANTIZED


class Basis(StrEnum):
    """Where the sizes come from."""

    ENGINE = "engine"
    CONFIG = "config"


@dataclass(frozen=True, slots=True)
class KVPool:
    """Layers whose blocks come and go together: bytes of one block of all of them, one rank."""

    bytes_per_block: int
    window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """What the memory plan adds up for one device, and what it was derived from."""

    basis: Basis
    inputs: PlanInputs
    resolved: ResolvedConfig
    pools: tuple[KVPool, ...]

    @property
    def fits(self) -> bool:
        return self.inputs.needed_bytes <= memory_budget(self.inputs)

    def sequence_bytes(self, num_tokens: int) -> int:
        """KV bytes that one sequence of that length holds at most."""
        block_size, chunk = self.resolved.block_size, self.resolved.max_num_batched_tokens
        return sum(
            pool.bytes_per_block * peak_blocks(num_tokens, block_size, pool.window, chunk)
            for pool in self.pools
        )


@dataclass(slots=True)
class Sizer:
    """Sizes of one model on any device. Settings are the question; nothing is allocated."""

    model: PlannedModel
    _selectors: dict[str, Selector] = field(default_factory=dict)

    def basis(self, settings: PlanSettings, device: PlanDevice) -> Basis:
        """ENGINE for what this version could start on such a device."""
        is_known = self.model.engine is not None and bool(device.kind)
        can_share = settings.tp in (None, 1) or self._has_ranks(settings, device)
        return Basis.ENGINE if is_known and can_share else Basis.CONFIG

    def _has_ranks(self, settings: PlanSettings, device: PlanDevice) -> bool:
        """Whether this version could start several of them."""
        has_experts = self.model.engine is not None and self.model.engine.experts is not None
        return is_host(device) and not has_experts and settings.quantization == UNQUANTIZED

    def size(self, settings: PlanSettings, device: PlanDevice, *, is_exact: bool = False) -> Sized:
        """Raises ConfigError for settings that contradict the model, before any size is known.

        is_exact: assemble all layers; else one stands for all, which is quicker and adds up to
        the same. settings.tp is the number of devices by now.
        """
        engine, basis = self.model.engine, self.basis(settings, device)
        config = settings.engine_config()
        resolved = resolve(config, device.capabilities, self.model.limits)
        if engine is not None and basis is Basis.ENGINE:
            return self._engine(engine, settings, device, resolved, is_exact)
        return size_from_config(self.model, settings, device, resolved)

    def selector(self, device: PlanDevice) -> Selector | None:
        """What was chosen for `device` so far; None where only shapes were sized."""
        return self._selectors.get(device.name)

    def _engine(
        self,
        engine: ModelConfig,
        settings: PlanSettings,
        device: PlanDevice,
        resolved: ResolvedConfig,
        is_exact: bool,
    ) -> Sized:
        if device.name not in self._selectors:
            policy = selection_policy(resolved.config)
            self._selectors[device.name] = make_selector(
                device.capabilities, policy, is_present=device.is_present
            )
        tp = settings.tp or 1
        parts = _Assembling(engine, device, resolved, self._selectors[device.name], tp)
        inputs = parts.inputs(engine.num_layers) if is_exact else parts.extrapolated()
        inputs = replace(inputs, min_num_seqs=settings.concurrency or 1)
        pool = KVPool(inputs.kv_bytes_per_block, engine.windows[0])
        return Sized(basis=Basis.ENGINE, inputs=inputs, resolved=resolved, pools=(pool,))


def is_host(device: PlanDevice) -> bool:
    """Whether its ranks are processes that share one memory."""
    return device.capabilities.memory.kind is MemoryKind.HOST


@dataclass(frozen=True, slots=True)
class _Assembling:
    """The engine's own assembly for a device that need not be there."""

    engine: ModelConfig
    device: PlanDevice
    resolved: ResolvedConfig
    selector: Selector
    tp: int

    def inputs(self, num_layers: int) -> PlanInputs:
        """Of its first layers."""
        return self._inputs(range(num_layers))

    def extrapolated(self) -> PlanInputs:
        """Layers are alike, or of two kinds, and share the step's buffers: what one more of a kind
        adds, each of it adds."""
        kinds = Counter(map(self.engine.has_experts, range(self.engine.num_layers)))
        first = [self._first(has_experts) for has_experts in kinds]
        base = self._inputs(first)
        weights_bytes, graphs_bytes = base.weights_bytes, base.graphs_bytes
        for layer, count in zip(first, kinds.values(), strict=True):
            if count > 1:
                more = self._inputs([*first, layer])
                weights_bytes += (count - 1) * (more.weights_bytes - base.weights_bytes)
                graphs_bytes += (count - 1) * (more.graphs_bytes - base.graphs_bytes)
        return replace(
            base,
            weights_bytes=weights_bytes,
            graphs_bytes=graphs_bytes,
            kv_bytes_per_block=base.kv_bytes_per_block // len(first) * self.engine.num_layers,
        )

    def _first(self, has_experts: bool) -> int:
        layers = range(self.engine.num_layers)
        return next(i for i in layers if self.engine.has_experts(i) is has_experts)

    def _inputs(self, layers: Sequence[int]) -> PlanInputs:
        """Of a model that has these layers, some of them perhaps twice."""
        model = self.engine.of_layers(layers)
        ranks: Collective = SingleRank() if self.tp == 1 else PlannedRank(self.tp)
        try:
            assembled = assemble(model, self.resolved, self.selector, ranks, None)
        except SelectionError as error:
            raise ConfigError(error.message, code=error.code) from error
        inputs = plan_inputs(assembled, self.resolved, self.device.capabilities.memory)
        return inputs if self.tp == 1 else inputs.of_rank(self.tp, ranks.num_bytes)


def scheme_of(model: PlannedModel, settings: PlanSettings) -> Scheme | None:
    """How weights are stored; raises ConfigError where that is asked for twice."""
    planned = planned_scheme(settings.quantization)
    if planned is not None and model.stored is not None:
        raise ConfigError(
            f"the checkpoint is quantised already ({model.stored.name}); leave --quantization out"
        )
    return planned or model.stored


def kv_token_bytes(layers: KVLayers, tp: int, dtype: DType, kv: str) -> int:
    """One token in one layer on one rank; codes have a scale a head for keys and values."""
    elements = layers.elements_per_token(tp)
    if kv == AUTO:
        return dtype.num_bytes(elements)
    sides = 2 if layers.value_dim else 1
    return elements + KV_SCALE_BYTES * sides * layers.rank_heads(tp)


def size_from_config(
    model: PlannedModel, settings: PlanSettings, device: PlanDevice, resolved: ResolvedConfig
) -> Sized:
    """The "config" basis: bytes of one rank of settings.tp."""
    shape, tp = model.shape, settings.tp or 1
    scheme = scheme_of(model, settings)
    weights = sum(weight_bytes(w, tp, resolved.dtype, scheme) for w in shape.weights)
    pools = _pools(shape.kv, tp, settings, resolved)
    block_size, chunk = resolved.block_size, resolved.max_num_batched_tokens
    length = resolved.max_model_len
    per_block, blocks = 0, 0
    if len(pools) == 1:
        per_block = pools[0].bytes_per_block
        blocks = peak_blocks(length, block_size, pools[0].window, chunk)
    elif pools:
        # Layers that keep different lengths: an average block, exact for a sequence of full length.
        whole = -(-length // block_size)
        total = sum(
            p.bytes_per_block * peak_blocks(length, block_size, p.window, chunk) for p in pools
        )
        per_block, blocks = -(-total // whole), whole
    inputs = PlanInputs(
        memory=device.capabilities.memory,
        request=resolved.memory,
        weights_bytes=weights + DType.FLOAT32.num_bytes(length * shape.rotary_dim),
        activation_bytes=_activation_bytes(model, tp, resolved),
        logits_bytes=2 * DType.FLOAT32.num_bytes(resolved.max_num_seqs * shape.vocab_size),
        kv_bytes_per_block=per_block,
        block_size=block_size,
        max_model_len=length,
        max_num_seqs=resolved.max_num_seqs,
        communicator_bytes=_communicator_bytes(model, tp, resolved),
        num_extra_blocks=NUM_NULL_BLOCKS if pools else 0,
        blocks_per_seq=blocks,
        min_num_seqs=settings.concurrency or 1,
    )
    return Sized(basis=Basis.CONFIG, inputs=inputs, resolved=resolved, pools=pools)


def _pools(
    kv: tuple[KVLayers, ...], tp: int, settings: PlanSettings, resolved: ResolvedConfig
) -> tuple[KVPool, ...]:
    """Layers with one window share a pool."""
    by_window: dict[int | None, int] = {}
    for layers in kv:
        size = kv_token_bytes(layers, tp, resolved.dtype, settings.kv) * layers.count
        by_window[layers.window] = by_window.get(layers.window, 0) + size
    return tuple(KVPool(size * resolved.block_size, window) for window, size in by_window.items())


def _activation_bytes(model: PlannedModel, tp: int, resolved: ResolvedConfig) -> int:
    """The step's buffers as the composed kernels declare them."""
    shape, dtype = model.shape, resolved.dtype
    tokens, rows = resolved.max_num_batched_tokens, resolved.max_num_seqs
    has_positions = any(weight.name == "positions" for weight in shape.weights)
    hidden = (4 if has_positions else 3) * shape.hidden_size
    width = hidden + sum(-(-size // tp) for size in shape.dense_widths) + sum(shape.whole_widths)
    sampled = rows * (4 + 2 * MAX_LOGPROBS)  # token, logprob, rank and the top ones
    return dtype.num_bytes(tokens * width + 2 * rows * shape.hidden_size) + DType.INT32.num_bytes(
        tokens + sampled
    )


def _communicator_bytes(model: PlannedModel, tp: int, resolved: ResolvedConfig) -> int:
    """Staging of one all-reduce, and what a collective library keeps."""
    if tp == 1:
        return 0
    staged = resolved.max_num_batched_tokens * model.shape.hidden_size
    return COLLECTIVE_BYTES + 2 * resolved.dtype.num_bytes(staged)
