"""A weight stored row by row as torch reads it: [out_features, in_features] in one dtype."""

from __future__ import annotations

from typing import Protocol

import torch

from hal.device import Capabilities
from hal.dtypes import DType
from hal.errors import UnsupportedError, WeightsError
from hal.kernels.reference.tensors import as_torch
from hal.tensor import Tensor
from hal.weights import Granularity, LogicalWeight, WeightFormat

QUANTIZED_COST = "widens codes to float32 in every call, a byte stored for each code"

NOT_FINITE = (
    "{} rows of a weight hold NaN or infinity and cannot be quantized; use --quantization none, "
    "or a sound checkpoint"
)


class HasWeights(Protocol):
    """A problem with a stored weight."""

    @property
    def dtype(self) -> DType: ...

    @property
    def weights(self) -> WeightFormat | None: ...


def needs_unquantized(_caps: Capabilities, problem: HasWeights) -> str | None:
    """For families that store a weight in the model's dtype."""
    if problem.weights is None:
        return None
    return f"stores weights in {problem.dtype}; the problem asks for {problem.weights}"


def needs_quantized(_caps: Capabilities, problem: HasWeights) -> str | None:
    """For families that store a weight as codes under scales."""
    if problem.weights is not None:
        return None
    return f"stores quantized weights; the problem keeps them in {problem.dtype}"


def needs_codes(caps: Capabilities, problem: HasWeights) -> str | None:
    """For families whose products are of codes on both sides."""
    if problem.weights is not None and problem.weights.keeps_activations:
        return f"rounds activations to int8; {problem.weights} keeps them in {problem.dtype}"
    return needs_quantized(caps, problem)


def needs_floats(caps: Capabilities, problem: HasWeights) -> str | None:
    """For families that decode a weight's codes and take activations as they are."""
    if problem.weights is not None and not problem.weights.keeps_activations:
        return f"keeps activations in {problem.dtype}; {problem.weights} rounds them to int8"
    return needs_quantized(caps, problem)


def rounds_activations(problem: HasWeights) -> bool:
    """Whether products are of whole numbers, whose sums no order changes."""
    return problem.weights is not None and not problem.weights.keeps_activations


def store_rows(target: torch.Tensor, first_row: int, weight: LogicalWeight) -> None:
    """target[first_row : first_row + rows] = the weight, converted; raises WeightsError."""
    refuse_scales(weight)
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


def refuse_scales(weight: LogicalWeight) -> None:
    """Raises UnsupportedError where a checkpoint comes quantised already."""
    if weight.granularity is not Granularity.NONE or weight.scales is not None:
        raise UnsupportedError(
            f"not supported yet: weights of {weight.dtype} with scales; "
            "use a checkpoint in float32, bfloat16 or float16"
        )


def _refuse_overflow(rows: torch.Tensor, source: torch.Tensor) -> None:
    is_lost = torch.isinf(rows).cpu() & torch.isfinite(source).cpu()
    if is_lost.any():
        largest = source.abs().max().item()
        raise WeightsError(
            f"{int(is_lost.sum())} weights are beyond float16 (largest {largest:.4g}, limit "
            "65504); use --dtype float32, or bfloat16 where the device has it"
        )
