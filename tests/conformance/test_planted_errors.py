"""The kit itself: every planted error must be caught, by the check that is meant to catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from hal.binding import Binder
from hal.conformance.case import Case
from hal.conformance.cases import cases_by_op
from hal.conformance.run import conform
from hal.device import Device
from hal.devices.null import NullDevice
from hal.dtypes import DType
from hal.kernels import register_all
from hal.kernels.reference.attention import ReferenceAttention
from hal.kernels.reference.block import ComposedAttentionBlock, ComposedMlpBlock
from hal.kernels.reference.indexing import (
    keep_tokens_reference,
    own_tokens_reference,
    zero_other_rows_reference,
)
from hal.kernels.reference.linear import ReferenceLinear
from hal.kernels.reference.logits import (
    adjust_logits_reference,
    logprobs_reference,
    mask_logits_reference,
)
from hal.kernels.reference.norm import rms_norm_reference
from hal.kernels.reference.sampling import sample_reference
from hal.kernels.reference.tensors import as_torch
from hal.opset.attention import AttentionMeta, AttentionProblem, RopeProblem
from hal.opset.norm import NormInput
from hal.opset.sampling import SamplingInputs
from hal.select import OPS, Kernel, Traits
from hal.tensor import Tensor

register_all()


@pytest.fixture
def null_device() -> Device:
    """Plants are torch code: they run in host memory whatever --device says."""
    return NullDevice()


class WindowOneTooWide(ReferenceAttention):
    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        wider = replace(problem.spec, window=(problem.spec.window or 0) + 1)
        super().__init__(replace(problem, spec=wider), binder)


class IgnoresWindow(ReferenceAttention):
    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        super().__init__(replace(problem, spec=replace(problem.spec, window=None)), binder)


class IgnoresScale(ReferenceAttention):
    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        super().__init__(replace(problem, spec=replace(problem.spec, scale=0.2)), binder)


class IgnoresSoftcap(ReferenceAttention):
    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        super().__init__(replace(problem, spec=replace(problem.spec, softcap=None)), binder)


class ReadsUnusedSlots(ReferenceAttention):
    """Multiplies whole blocks and relies on a weight of zero, which NaN survives."""

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        super().attend(qkv, kv, out)
        last = self._meta.block_table[:, 0].tolist()
        unused = as_torch(kv)[last, 1, :, -1, 0].sum()
        as_torch(out).add_(0.0 * unused)


class ReadsKeysFromTheStep(ReferenceAttention):
    """Takes the newest key from `qkv` where it must come from the cache."""

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        super().attend(qkv, kv, out)
        as_torch(out).add_(0.0 * as_torch(qkv)[:, -1:])


class IgnoresTheBlockTable(ReferenceAttention):
    def plan(self, meta: AttentionMeta) -> None:
        super().plan(meta)
        in_order = torch.arange(meta.block_table.shape[1], dtype=torch.int32)
        table = in_order.repeat(meta.num_seqs, 1)
        self._meta = replace(meta, block_table_device=table)


class InterleavesHeads(ReferenceAttention):
    """Query head h reads key head h % num_kv_heads instead of h // group."""

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        p = self.problem
        order = torch.arange(p.num_heads).view(-1, p.num_kv_heads).T.flatten()
        rows = as_torch(qkv).clone()
        heads = rows[:, : self._q_width].view(len(rows), p.num_heads, p.head_dim)
        heads.copy_(heads[:, order].clone())
        super().attend(rows, kv, out)
        result = as_torch(out).view(len(rows), p.num_heads, p.head_dim)
        result.copy_(result[:, order.argsort()].clone())


class WritesTwice(ReferenceAttention):
    """Also writes the slot behind, which belongs to nobody yet."""

    def write_kv(self, qkv: Tensor, kv: Tensor) -> None:
        super().write_kv(qkv, kv)
        offsets = (self._write_offsets + 1) % self.problem.block_size
        self._write_offsets, kept = offsets, self._write_offsets
        is_free = torch.isnan(as_torch(kv)[self._write_blocks, 0, 0, offsets, 0])
        if is_free.any():
            as_torch(kv)[self._write_blocks[is_free], 0, 0, offsets[is_free], 0] = 0.5
        self._write_offsets = kept


class CopiesNothing(ReferenceAttention):
    def copy_blocks(self, kv: Tensor, out: Tensor, pairs: Any) -> None:
        return None


class DropsTheBias(ReferenceLinear):
    def __call__(self, x: Tensor, out: Tensor) -> None:
        bias, self.bias = self.bias, None
        super().__call__(x, out)
        self.bias = bias


class MultipliesInBfloat16(ReferenceLinear):
    def __call__(self, x: Tensor, out: Tensor) -> None:
        product = as_torch(x).bfloat16() @ self.weight.bfloat16().T
        as_torch(out).copy_(product)


