"""Rows and token ids by index, without a host read."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.kernels.triton.elementwise import RowPieces
from hal.kernels.triton.predicates import PREFERENCE, needs_card, needs_float, unavailable
from hal.kernels.triton.program import Program
from hal.kernels.triton.tuning import launch_options
from hal.opset import gather_rows, keep_tokens, take_tokens
from hal.opset.indexing import GatherProblem, TokenProblem

_GATHER = Program("indexing", "gather_rows")
_TAKE = Program("indexing", "take_tokens")
_KEEP = Program("indexing", "keep_tokens")


@gather_rows.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_float,
    unavailable=unavailable,
)
class TritonGatherRows:
    """Copies bits."""

    def __init__(self, problem: GatherProblem, binder: Binder) -> None:
        self._pieces = RowPieces(problem.width, binder)

    def __call__(self, x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
        _GATHER.launch(self._pieces.grid(len(index)), x, index, out, **self._pieces.options)


@take_tokens.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_card,
    unavailable=unavailable,
)
class TritonTakeTokens:
    """One launch where torch needs three."""

    def __init__(self, _problem: TokenProblem, binder: Binder) -> None:
        self._options = launch_options(binder.selector.caps, "tokens")

    def __call__(
        self,
        token_ids: torch.Tensor,
        slots: torch.Tensor,
        last_tokens: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        count = len(token_ids)
        grid = (-(-count // self._options["BLOCK"]),)
        _TAKE.launch(grid, token_ids, slots, last_tokens, out, count, **self._options)


@keep_tokens.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_card,
    unavailable=unavailable,
)
class TritonKeepTokens:
    """Scatters by slot."""

    def __init__(self, _problem: TokenProblem, binder: Binder) -> None:
        self._options = launch_options(binder.selector.caps, "tokens")

    def __call__(
        self, tokens: torch.Tensor, slots: torch.Tensor, last_tokens: torch.Tensor
    ) -> None:
        count = len(tokens)
        grid = (-(-count // self._options["BLOCK"]),)
        _KEEP.launch(grid, tokens, slots, last_tokens, count, **self._options)
