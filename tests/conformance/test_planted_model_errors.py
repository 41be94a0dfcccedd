"""Errors that only a whole model meets: each must be caught by the schedule that is meant to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from hal.binding import Binder
from hal.conform.run import model_run
from hal.conformance.model_checks import OWN_TOKENS, SCHEDULES
from hal.devices.null import NullDevice
from hal.dtypes import DType
from hal.kernels import register_all
from hal.kernels.reference.attention import ReferenceAttention
from hal.kernels.reference.indexing import keep_tokens_reference
from hal.kernels.reference.linear import ReferenceLinear
from hal.kernels.reference.norm import rms_norm_reference
from hal.kernels.reference.rope import qk_norm_rope_reference
from hal.kernels.reference.sampling import sample_reference
from hal.kernels.reference.tensors import as_torch
from hal.opset.attention import AttentionMeta, AttentionProblem, RopeProblem
from hal.opset.sampling import SamplingInputs
from hal.select import OPS, Kernel, Traits
from hal.tensor import Tensor

register_all()

EVERY = frozenset({*SCHEDULES, OWN_TOKENS})
LAYERS = frozenset({"layer 0", "layer 1"})


class WindowOneTooWide(ReferenceAttention):
    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        wider = replace(problem.spec, window=(problem.spec.window or 0) + 1)
        super().__init__(replace(problem, spec=wider), binder)


class WritesTheNextSlot(ReferenceAttention):
    """Off by one within the block."""

    def plan(self, meta: AttentionMeta) -> None:
        super().plan(meta)
        self._write_offsets = (self._write_offsets + 1) % self.problem.block_size


class IgnoresTheBlockTable(ReferenceAttention):
    """As if blocks lay in order: right for whoever is alone in a fresh pool."""

    def plan(self, meta: AttentionMeta) -> None:
        super().plan(meta)
        in_order = torch.arange(meta.block_table.shape[1], dtype=torch.int32)
        self._meta = replace(meta, block_table_device=in_order.repeat(meta.num_seqs, 1))


class ReadsEveryTableEntry(ReferenceAttention):
    """Touches a slot behind the sequence and trusts a weight of zero, which NaN survives."""

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        super().attend(qkv, kv, out)
        last = self._meta.block_table[:, -1].tolist()
        as_torch(out).add_(0.0 * as_torch(kv)[last, 1, :, -1, 0].sum())


class CopiesNothing(ReferenceAttention):
    def copy_blocks(self, kv: Tensor, out: Tensor, pairs: Any) -> None:
        return None


class AttendsTheChunkOnly(ReferenceAttention):
    """Forgets the context before this step's tokens."""

    def plan(self, meta: AttentionMeta) -> None:
        super().plan(meta)
        self._q_lens = np.diff(meta.cu_seqlens_q)

    def _attend_one(self, queries: torch.Tensor, cache: torch.Tensor, seq: int) -> torch.Tensor:
        problem = self.problem
        narrow = replace(problem.spec, window=int(self._q_lens[seq]))
        self.problem = replace(problem, spec=narrow)
        result = super()._attend_one(queries, cache, seq)
        self.problem = problem
        return result


class KeepsTheLastBatch(ReferenceLinear):
    """Adds what is left in a scratch buffer from the call before."""

    def __call__(self, x: Tensor, out: Tensor) -> None:
        super().__call__(x, out)
        left = getattr(self, "_left", 0.0)
        self._left = float(as_torch(out)[-1, 0])
        as_torch(out).add_(1e-2 * left)


class DependsOnItsNeighbours(ReferenceLinear):
    """Far within every limit, and other bits in another batch."""

    def __call__(self, x: Tensor, out: Tensor) -> None:
        super().__call__(x, out)
        as_torch(out).mul_(1.0 + 2e-7 * (x.shape[0] % 2))


