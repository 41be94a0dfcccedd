"""Graphs as accelerators have them: some sizes, captured before the first request, and padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from recorded_accelerator import H100
from stream_capture import CapturingAccelerator

import hal.kernels
from hal.conform.engine_model import load
from hal.conform.run import model_run
from hal.conformance.model_checks import GRAPHS
from hal.conformance.tiny_models import make_model
from hal.devices import cuda
from hal.devices.torch_accelerator import TorchAccelerator
from hal.dtypes import DType
from hal.errors import UnsupportedError
from hal.kernels.reference.attention import ReferenceAttention
from hal.kernels.reference.tensors import as_torch
from hal.opset import attention
from hal.opset.attention import AttentionMeta
from hal.select import OPS, Kernel, Traits
from hal.tensor import Tensor

hal.kernels.register_all()


class PaddedAttention(ReferenceAttention):
    """Steps of one token a sequence read everything from the device, whole tables at a time."""

    def plan(self, meta: AttentionMeta) -> None:
        self._meta = meta

    def write_kv(self, qkv: Tensor, kv: Tensor) -> None:
        slots = as_torch(self._meta.slot_mapping_device)
        self._write_blocks = slots // self.problem.block_size
        self._write_offsets = slots % self.problem.block_size
        super().write_kv(qkv, kv)

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        if self._meta.num_tokens != self._meta.num_seqs:
            super().attend(qkv, kv, out)
            return
        p, cache = self.problem, as_torch(kv)
        table = as_torch(self._meta.block_table_device).clamp(0, len(cache) - 1)
        lens = as_torch(self._meta.seq_lens_device)
        stored = cache.index_select(0, table.flatten())
        # [keys and values, num_seqs, kv_heads, max_keys, head_dim]
        rows = stored.view(*table.shape, 2, p.num_kv_heads, p.block_size, p.head_dim)
        keys, values = rows.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).float()
        q = as_torch(qkv)[:, : self._q_width].view(len(lens), p.num_kv_heads, -1, p.head_dim)
        position = torch.arange(keys.shape[2])
        is_seen = position < lens[:, None]
        if p.spec.window is not None:
            is_seen = is_seen & (position >= lens[:, None] - p.spec.window)
        scores = q.float() @ keys.transpose(2, 3) * p.spec.scale
        weights = scores.masked_fill(~is_seen[:, None, None], float("-inf")).softmax(-1)
        values = torch.where(is_seen[:, None, :, None], values, 0.0)
        as_torch(out).copy_((weights @ values).reshape(len(lens), -1))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchAccelerator]:
    rejects = OPS["attention"].kernels["sdpa"].traits.rejects
    traits = Traits(preference=200, capturable=True, rejects=rejects)
    kernel = Kernel("attention", "padded", traits, PaddedAttention, PaddedAttention)
    monkeypatch.setitem(attention.kernels, "padded", kernel)
    api = CapturingAccelerator()
    capabilities = cuda.capabilities(H100, api.free_bytes, "0.0")
    yield TorchAccelerator(capabilities, 0, api, "cpu")


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_padded_replays_are_right(model_type: str, card: TorchAccelerator) -> None:
    run = model_run(model_type, DType.FLOAT32, card, is_quick=True)
    assert [str(record) for record in run.records if not record.has_passed] == []
    (record,) = (r for r in run.records if r.case == GRAPHS)
    assert record.checks and not record.skipped


def test_every_size_is_captured_before_the_first_request(card: TorchAccelerator) -> None:
    loaded = load(make_model("llama", DType.FLOAT32), card)
    runner = loaded.model._assembled.runner
    runner.warm_up()
    assert loaded.model.num_graphs() == len({1, 2, 4, 8, 16, 32, 64, 128, runner.max_num_seqs})
    assert runner.graphs is not None and runner.graphs.refusal is None
    loaded.model.poison()
    runner.warm_up()
    untouched = [np.isnan(card.download(kv)[1:]).all() for kv in runner.kv_caches]
    assert all(untouched), "padding wrote outside of the null block"


def test_torchs_attention_turns_graphs_off(card: TorchAccelerator) -> None:
    del attention.kernels["padded"]
    resolved = load(make_model("llama", DType.FLOAT32), card).resolved
    (choice,) = (c for c in resolved.choices if c.name == "graphs")
    assert choice.value == "off"
    assert choice.reason.startswith("attention runs sdpa, which cannot be captured on NVIDIA H100")


def test_a_host_read_within_a_capture_is_a_typed_error(card: TorchAccelerator) -> None:
    x = torch.ones(3)
    with pytest.raises(UnsupportedError, match="not permitted when stream is capturing"):
        card.capture(lambda: print(x.sum().item()))


def test_a_replay_reads_what_lies_there_by_then(card: TorchAccelerator) -> None:
    x, y = torch.zeros(2), torch.zeros(2)

    def double() -> None:
        torch.mul(x, 2, out=y)

    replay = card.capture(double)
    card.upload(np.array([3, 4], np.float32), into=x)
    replay()
    assert y.tolist() == [6, 8]
