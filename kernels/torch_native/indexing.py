"""Moving rows and ids: torch's copies are as native as copies get, so they are not fallbacks."""

from __future__ import annotations

import torch

from hal.kernels.reference.indexing import (
    keep_tokens_reference,
    own_tokens_reference,
    store_reference,
    take_tokens_reference,
    zero_other_rows_reference,
)
from hal.kernels.torch_native.predicates import needs_hardware
from hal.opset import (
    gather_rows,
    keep_tokens,
    own_tokens,
    store,
    take_tokens,
    zero_other_rows,
)
from hal.select import on_accelerators

take_tokens.kernel(
    "torch", preference=50, capturable=on_accelerators, rejects=needs_hardware, batch_invariant=True
)(take_tokens_reference)
keep_tokens.kernel(
    "torch", preference=50, capturable=on_accelerators, rejects=needs_hardware, batch_invariant=True
)(keep_tokens_reference)
own_tokens.kernel(
    "torch", preference=50, capturable=on_accelerators, rejects=needs_hardware, batch_invariant=True
)(own_tokens_reference)
zero_other_rows.kernel(
    "torch", preference=50, capturable=on_accelerators, rejects=needs_hardware, batch_invariant=True
)(zero_other_rows_reference)
store.kernel("torch", preference=50, rejects=needs_hardware, batch_invariant=True)(store_reference)


@gather_rows.kernel(
    "torch", preference=50, capturable=on_accelerators, rejects=needs_hardware, batch_invariant=True
)
def gather_rows_torch(x: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    """Straight into `out`."""
    torch.index_select(x, 0, index, out=out)