def rope_from_the_chunk(
    qkv: torch.Tensor,
    problem: RopeProblem,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> None:
    """Takes a token's place in the step for its position."""
    places = torch.arange(len(positions), dtype=torch.int32)
    qk_norm_rope_reference(qkv, problem, places, cos_sin, q_weight, k_weight, eps)


def norm_of_the_first_row(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """Every row scaled by the first one's size."""
    first = x[:1] if residual is None else x[:1] + residual[:1]
    size = (first * first).mean().add(eps).sqrt()
    y = x if residual is None else residual.add_(x)
    out.copy_(y / size * weight)


def keep_in_order(tokens: torch.Tensor, slots: torch.Tensor, last_tokens: torch.Tensor) -> None:
    """Sampled tokens go to the slots in ascending order, whoever sampled them."""
    keep_tokens_reference(tokens, slots.sort().values, last_tokens)


def sample_second_best(logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor) -> None:
    best = logits.argmax(dim=-1, keepdim=True)
    sample_reference(logits.scatter(1, best, float("-inf")), inputs, tokens)


@dataclass(frozen=True, slots=True)
class Plant:
    """A wrong kernel, the model that meets it, and which cases must fail, and which not."""

    kernel: Callable[..., Any]
    op: str
    model: str
    fails: frozenset[str]
    passes: frozenset[str] = frozenset()
    quantity: str = ""
    claims_invariance: bool = False

    def registered(self) -> Kernel:
        """Preferred to every other kernel of its op."""
        wrong = self.kernel
        traits = Traits(preference=1000, batch_invariant=self.claims_invariance)
        bind = wrong if isinstance(wrong, type) else lambda _problem, _binder: wrong
        return Kernel(self.op, wrong.__name__, traits, bind, wrong)


WHOLE = frozenset({"alone, whole"})
PLANTS = (
    Plant(WindowOneTooWide, "attention", "mistral", EVERY | LAYERS),
    Plant(WritesTheNextSlot, "attention", "llama", EVERY | LAYERS),
    Plant(IgnoresTheBlockTable, "attention", "qwen3", EVERY | LAYERS),
    Plant(ReadsEveryTableEntry, "attention", "llama", frozenset({"together, whole"})),
    Plant(
        CopiesNothing, "attention", "gpt2", frozenset({"blocks moved"}), EVERY - {"blocks moved"}
    ),
    Plant(
        AttendsTheChunkOnly,
        "attention",
        "qwen2",
        LAYERS | {"alone, chunks of 16", "prefill, then decode", OWN_TOKENS},
        WHOLE | {"together, whole"},
    ),
    Plant(KeepsTheLastBatch, "linear", "llama", frozenset({"after neighbours, in their blocks"})),
    Plant(
        rope_from_the_chunk,
        "qk_norm_rope",
        "llama",
        LAYERS | {"alone, chunks of 1", "joining late"},
        WHOLE,
    ),
    Plant(
        norm_of_the_first_row,
        "rms_norm",
        "llama",
        frozenset({"alone, whole", "together, whole"}),
        frozenset({"alone, chunks of 1"}),
    ),
    Plant(keep_in_order, "keep_tokens", "llama", frozenset({OWN_TOKENS}), EVERY - {OWN_TOKENS}),
    Plant(
        sample_second_best,
        "sample",
        "llama",
        frozenset({OWN_TOKENS}),
        EVERY - {OWN_TOKENS},
        "sequence 0: sampled tokens",
    ),
)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.kernel.__name__)
def test_planted_error_is_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = plant.registered()
    monkeypatch.setitem(OPS[plant.op].kernels, kernel.name, kernel)
    run = model_run(plant.model, DType.FLOAT32, NullDevice())
    assert run.kernels[plant.op] == kernel.name
    failed = {record.case: record for record in run.records if record.has_failed}
    assert plant.fails <= failed.keys()
    assert not plant.passes & failed.keys(), f"also failed: {failed.keys() - plant.fails}"
    for case in plant.fails:
        assert any(c.quantity.startswith(plant.quantity) for c in failed[case].failures)


def invariant_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference kernels claim what they do not: that batches do not change their bits."""
    for op in OPS.values():
        for name, kernel in op.kernels.items():
            claims = replace(kernel.traits, batch_invariant=True)
            monkeypatch.setitem(op.kernels, name, replace(kernel, traits=claims))


def test_bits_that_depend_on_the_batch_are_caught_where_they_are_denied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    invariant_kernels(monkeypatch)
    kernel = Plant(DependsOnItsNeighbours, "linear", "llama", EVERY, claims_invariance=True)
    monkeypatch.setitem(OPS["linear"].kernels, "planted", kernel.registered())
    run = model_run("llama", DType.FLOAT32, NullDevice())
    quantities = {c.quantity for r in run.records for c in r.failures}
    assert quantities == {"batch-invariant: the bits of the first schedule"}


def test_the_same_kernel_passes_where_it_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Plant(DependsOnItsNeighbours, "linear", "llama", EVERY)
    monkeypatch.setitem(OPS["linear"].kernels, "planted", kernel.registered())
    run = model_run("llama", DType.FLOAT32, NullDevice())
    assert [str(r) for r in run.records if r.has_failed] == []


def test_a_kernel_that_raises_is_a_failure_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        if len(x) == 1:
            raise RuntimeError("launch failed")
        rms_norm_reference(x, residual, weight, eps, out)

    plant = Plant(breaks, "rms_norm", "llama", EVERY)
    monkeypatch.setitem(OPS["rms_norm"].kernels, "breaks", plant.registered())
    run = model_run("llama", DType.FLOAT32, NullDevice())
    failed = {r.case: r.detail for r in run.records if r.has_failed}
    assert failed["alone, chunks of 1"] == "raised RuntimeError: launch failed"
    assert "together, whole" not in failed


def test_the_right_kernels_pass() -> None:
    """What the plants above are compared with; test_models has every model and dtype."""
    run = model_run("llama", DType.FLOAT32, NullDevice())
    assert [str(r) for r in run.records if r.has_failed] == []
