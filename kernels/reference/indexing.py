"""Rows and token ids by index: exact copies."""

from __future__ import annotations

import torch

from hal.kernels.reference.weight_rows import store_values
from hal.opset import gather_rows, keep_tokens, store, take_tokens
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


@store.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def store_reference(values: torch.Tensor, out: torch.Tensor) -> None:
    """One converting copy."""
    store_values(out, 0, values)
