"""First products on the device that is here: what computes wrong values is not available."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hal.dtypes import DType
from hal.kernels.rtc.arch import Target
from hal.kernels.rtc.predicates import SIXTEEN_BITS
from hal.kernels.rtc.program import is_emulated

# Of rounding the result: half a unit in the last place of bfloat16 is 0.004 of a value.
_LIMITS = {DType.BFLOAT16: 4e-3, DType.FLOAT16: 5e-4}
Error = Callable[[DType, Target, torch.device], float]


def smoke_failure(error_of: Error) -> str | None:
    """error_of: the relative error of products in a dtype."""
    if is_emulated():
        return None  # tests compare every product
    try:
        device, target = torch.device("cuda", torch.cuda.current_device()), _present_target()
        errors = {dtype: error_of(dtype, target, device) for dtype in SIXTEEN_BITS}
    except Exception as failure:  # noqa: BLE001  # whatever it raises is the reason
        return f"a first product failed: {type(failure).__name__}: {failure}"
    wrong = [f"{dtype} by {error:.2g}" for dtype, error in errors.items() if error > _LIMITS[dtype]]
    return f"first products are wrong: {', '.join(wrong)}" if wrong else None


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Of all elements together; 1 where one is no number."""
    error = (out.cpu().double() - expected).norm() / expected.norm()
    return float(error.nan_to_num(1.0))


def _present_target() -> Target:
    """Torch's current device."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip is not None:
        return Target("amd", properties.gcnArchName.partition(":")[0])
    return Target("nvidia", f"sm_{properties.major}{properties.minor}")
