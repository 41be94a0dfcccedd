"""Rows and token ids by index: exact copies."""

from __future__ import annotations

import torch

from hal.kernels.reference.weight_rows import store_values
from hal.opset import (
    gather_rows,
    keep_tokens,
    own_tokens,
    store,
    take_tokens,
    zero_other_rows,
)
from hal.select import Level


@gather_rows.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def gather_rows_reference(x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    """Copies bits."""
    out.copy_(x.index_select(0, index))


@take_tokens.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def take_tokens_reference(
    token_ids: torch.Tensor, slots: torch.Tensor, last_tokens: torch.Tensor, out: torch.Tensor
) -> None:
    """Looks every slot up, then chooses: no host read."""
    out.copy_(torch.where(token_ids < 0, last_tokens.index_select(0, slots), token_ids))


@keep_tokens.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def keep_tokens_reference(
    tokens: torch.Tensor, slots: torch.Tensor, last_tokens: torch.Tensor
) -> None:
    """Scatters by slot."""
    last_tokens.index_copy_(0, slots.long(), tokens)


@own_tokens.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def own_tokens_reference(
    token_ids: torch.Tensor, first: int, count: int, out: torch.Tensor
) -> None:
    """Subtracts, then chooses."""
    out.copy_(torch.where(_is_own(token_ids, first, count), token_ids - first, 0))


@zero_other_rows.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def zero_other_rows_reference(
    token_ids: torch.Tensor, first: int, count: int, out: torch.Tensor
) -> None:
    """Fills whole rows."""
    out.masked_fill_(~_is_own(token_ids, first, count)[:, None], 0)


def _is_own(token_ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
    return (token_ids >= first) & (token_ids < first + count)


@store.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def store_reference(values: torch.Tensor, out: torch.Tensor) -> None:
    """One converting copy."""
    store_values(out, 0, values)
