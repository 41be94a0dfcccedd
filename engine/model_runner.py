"""Runs batches on one device: block tables per slot, the forward pass, then sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hal import opset
from hal.binding import Binder
from hal.dtypes import DType
from hal.engine.batch import Batch, Pools
from hal.engine.block_swapper import BlockSwapper, PendingSwaps
from hal.engine.decode_graphs import DecodeGraphs, graphs_bytes
from hal.engine.executor import PendingStep
from hal.engine.hidden_states import PendingHiddenStates
from hal.engine.layers.decoder import Decoder, LogitsScratch, Step
from hal.engine.step_inputs import DecodeMemory, DecodeShape, StepInputs, upload_inputs
from hal.engine.token_sampler import TokenSampler
from hal.opset.attention import AttentionFamily
from hal.opset.indexing import TokenProblem
from hal.tensor import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """Sizes fixed at start-up."""

    max_num_seqs: int
    max_model_len: int
    block_size: int
    vocab_size: int
    hidden_size: int
    dtype: DType


class ModelRunner:
    """An in-process Executor. Declares its buffers when made; `start` gives it the KV pool."""

    def __init__(self, decoder: Decoder, binder: Binder, config: RunnerConfig) -> None:
        self._decoder = decoder
        self._binder = binder
        self._config = config
        self._take: Callable[..., None] = binder.bind(opset.take_tokens, TokenProblem())
        self._token_ids = binder.arena.buffer("token_ids", (), DType.INT32)
        rows, width = config.max_num_seqs, config.hidden_size
        self._scratch = LogitsScratch(
            delta=binder.arena.buffer("sampled_delta", width, config.dtype, rows=rows),
            residual=binder.arena.buffer("sampled_residual", width, config.dtype, rows=rows),
        )
        self.sampler = TokenSampler(binder, config.vocab_size, config.max_num_seqs)
        self._block_table = np.zeros((0, 0), dtype=np.int32)  # planning makes runners, too
        self._kv_caches: tuple[Tensor, ...] = ()
        self._hidden_sums: dict[int, NDArray[np.float64]] = {}
        self._num_blocks = 0
        self._swapper: BlockSwapper | None = None
        self._families = _distinct(decoder.attention_families)
        self.uses_graphs = False  # set before `start`, once every kernel is known to allow it
        self._graphs: DecodeGraphs | None = None

    @property
    def max_num_seqs(self) -> int:
        return self._config.max_num_seqs

    @property
    def vocab_size(self) -> int:
        return self._config.vocab_size

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def kv_caches(self) -> tuple[Tensor, ...]:
        """Each layer's cache; empty before `start`."""
        return self._kv_caches

    @property
    def graphs_bytes(self) -> int:
        """Of recorded decode steps with their inputs; 0 where steps run eagerly."""
        if not self.uses_graphs:
            return 0
        num_layers = len(self._decoder.layers)
        return graphs_bytes(self._binder.selector.caps, self.decode_shape, num_layers)

    @property
    def graphs(self) -> DecodeGraphs | None:
        """None where steps run eagerly, and before `start`."""
        return self._graphs

    @property
    def decode_shape(self) -> DecodeShape:
        """Of the largest step that could be captured."""
        config = self._config
        return DecodeShape(
            num_rows=config.max_num_seqs,
            max_blocks=-(-config.max_model_len // config.block_size),
            block_size=config.block_size,
        )

    def start(self, num_blocks: int, num_swap_blocks: int = 0) -> None:
        """Allocate every layer's KV cache of `num_blocks` blocks, and the swap space; batches may
        follow.

        Forgets all graphs: call it again after weights or buffers were allocated anew.
        """
        device, shape = self._binder.device, self.decode_shape
        self._block_table = np.zeros((shape.num_rows, shape.max_blocks), dtype=np.int32)
        self._num_blocks = num_blocks
        self._kv_caches = tuple(
            device.empty(family.kv_shape(num_blocks), family.problem.kv_storage)
            for family in self._decoder.attention_families
        )
        if num_swap_blocks:
            families = self._decoder.attention_families
            self._swapper = BlockSwapper(device, families, num_swap_blocks)
        if self.uses_graphs:
            memory = DecodeMemory(device, shape)
            self._graphs = DecodeGraphs(memory, run=self._run, plan=self._plan)

    def warm_up(self) -> None:
        """Capture what is captured before the first request; after loading."""
        if self._graphs is not None:
            self._graphs.warm_up()

    def submit(self, batch: Batch) -> PendingStep:
        """Run one step; the tokens may be waited for later."""
        self._update_tables(batch)
        swap_s = self._move_blocks(batch)
        if not self._try_graph(batch):
            device, block_size = self._binder.device, self._config.block_size
            step = upload_inputs(device, batch, self._block_table, block_size)
            self._plan(step)
            self._run(step)
        pending: PendingStep = self.sampler.run(batch.sampling, batch.sample_slots)
        if batch.pools is not None:
            pending = self._with_hidden(pending, batch, batch.pools)
        return PendingSwaps(pending, swap_s) if batch.swaps is not None else pending

    def _with_hidden(self, step: PendingStep, batch: Batch, pools: Pools) -> PendingStep:
        has_means = len(pools.chunks) > 0
        return PendingHiddenStates(
            step=step,
            sample_slots=batch.sample_slots,
            pools=pools,
            download=self._binder.device.download,
            # The logits were made from them: the final norm has written over the delta.
            sampled=self._scratch.delta.rows(batch.num_samples),
            every=self._decoder.hidden_states(batch.num_tokens) if has_means else None,
            sums=self._hidden_sums,
        )

    def _try_graph(self, batch: Batch) -> bool:
        if self._graphs is None or self._decoder.has_replaced_layers:
            return False
        return self._graphs.try_step(batch, self._block_table)

    def _update_tables(self, batch: Batch) -> None:
        updates = batch.block_updates
        if len(updates):
            self._block_table[updates[:, 0], updates[:, 1]] = updates[:, 2]

    def _move_blocks(self, batch: Batch) -> float:
        """Seconds that the swaps took."""
        swap_s = 0.0
        if batch.swaps is not None:
            assert self._swapper is not None, "a scheduler with a swap space, a runner without"
            swap_s = self._swapper.swap(batch.swaps, self._kv_caches)
        if len(batch.block_copies):
            for family, kv in zip(self._decoder.attention_families, self._kv_caches, strict=True):
                family.copy_blocks(kv, kv, batch.block_copies)
        return swap_s

    def _plan(self, inputs: StepInputs) -> None:
        for family in self._families:
            family.plan(inputs.meta)

    def _run(self, inputs: StepInputs) -> None:
        """From token ids to logits: what a graph holds. Decoding sequences take the token that
        never left the device."""
        num_tokens, num_samples = inputs.num_tokens, inputs.num_samples
        token_ids = self._token_ids.rows(num_tokens)
        last_tokens = self.sampler.last_tokens.rows(self.max_num_seqs)
        self._take(inputs.token_ids, inputs.slots, last_tokens, token_ids)
        self._decoder.forward(token_ids, Step(num_tokens, inputs.positions, self._kv_caches))
        if num_samples:
            logits = self.sampler.logits.rows(num_samples)
            self._decoder.logits(inputs.sample_index, num_tokens, self._scratch, logits)


def _distinct(families: Sequence[AttentionFamily]) -> tuple[AttentionFamily, ...]:
    """Layers share families: each plans once a step."""
    return tuple({id(family): family for family in families}.values())
