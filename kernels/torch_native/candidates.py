"""The largest values of each row in the order that a stable sort of the whole row would give."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Candidates:
    """values [N, K] descending; ids [N, K], of equal values the lower first.

    Which of several values equal to the last one got in is arbitrary: callers must check.
    """

    values: torch.Tensor
    ids: torch.Tensor


def largest(rows: torch.Tensor, count: int) -> Candidates:
    """The `count` largest of each row of [N, width]."""
    ids = rows.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    values, order = rows.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return Candidates(values, ids.gather(1, order))
