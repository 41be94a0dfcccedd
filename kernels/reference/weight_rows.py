"""A weight stored row by row as torch reads it: [out_features, in_features] in one dtype."""

from __future__ import annotations

import torch

from hal.errors import UnsupportedError, WeightsError
from hal.kernels.reference.tensors import as_torch
from hal.tensor import Tensor
from hal.weights import Granularity, LogicalWeight


def store_rows(target: torch.Tensor, first_row: int, weight: LogicalWeight) -> None:
    """target[first_row : first_row + rows] = the weight, converted; raises WeightsError."""
    if weight.granularity is not Granularity.NONE or weight.scales is not None:
        raise UnsupportedError(
            f"not supported yet: weights of {weight.dtype} with scales; "
            "use a checkpoint in float32, bfloat16 or float16"
        )
    store_values(target, first_row, weight.values)


def store_values(target: torch.Tensor, first_row: int, values: Tensor) -> None:
    """The same for a bias or a plain matrix; refuses values that the target's dtype overflows."""
    source = as_torch(values)
    rows = target[first_row : first_row + source.shape[0]]
    assert rows.shape == source.shape, f"{tuple(source.shape)} into {tuple(rows.shape)}"
    rows.copy_(source)
    # Only float16 has a smaller range than another dtype that checkpoints come in.
    if rows.dtype is torch.float16 and source.dtype is not torch.float16:
        _refuse_overflow(rows, source)


def _refuse_overflow(rows: torch.Tensor, source: torch.Tensor) -> None:
    is_lost = torch.isinf(rows).cpu() & torch.isfinite(source).cpu()
    if is_lost.any():
        largest = source.abs().max().item()
        raise WeightsError(
            f"{int(is_lost.sum())} weights are beyond float16 (largest {largest:.4g}, limit "
            "65504); use --dtype float32, or bfloat16 where the device has it"
        )
