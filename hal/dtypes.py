"""Element types with their size and flavour; no tensor library needed to speak of them."""

from __future__ import annotations

from enum import Enum

from hal.errors import ConfigError


class DType(Enum):
    """One element type. FP8 keeps its OCP and FNUZ flavours apart: same bits, other values."""

    FLOAT64 = ("float64", 64)
    FLOAT32 = ("float32", 32)
    FLOAT16 = ("float16", 16)
    BFLOAT16 = ("bfloat16", 16)
    FLOAT8_E4M3FN = ("float8_e4m3fn", 8)
    FLOAT8_E4M3FNUZ = ("float8_e4m3fnuz", 8)
    FLOAT8_E5M2 = ("float8_e5m2", 8)
    INT64 = ("int64", 64)
    INT32 = ("int32", 32)
    INT8 = ("int8", 8)
    UINT8 = ("uint8", 8)
    INT4 = ("int4", 4)

    def __init__(self, label: str, bits: int) -> None:
        self.label = label
        self.bits = bits

    def __str__(self) -> str:
        return self.label

    def num_bytes(self, num_elements: int) -> int:
        """Bytes of `num_elements` elements, packed, rounded up to a whole byte."""
        return (num_elements * self.bits + 7) // 8


_ALIASES = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
    "fp8": "float8_e4m3fn",
}


def parse_dtype(name: str) -> DType:
    """The DType called `name` (`bfloat16`, `bf16`, `torch.bfloat16`); raises ConfigError."""
    label = name.removeprefix("torch.").lower()
    label = _ALIASES.get(label, label)
    for dtype in DType:
        if dtype.label == label:
            return dtype
    known = ", ".join(d.label for d in DType)
    raise ConfigError(f"unknown dtype {name!r}; known: {known}")
