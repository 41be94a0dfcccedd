"""What kernels of linear, vocab and mlp_block that multiply alike have in common, and the three
ways of AVX512: in floats, by codes, and by codes decoded to floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hal.kernels.cpu import native
from hal.select import Op, Regime, Rejects, Unavailable

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductKernel:
    """One way of multiplying by a weight, registered under one name for several ops."""

    name: str
    preference: int
    regimes: Callable[[Any], tuple[Regime, ...]]
    batch_invariant: bool
    rejects: Rejects
    unavailable: Unavailable

    def of(
        self,
        op: Op,
        refuses: Callable[[Any], str | None] = lambda problem: None,
        regimes: Callable[[Any], tuple[Regime, ...]] | None = None,
    ) -> Callable[[_F], _F]:
        """Register a family of `op`; refuses(problem): why this op cannot be done so; regimes:
        where they are not those of one product."""
        return op.family(
            self.name,
            preference=self.preference,
            regimes=regimes or self.regimes,
            batch_invariant=self.batch_invariant,
            capturable=True,
            rejects=lambda caps, problem: refuses(problem) or self.rejects(caps, problem),
            unavailable=self.unavailable,
        )


def expert_regimes(_problem: object) -> tuple[Regime, ...]:
    """Of products with the weights of experts, each of which gets a few of the tokens."""
    return (Regime(1, None, "each expert runs the tokens that chose it as a linear layer does"),)


def _regimes(_problem: object) -> tuple[Regime, ...]:
    """Of products with a packed weight; src/linear_avx512.cpp has the limits."""
    return (
        Regime(1, 6, "each panel of the weight is read once and reused from registers"),
        Regime(7, None, "blocks of the weight stay in cache while tiles of 6 tokens pass"),
    )


def _quantized_regimes(_problem: object) -> tuple[Regime, ...]:
    """Of products with codes; src/linear_vnni_avx512.cpp has the limits."""
    return (
        Regime(1, 1, "the weight is one linear stream"),
        Regime(2, 16, "codes are unpacked once, used from registers by every token"),
        Regime(17, None, "panels of the weight stay in L2 while tiles of 16 tokens pass"),
    )


def _decoded_regimes(_problem: object) -> tuple[Regime, ...]:
    """Of products with decoded codes; src/linear_decoded_avx512.cpp has the limits."""
    return (
        Regime(1, 1, "the weight is one linear stream, its codes decoded in registers"),
        Regime(2, 16, "codes are decoded once, used from registers by every token"),
        Regime(17, None, "panels of codes stay in L2 while tiles of 16 tokens pass"),
    )


AVX512_BF16 = ProductKernel(
    name="avx512_bf16",
    preference=100,
    regimes=_regimes,
    batch_invariant=True,
    rejects=native.needs_plain_weights,
    unavailable=native.unavailable,
)
AVX512_VNNI = ProductKernel(
    name="avx512_vnni",
    preference=100,
    regimes=_quantized_regimes,
    batch_invariant=True,
    rejects=native.needs_avx512_vnni,
    unavailable=native.quantized_unavailable,
)
AVX512_DECODED = ProductKernel(
    name="avx512_decoded",
    preference=100,
    regimes=_decoded_regimes,
    batch_invariant=True,
    rejects=native.needs_avx512_vbmi,
    unavailable=native.decoded_unavailable,
)
