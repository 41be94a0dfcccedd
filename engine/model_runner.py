"""Runs batches on one device: block tables per slot, the forward pass, then sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hal import opset
from hal.binding import Binder
from hal.dtypes import DType
from hal.engine.batch import Batch
from hal.engine.layers.decoder import Decoder, LogitsScratch, Step
from hal.engine.token_sampler import PendingTokens, TokenSampler
from hal.opset.attention import AttentionFamily, AttentionMeta
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
        self._num_blocks = 0
        self._families = _distinct(decoder.attention_families)

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

    def start(self, num_blocks: int) -> None:
        """Allocate every layer's KV cache of `num_blocks` blocks; batches may follow."""
        device, config = self._binder.device, self._config
        max_blocks = -(-config.max_model_len // config.block_size)
        self._block_table = np.zeros((config.max_num_seqs, max_blocks), dtype=np.int32)
        self._num_blocks = num_blocks
        self._kv_caches = tuple(
            device.empty(family.kv_shape(num_blocks), family.problem.kv_dtype)
            for family in self._decoder.attention_families
        )

    def submit(self, batch: Batch) -> PendingTokens:
        """Run one step; the tokens may be waited for later."""
        self._update_tables(batch)
        meta = self._attention_meta(batch)
        for family in self._families:
            family.plan(meta)
        token_ids = self._take_token_ids(batch)
        upload = self._binder.device.upload
        step = Step(batch.num_tokens, upload(batch.positions), self._kv_caches)
        self._decoder.forward(token_ids, step)
        logits = self.sampler.logits.rows(batch.num_samples)
        if batch.num_samples:
            sample_index = upload(batch.sample_index)
            self._decoder.logits(sample_index, batch.num_tokens, self._scratch, logits)
        return self.sampler.run(batch.sampling, upload(batch.sample_slots))

    def _update_tables(self, batch: Batch) -> None:
        updates = batch.block_updates
        self._block_table[updates[:, 0], updates[:, 1]] = updates[:, 2]
        if len(batch.block_copies):
            for family, kv in zip(self._decoder.attention_families, self._kv_caches, strict=True):
                family.copy_blocks(kv, batch.block_copies)

    def _attention_meta(self, batch: Batch) -> AttentionMeta:
        block_size = self._config.block_size
        table = self._block_table[batch.slots]
        num_used = -(-int(batch.seq_lens.max()) // block_size)
        table = np.ascontiguousarray(table[:, :num_used])
        rows = np.repeat(np.arange(batch.num_seqs), batch.q_lens)
        blocks = table[rows, batch.positions // block_size].astype(np.int64)
        slot_mapping = blocks * block_size + batch.positions % block_size
        cu_seqlens_q = np.zeros(batch.num_seqs + 1, dtype=np.int32)
        np.cumsum(batch.q_lens, out=cu_seqlens_q[1:])
        upload = self._binder.device.upload
        return AttentionMeta(
            cu_seqlens_q=cu_seqlens_q,
            seq_lens=batch.seq_lens,
            block_table=table,
            slot_mapping=slot_mapping,
            cu_seqlens_q_device=upload(cu_seqlens_q),
            seq_lens_device=upload(batch.seq_lens),
            block_table_device=upload(table),
            slot_mapping_device=upload(slot_mapping),
        )

    def _take_token_ids(self, batch: Batch) -> Tensor:
        """Token ids of the step; decoding sequences take the token that never left the device."""
        upload = self._binder.device.upload
        out = self._token_ids.rows(batch.num_tokens)
        last_tokens = self.sampler.last_tokens.rows(self.max_num_seqs)
        slots = np.repeat(batch.slots, batch.q_lens)
        self._take(upload(batch.token_ids), upload(slots), last_tokens, out)
        return out


def _distinct(families: Sequence[AttentionFamily]) -> tuple[AttentionFamily, ...]:
    """Layers share families: each plans once a step."""
    return tuple({id(family): family for family in families}.values())
