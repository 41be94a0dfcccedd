"""The vocabulary matrix with its rows cut over ranks: looked up together, multiplied together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hal import opset
from hal.binding import Binder
from hal.collective import Collective
from hal.dtypes import DType
from hal.opset.indexing import GatherProblem, TokenProblem
from hal.opset.vocab import VocabFamily
from hal.tensor import Tensor


class Vocabulary(Protocol):
    """What a model does with its vocabulary matrix; a VocabFamily is one."""

    def embed(self, token_ids: Tensor, out: Tensor) -> None:
        """out[t] = weight[token_ids[t]]; token_ids [T] int32, out [T, hidden_size]."""

    def logits(self, x: Tensor, out: Tensor) -> None:
        """out = x @ weight.T; x [N, hidden_size], out [N, vocab_size] float32."""


class VocabularyShare:
    """A Vocabulary of which this rank keeps the rows `own`.

    A look-up is zero for the ids of other ranks, so that the sum over ranks has each row once.
    """

    def __init__(
        self,
        family: VocabFamily,
        own: range,
        binder: Binder,
        collective: Collective,
        max_rows: int,
    ) -> None:
        problem = family.problem
        width = GatherProblem(width=problem.hidden_size, dtype=problem.dtype)
        self._family = family
        self._own = own
        self._collective = collective
        self._own_tokens: Callable[..., None] = binder.bind(opset.own_tokens, TokenProblem())
        self._zero_others: Callable[..., None] = binder.bind(opset.zero_other_rows, width)
        arena = binder.arena
        self._own_ids = arena.buffer("own_token_ids", (), DType.INT32)
        self._logits = arena.buffer("own_logits", len(own), DType.FLOAT32, rows=max_rows)

    def embed(self, token_ids: Tensor, out: Tensor) -> None:
        """As of a VocabFamily."""
        own_ids = self._own_ids.rows(token_ids.shape[0])
        first, count = self._own.start, len(self._own)
        self._own_tokens(token_ids, first, count, own_ids)
        self._family.embed(own_ids, out)
        self._zero_others(token_ids, first, count, out)
        self._collective.all_reduce(out)

    def logits(self, x: Tensor, out: Tensor) -> None:
        """As of a VocabFamily."""
        own = self._logits.rows(x.shape[0])
        self._family.logits(x, own)
        self._collective.all_gather(own, out)