class LosesTheLastRow(ReferenceLinear):
    def __call__(self, x: Tensor, out: Tensor) -> None:
        rows = max(1, x.shape[0] // 16 * 16)
        super().__call__(x[:rows], out[:rows])


class WritesBehind(ReferenceLinear):
    def __call__(self, x: Tensor, out: Tensor) -> None:
        super().__call__(x, out)
        rows, columns = as_torch(out).shape
        as_torch(out).as_strided((rows + 1, columns), (columns, 1))[-1] = 1.0


class DependsOnM(ReferenceLinear):
    """Within every limit, but one token alone gets other bits than among many."""

    def __call__(self, x: Tensor, out: Tensor) -> None:
        super().__call__(x, out)
        if x.shape[0] == 1:
            as_torch(out).mul_(1 + 2e-7)


class MisstatesItsBytes(ReferenceLinear):
    @property
    def num_bytes(self) -> int:
        return super().num_bytes + 64


def norm_in_its_dtype(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    if residual is not None:
        residual.copy_(x + residual)
        x = residual
    out.copy_(x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight)


def norm_keeps_no_residual(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    kept = None if residual is None else residual.clone()
    rms_norm_reference(x, kept, weight, eps, out)


def rope_of_neighbours(
    qkv: torch.Tensor,
    problem: RopeProblem,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> None:
    """Pairs element 2i with 2i + 1, as GPT-J does."""
    num_heads = problem.num_heads + problem.num_kv_heads
    heads = qkv[:, : num_heads * problem.head_dim].view(len(qkv), num_heads, problem.head_dim)
    cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
    rotated = heads[..., : problem.rotary_dim]
    even, odd = rotated[..., ::2].clone(), rotated[..., 1::2].clone()
    rotated[..., ::2] = even * cos - odd * sin
    rotated[..., 1::2] = odd * cos + even * sin


def sample_last_of_ties(logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor) -> None:
    sample_reference(logits.flip(1), inputs, tokens)
    tokens.copy_(torch.where(tokens < 0, tokens, logits.shape[1] - 1 - tokens))


def sample_ignores_bad_rows(
    logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor
) -> None:
    sample_reference(torch.nan_to_num(logits), inputs, tokens)


def sample_by_row_number(
    logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor
) -> None:
    seeds = as_torch(inputs.seeds) + torch.arange(len(logits))
    sample_reference(logits, replace(inputs, seeds=seeds), tokens)


def sample_ignores_token_index(
    logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor
) -> None:
    still = torch.zeros_like(as_torch(inputs.token_index))
    sample_reference(logits, replace(inputs, token_index=still), tokens)


def sample_min_p_of_one(logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor) -> None:
    """Compares with min_p itself instead of min_p times the largest probability."""
    largest = logits.softmax(dim=-1).amax(dim=-1)
    sample_reference(logits, replace(inputs, min_p=as_torch(inputs.min_p) / largest), tokens)


def sample_one_more_of_top_k(
    logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor
) -> None:
    sample_reference(logits, replace(inputs, top_k=as_torch(inputs.top_k) + 1), tokens)


def adjust_punishes_the_prompt(
    logits: torch.Tensor, inputs: SamplingInputs, out: torch.Tensor
) -> None:
    """Presence must not count tokens that were in the prompt only."""
    counts = as_torch(inputs.penalty_counts).clamp(min=1)
    adjust_logits_reference(logits, replace(inputs, penalty_counts=counts), out)


def mask_rows_in_order(
    logits: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor, out: torch.Tensor
) -> None:
    """Takes the first rows instead of the listed ones."""
    mask_logits_reference(logits, torch.arange(len(rows)), mask, out)


def logprobs_rank_from_one(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    rank: torch.Tensor,
    top_ids: torch.Tensor,
    top: torch.Tensor,
) -> None:
    logprobs_reference(logits, tokens, chosen, rank, top_ids, top)
    rank.add_(1)


def keep_tokens_in_order(
    tokens: torch.Tensor, slots: torch.Tensor, last_tokens: torch.Tensor
) -> None:
    keep_tokens_reference(tokens, slots.sort().values, last_tokens)


def own_tokens_one_too_many(
    token_ids: torch.Tensor, first: int, count: int, out: torch.Tensor
) -> None:
    own_tokens_reference(token_ids, first, count + 1, out)


def zero_rows_one_too_few(
    token_ids: torch.Tensor, first: int, count: int, out: torch.Tensor
) -> None:
    zero_other_rows_reference(token_ids, first, count + 1, out)


class MlpLosesTheResidual(ComposedMlpBlock):
    """Norms the sum, and leaves the residual as it was."""

    def __call__(self, x: Tensor, out: Tensor, norm: NormInput | None = None) -> None:
        assert norm is not None
        copy = as_torch(norm.residual).clone() if norm.residual is not None else None
        super().__call__(x, out, replace(norm, residual=copy))


class AttentionNormsTwice(ComposedAttentionBlock):
    """Norms its input, which is normed already."""

    def project(self, x: Tensor, norm: NormInput | None, qkv: Tensor) -> None:
        assert norm is not None
        self.norm(norm, x)
        self.norm(replace(norm, values=x, residual=None), x)
        super().project(x, None, qkv)


@dataclass(frozen=True, slots=True)
class Plant:
    """A wrong kernel, a case that meets the error, and the check that must fail."""

    kernel: Callable[..., Any]
    op: str
    case: str
    caught_by: str
    claims_invariance: bool = False

    def registered(self) -> Kernel:
        """As `hal.select` would hold it."""
        wrong = self.kernel
        traits = Traits(preference=1, batch_invariant=self.claims_invariance)
        bind = wrong if isinstance(wrong, type) else lambda _problem, _binder: wrong
        return Kernel(self.op, wrong.__name__, traits, bind, wrong)


PLANTS = (
    Plant(WindowOneTooWide, "attention", "window-8-float32", "out"),
    Plant(IgnoresWindow, "attention", "window-8-decode-float32", "out"),
    Plant(IgnoresScale, "attention", "scale-float32", "out"),
    Plant(IgnoresSoftcap, "attention", "softcap-float32", "out"),
    Plant(ReadsUnusedSlots, "attention", "decode-float32", "out"),
    Plant(ReadsKeysFromTheStep, "attention", "mixed-float32", "out"),
    Plant(IgnoresTheBlockTable, "attention", "prefill-float32", "out"),
    Plant(InterleavesHeads, "attention", "groups-of-4-float32", "out"),
    Plant(WritesTwice, "attention", "decode-float32", "elements of the cache written"),
    Plant(CopiesNothing, "attention", "mixed-float32", "out"),
    Plant(ReferenceAttention, "attention", "chunks-float32", "batch-invariant", True),
    Plant(DropsTheBias, "linear", "K33-N17-bias-bfloat16", "out"),
    Plant(MultipliesInBfloat16, "linear", "K256-N200-float32", "out"),
    Plant(LosesTheLastRow, "linear", "K33-N17-float32", "out, M=17"),
    Plant(WritesBehind, "linear", "K33-N17-float32", "writes behind out"),
    Plant(DependsOnM, "linear", "K64-N48-float32", "batch-invariant at M=1", True),
    Plant(MisstatesItsBytes, "linear", "K64-N48-float32", "num_bytes"),
    Plant(norm_in_its_dtype, "rms_norm", "H128-in-place-large-float16", "out"),
    Plant(norm_keeps_no_residual, "rms_norm", "H64-residual-float32", "residual"),
    Plant(MlpLosesTheResidual, "mlp_block", "silu-W96-gated-rms_norm-float32", "residual"),
    Plant(AttentionNormsTwice, "attention_block", "layer_norm-float32", "out"),
    Plant(rope_of_neighbours, "qk_norm_rope", "h4-kv2-d64-r64-float32", "queries and keys"),
    Plant(sample_last_of_ties, "sample", "greedy-tied-V1003-float32", "tokens"),
    Plant(sample_ignores_bad_rows, "sample", "greedy-broken-float32", "tokens"),
    Plant(sample_by_row_number, "sample", "warm-smooth-V1003-float32", "tokens among other"),
    Plant(sample_ignores_token_index, "sample", "distribution-float32", "chi-squared over indices"),
    Plant(sample_min_p_of_one, "sample", "min-p-draws-smooth-V1003-float32", "tokens"),
    Plant(sample_one_more_of_top_k, "sample", "top-k-draws-smooth-V1003-float32", "tokens"),
    Plant(adjust_punishes_the_prompt, "adjust_logits", "penalties-float32", "out"),
    Plant(mask_rows_in_order, "mask_logits", "rows3-V1003-float32", "out"),
    Plant(logprobs_rank_from_one, "logprobs", "top5-smooth-V61-float32", "rank"),
    Plant(keep_tokens_in_order, "keep_tokens", "some-int32", "last_tokens"),
    Plant(own_tokens_one_too_many, "own_tokens", "rank-int32", "out"),
    Plant(zero_rows_one_too_few, "zero_other_rows", "W33-float32", "out"),
)


def find_case(op: str, label: str) -> Case:
    return next(case for case in cases_by_op()[op] if case.label == label)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.kernel.__name__)
def test_planted_error_is_caught(plant: Plant, null_device: Device) -> None:
    record = conform(plant.registered(), find_case(plant.op, plant.case), null_device)
    caught = [c.quantity for c in record.failures if c.quantity.startswith(plant.caught_by)]
    assert caught, f"not caught: {[str(c) for c in record.checks]}"


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.kernel.__name__)
def test_the_right_kernel_passes_that_case(plant: Plant, null_device: Device) -> None:
    kernels = OPS[plant.op].kernels
    kernel = kernels["composed" if plant.op.endswith("_block") else "reference"]
    record = conform(kernel, find_case(plant.op, plant.case), null_device)
    assert record.has_passed, str(record)


def test_a_rejected_kernel_is_skipped_with_its_reason(null_device: Device) -> None:
    case = find_case("attention", "softcap-float32")
    record = conform(OPS["attention"].kernels["sdpa"], case, null_device)
    assert "no softcap; softcap is 2" in record.skipped
    assert not record.has_passed


def test_equal_cases_have_equal_inputs() -> None:
    first, second = (find_case("linear", "K64-N48-float32") for _ in range(2))
    assert first.seed == second.seed
    assert first.seed != find_case("linear", f"K64-N48-{DType.FLOAT16}").seed
