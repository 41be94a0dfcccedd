"""linear, vocab, mlp_block and experts on AMX tiles, on the weights that the AVX512 families store.

A few tokens leave most of a tile idle, so the AVX512 kernels multiply those (src/linear_amx.cpp).
Sums of codes are theirs to the bit. Tiles add bfloat16 in an order of their own, so a token's bits
change where the tiles begin: not batch-invariant.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

from hal.device import Capabilities, Feature
from hal.dtypes import DType
from hal.kernels.cpu import experts, native
from hal.kernels.cpu.block import FusedMlpBlock, cannot_alternate
from hal.kernels.cpu.experts import FusedMoeBlock, PackedExperts
from hal.kernels.cpu.linear import PackedLinear, PackedUp
from hal.kernels.cpu.products import ProductKernel, expert_regimes
from hal.kernels.cpu.vocab import PackedVocab, only_looked_up
from hal.kernels.reference.weight_rows import HasWeights, needs_unquantized
from hal.opset import grouped_linear, linear, mlp_block, moe_block, vocab
from hal.select import Regime

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
    return native.smoke_failure(products(), _SMOKE_TOKENS) or native.quantized_smoke_failure(
        products(), native.DOTS_WITHOUT_ZEROS, _SMOKE_TOKENS
    )


def needs_amx_bf16(caps: Capabilities, problem: HasWeights) -> str | None:
    """Of products with weights in bfloat16."""
    reason = native.needs_avx512_bf16(caps, problem) or native.needs(Feature.AMX_BF16, caps)
    if reason is None and problem.dtype is not DType.BFLOAT16:
        reason = f"multiplies in {DType.BFLOAT16}; the problem is in {problem.dtype}"
    return reason or needs_unquantized(caps, problem)


def needs_amx_int8(caps: Capabilities, problem: HasWeights) -> str | None:
    """Of products with codes."""
    reason = native.needs_avx512_vnni(caps, problem) or native.needs(Feature.AMX_INT8, caps)
    return reason or native.multiplies(problem, native.DOTS_WITHOUT_ZEROS)


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


AMX_BF16 = ProductKernel(
    name="amx_bf16",
    preference=_PREFERENCE,
    regimes=_bf16_regimes,
    batch_invariant=False,
    rejects=needs_amx_bf16,
    unavailable=unavailable,
)
AMX_INT8 = ProductKernel(
    name="amx_int8",
    preference=_PREFERENCE,
    regimes=_int8_regimes,
    batch_invariant=True,
    rejects=needs_amx_int8,
    unavailable=unavailable,
)


@AMX_INT8.of(linear)
@AMX_BF16.of(linear)
class TileLinear(PackedLinear):
    """A packed or quantised weight, multiplied on tiles where tokens fill them."""

    products = staticmethod(products)
    takes_norm = False


class TileUp(PackedUp):
    """The first product of an MLP on tiles."""

    products = staticmethod(products)
    takes_norm = False


@AMX_INT8.of(mlp_block, cannot_alternate)
@AMX_BF16.of(mlp_block, cannot_alternate)
class TileMlpBlock(FusedMlpBlock):
    """The first product on tiles; the second is selected as every other."""

    up_family = TileUp


@AMX_INT8.of(vocab, only_looked_up)
@AMX_BF16.of(vocab, only_looked_up)
class TileVocab(PackedVocab):
    """Logits of many tokens on tiles."""

    products = staticmethod(products)


@AMX_INT8.of(grouped_linear, regimes=expert_regimes)
@AMX_BF16.of(grouped_linear, regimes=expert_regimes)
class TileExperts(PackedExperts):
    """Experts on tiles where they have the tokens for it."""

    products = staticmethod(products)


@AMX_INT8.of(moe_block, experts.cannot_alternate, expert_regimes)
@AMX_BF16.of(moe_block, experts.cannot_alternate, expert_regimes)
class TileMoeBlock(FusedMoeBlock):
    """Both products on tiles. The router is multiplied as on AVX512, whose sums no other token
    changes: a choice must not depend on them."""

    experts_family = TileExperts
