"""Moving rows and token ids by index."""

from __future__ import annotations

from dataclasses import dataclass

from hal.dtypes import DType
from hal.select import declare
from hal.tensor import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherProblem:
    """Rows of `width` elements in `dtype`."""

    width: int
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenProblem:
    """Token ids: int32."""


@declare(GatherProblem)
def gather_rows(x: Tensor, index: Tensor, out: Tensor) -> None:
    """out[i] = x[index[i]]; x [T, width], index [N] int32, out [N, width]."""


@declare(TokenProblem)
def take_tokens(token_ids: Tensor, slots: Tensor, last_tokens: Tensor, out: Tensor) -> None:
    """out[t] = token_ids[t], or last_tokens[slots[t]] where token_ids[t] is negative.

    token_ids, slots, out [T] int32; last_tokens [max_num_seqs] int32.
    """


@declare(TokenProblem)
def keep_tokens(tokens: Tensor, slots: Tensor, last_tokens: Tensor) -> None:
    """last_tokens[slots[i]] = tokens[i]; tokens, slots [N] int32, slots distinct."""


@declare(TokenProblem)
def own_tokens(token_ids: Tensor, first: int, count: int, out: Tensor) -> None:
    """out[t] = token_ids[t] - first, or 0 where that is not below count: another rank's.

    token_ids, out [T] int32.
    """


@declare(GatherProblem)
def zero_other_rows(token_ids: Tensor, first: int, count: int, out: Tensor) -> None:
    """out[t] = 0 where token_ids[t] is not one of first.. (count of them).

    token_ids [T] int32; out [T, width], whose other rows are left alone.
    """


@declare(GatherProblem)
def store(values: Tensor, out: Tensor) -> None:
    """out = values, converted to out's dtype; load time only.

    values: a host tensor (any float dtype, possibly strided) of out's shape. Raises WeightsError
    where a finite value is beyond out's dtype.
    """
