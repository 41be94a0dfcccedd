"""linear, vocab, mlp_block and experts for CPUs without AVX512-BF16: a family for each instruction
set that the portable sources are compiled for, on weights in the layouts of the other families.

A set that only adds dot products to another has a family for codes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from hal.kernels.reference.weight_rows import HasWeights, needs_codes
from hal.opset import grouped_linear, linear, mlp_block, moe_block, vocab
from hal.select import Regime
from hal.weights import WeightFormat


@dataclass(frozen=True, slots=True)
class Level:
    """One instruction set: its name as a family and in the native module, and what tells a CPU
    that has it. tile_tokens: how many tokens share an unpacked code, as src/registers_*.h has it;
    decoded_tokens: how many share one decoded to a float (src/portable_decoded_linear.h), 0 where
    it has dots of codes only.
    """

    name: str
    feature: Feature
    preference: int
    tile_tokens: int
    decoded_tokens: int = 0

    @property
    def formats(self) -> tuple[WeightFormat, ...]:
        """Weights of codes that it multiplies."""
        return (*native.DOTS, *(native.DECODED if self.decoded_tokens else ()))

    def products(self) -> ModuleType:
        """The part of the native module that is compiled for it."""
        return _products(self.name)

    def lacks(self, caps: Capabilities, dtype: DType) -> str | None:
        """Why a device cannot run it in this dtype."""
        return native.needs(self.feature, caps) or native.computes_in(dtype)

    def rejects(self, caps: Capabilities, problem: HasWeights) -> str | None:
        reason = self.lacks(caps, problem.dtype)
        if reason is None and self.decoded_tokens == 0:
            reason = needs_codes(caps, problem)
        return reason or native.multiplies(problem, self.formats)

    def unavailable(self) -> str | None:
        return _unavailable(self.name, self.formats)

    def regimes(self, problem: HasWeights) -> tuple[Regime, ...]:
        if problem.weights is None:
            return (
                Regime(1, 6, "each block of the weight is read once, widened for all tokens"),
                Regime(7, None, "blocks of the weight stay in cache while tiles of 6 tokens pass"),
            )
        keeps = problem.weights.keeps_activations
        tile = self.decoded_tokens if keeps else self.tile_tokens
        how = "decoded to floats" if keeps else "unpacked"
        return (
            Regime(1, tile, f"the weight is one linear stream, {how} once"),
            Regime(tile + 1, None, f"panels of it stay in cache while tiles of {tile} tokens pass"),
        )


LEVELS = (
    Level("avx512", Feature.AVX512, 92, 8, 8),
    Level("avx2", Feature.AVX2, 90, 4, 4),
    Level("neon_dotprod", Feature.DOTPROD, 92, 4, 5),
    Level("neon", Feature.NEON, 90, 2, 5),
)
# Beside AVX512 and AVX2: Cascade Lake and Ice Lake, Alder Lake and what follows it.
DOT_LEVELS = (
    Level("avx512f_vnni", Feature.AVX512_VNNI, 94, 8),
    Level("avx2_vnni", Feature.AVX_VNNI, 91, 4),
)


@cache
def _products(name: str) -> ModuleType:
    products: ModuleType = getattr(native.load(), name)
    return products


@cache
def _unavailable(name: str, formats: tuple[WeightFormat, ...]) -> str | None:
    """Why a present CPU cannot run this level: not built, not supported, or wrong."""
    try:
        module = native.load()
    except ImportError as error:
        return native.NOT_BUILT.format(error)
    products = getattr(module, name, None)
    if products is None:
        return f"the native module was compiled without {name}"
    features = module.features()
    if missing := [need for need in products.needs if need not in features]:
        return f"needs {', '.join(missing)}, which this CPU lacks; it has {', '.join(features)}"
    return native.smoke_failure(products) or native.quantized_smoke_failure(products, formats)


def _register(level: Level) -> None:
    class Linear(PackedLinear):
        products = staticmethod(level.products)
        takes_norm = False

    class Up(PackedUp):
        products = staticmethod(level.products)
        takes_norm = False

    class Vocab(PackedVocab):
        products = staticmethod(level.products)

    class Mlp(FusedMlpBlock):
        up_family = Up

    class Experts(PackedExperts):
        products = staticmethod(level.products)

    class Moe(FusedMoeBlock):
        router_family = Vocab
        experts_family = Experts

    kernel = ProductKernel(
        name=level.name,
        preference=level.preference,
        regimes=level.regimes,
        batch_invariant=True,
        rejects=level.rejects,
        unavailable=level.unavailable,
    )
    kernel.of(linear)(Linear)
    kernel.of(vocab, only_looked_up)(Vocab)
    kernel.of(mlp_block, cannot_alternate)(Mlp)
    kernel.of(grouped_linear, regimes=expert_regimes)(Experts)
    kernel.of(moe_block, experts.cannot_alternate, expert_regimes)(Moe)


for _level in (*LEVELS, *DOT_LEVELS):
    _register(_level)
