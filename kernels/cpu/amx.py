"""linear, vocab and mlp_block on AMX tiles, on the weights that the AVX512 families store.

A few tokens leave most of a tile idle, so the AVX512 kernels multiply those (src/linear_amx.cpp).
Sums of codes are theirs to the bit. Tiles add bfloat16 in an order of their own, so a token's bits
change where the tiles begin: not batch-invariant.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from hal.device import Capabilities, Feature
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.block import FusedMlpBlock, cannot_alternate
from hal.kernels.cpu.linear import PackedLinear, PackedUp
from hal.kernels.cpu.vocab import PackedVocab, only_looked_up
from hal.kernels.reference.weight_rows import HasWeights, needs_unquantized
from hal.opset import linear, mlp_block, vocab
from hal.opset.block import MlpBlockProblem
from hal.opset.vocab import VocabProblem
from hal.select import Regime
from hal.weights import WeightFormat

_PREFERENCE = 110
_SMOKE_TOKENS = 9  # the fewest that run on tiles


def products() -> ModuleType:
    """The part of the native module that multiplies on tiles."""
    part = native.load().amx
    assert isinstance(part, ModuleType)
    return part


@cache
def unavailable() -> str | None:
    """Why a present CPU with AMX cannot run these kernels."""
    if reason := native.quantized_unavailable():
        return reason
    module = native.load()
    if not hasattr(module, "amx"):
        return "the native module was built by a compiler without AMX, or from older sources"
    if not module.has_amx_kernels():
        return (
            "the operating system does not lend this process AMX tiles (Linux 5.16 or newer does); "
            f"it may use {', '.join(module.features())}"
        )
    return _smoke_failure() or next(
        filter(None, map(_codes_failure, native.DOTS_WITHOUT_ZEROS)), None
    )


def _smoke_failure() -> str | None:
    """3 * 5 + 1 * 0.5, as native.unavailable multiplies it, for enough tokens."""
    m = _SMOKE_TOKENS
    x = torch.tensor([[3.0, 1.0]], dtype=torch.bfloat16).repeat(m, 1)
    weight = torch.tensor([[5.0, 0.5]], dtype=torch.bfloat16)
    packed, out = torch.zeros(32, dtype=torch.bfloat16), torch.empty(m, 1)
    native.load().pack_rows(weight.data_ptr(), 1, 2, 1, packed.data_ptr(), 1, 2, 1, 0, False, 1)
    products().linear(
        x.data_ptr(), 2, m, packed.data_ptr(), 1, 2, 1, 0, out.data_ptr(), 0, 1, 0, False, 1
    )
    return None if bool((out == 15.5).all()) else f"smoke run: 15.5 on tiles is {out.tolist()}"


def _codes_failure(format: WeightFormat) -> str | None:
    """The same product; codes miss it by a hundredth."""
    m = _SMOKE_TOKENS
    x, weight = torch.tensor([[3.0, 1.0]]).repeat(m, 1), torch.tensor([[5.0, 0.5]])
    codes, scratch = torch.zeros(1024, dtype=torch.uint8), torch.zeros(128 * m, dtype=torch.uint8)
    out = torch.empty(m, 1)
    layout = (codes.data_ptr(), 1, 2, *native.layout_of(format))
    products().quantize_rows(weight.data_ptr(), 0, 2, 1, *layout, 0, False, 1)
    products().quantized_linear(
        *(x.data_ptr(), 0, 2, m, *layout, scratch.data_ptr()),
        *(0, out.data_ptr(), 0, 1, native.NO_ACTIVATION, False, 1),
    )
    is_close = bool(((out - 15.5).abs() < 0.2).all())
    return None if is_close else f"smoke run: 15.5 in codes on tiles is {out.tolist()}"


def needs_amx_bf16(caps: Capabilities, problem: HasWeights) -> str | None:
    """Of products with weights in bfloat16."""
    reason = native.needs_avx512_bf16(caps, problem) or _needs(Feature.AMX_BF16, caps)
    if reason is None and problem.dtype is not DType.BFLOAT16:
        reason = f"multiplies in {DType.BFLOAT16}; the problem is in {problem.dtype}"
    return reason or needs_unquantized(caps, problem)


def needs_amx_int8(caps: Capabilities, problem: HasWeights) -> str | None:
    """Of products with codes."""
    reason = native.needs_avx512_vnni(caps, problem) or _needs(Feature.AMX_INT8, caps)
    if reason is None and problem.weights not in native.DOTS_WITHOUT_ZEROS:
        reason = f"has no products with weights in {problem.weights}"
    return reason


def _needs(feature: Feature, caps: Capabilities) -> str | None:
    if feature in caps.features:
        return None
    return f"needs {feature}; {caps.name} has {caps.feature_names()}"


def _vocab_bf16(caps: Capabilities, problem: VocabProblem) -> str | None:
    return only_looked_up(problem) or needs_amx_bf16(caps, problem)


def _vocab_int8(caps: Capabilities, problem: VocabProblem) -> str | None:
    return only_looked_up(problem) or needs_amx_int8(caps, problem)


def _mlp_bf16(caps: Capabilities, problem: MlpBlockProblem) -> str | None:
    return cannot_alternate(problem) or needs_amx_bf16(caps, problem)


def _mlp_int8(caps: Capabilities, problem: MlpBlockProblem) -> str | None:
    return cannot_alternate(problem) or needs_amx_int8(caps, problem)


_ON_TILES = Regime(9, None, "AMX, in tiles of 32 tokens by 32 rows of the weight")


def _bf16_regimes(_problem: object) -> tuple[Regime, ...]:
    return (
        Regime(1, 6, "AVX512, each panel of the weight is read once and reused from registers"),
        Regime(7, 8, "AVX512, two tiles of tokens pass over blocks of the weight"),
        _ON_TILES,
    )


def _int8_regimes(_problem: object) -> tuple[Regime, ...]:
    return (
        Regime(1, 1, "AVX512, the weight is one linear stream"),
        Regime(2, 8, "AVX512, codes are unpacked once, used from registers by every token"),
        _ON_TILES,
    )


@linear.family(
    "amx_int8",
    preference=_PREFERENCE,
    regimes=_int8_regimes,
    batch_invariant=True,
    rejects=needs_amx_int8,
    unavailable=unavailable,
)
@linear.family(
    "amx_bf16",
    preference=_PREFERENCE,
    regimes=_bf16_regimes,
    batch_invariant=False,
    rejects=needs_amx_bf16,
    unavailable=unavailable,
)
class TileLinear(PackedLinear):
    """A packed or quantised weight, multiplied on tiles where tokens fill them."""

    products = staticmethod(products)


class TileUp(PackedUp):
    """The first product of an MLP on tiles."""

    products = staticmethod(products)


@mlp_block.family(
    "amx_int8",
    preference=_PREFERENCE,
    regimes=_int8_regimes,
    batch_invariant=True,
    rejects=_mlp_int8,
    unavailable=unavailable,
)
@mlp_block.family(
    "amx_bf16",
    preference=_PREFERENCE,
    regimes=_bf16_regimes,
    batch_invariant=False,
    rejects=_mlp_bf16,
    unavailable=unavailable,
)
class TileMlpBlock(FusedMlpBlock):
    """The first product on tiles; the second is selected as every other."""

    up_family = TileUp


@vocab.family(
    "amx_int8",
    preference=_PREFERENCE,
    regimes=_int8_regimes,
    batch_invariant=True,
    rejects=_vocab_int8,
    unavailable=unavailable,
)
@vocab.family(
    "amx_bf16",
    preference=_PREFERENCE,
    regimes=_bf16_regimes,
    batch_invariant=False,
    rejects=_vocab_bf16,
    unavailable=unavailable,
)
class TileVocab(PackedVocab):
    """Logits of many tokens on tiles."""

    products = staticmethod(products)
