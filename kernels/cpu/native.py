"""The native module behind this folder's kernels, and the reason where it cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from types import ModuleType

import torch  # before the module, which then shares torch's OpenMP threads

from hal.device import Capabilities, Feature
from hal.dtypes import DType
from hal.evidence.source import CompiledPart
from hal.kernels.reference.weight_rows import (
    HasWeights,
    needs_codes,
    needs_floats,
    needs_unquantized,
)
from hal.kernels.torch_native.predicates import HasDType
from hal.opset.elementwise import Activation
from hal.weights import WEIGHT_FORMATS, WeightFormat

# Codes of src/kernels.h.
DTYPE_CODES = {DType.FLOAT32: 0, DType.BFLOAT16: 1, DType.FLOAT16: 2}
TORCH_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NO_ACTIVATION = 0
ACTIVATION_CODES = {
    Activation.SILU: 1,
    Activation.GELU_TANH: 2,
    Activation.GELU: 3,
    Activation.RELU: 4,
}
COMPUTED = (DType.FLOAT32, DType.BFLOAT16)


@cache
def load() -> ModuleType:
    """The module `_C`; raises ImportError where it was not built."""
    return import_module("hal.kernels.cpu._C")


@cache
def compiled_part() -> CompiledPart | None:
    """What the module was made from; None where there is none, or one that does not say."""
    try:
        module = load()
        return CompiledPart(source_hash=module.source_hash, compiler=module.compiler)
    except (ImportError, AttributeError):
        return None


@cache
def unavailable() -> str | None:
    """Why the kernels of a present CPU cannot run: not built, not supported, or wrong."""
    try:
        module = load()
    except ImportError as error:
        return f"the native module is not built ({error}); install hal with a C++ compiler"
    if not module.has_avx512_bf16_kernels():
        return f"compiled without AVX512, or this CPU has only {', '.join(module.features())}"
    return _smoke_failure(module)


@cache
def quantized_unavailable() -> str | None:
    """The same for the kernels that multiply weights of codes, whatever their format."""
    if reason := unavailable():
        return reason
    module = load()
    if not hasattr(module, "quantized_linear"):
        return "the native module was built from older sources; install hal again"
    return quantized_smoke_failure(module, WEIGHT_FORMATS.values())


def quantized_smoke_failure(module: ModuleType, formats: Iterable[WeightFormat]) -> str | None:
    """The first of these formats in which the product of the smoke run is wrong."""
    return next(filter(None, (_codes_failure(module, format) for format in formats)), None)


def _codes_failure(module: ModuleType, format: WeightFormat) -> str | None:
    """The same product; codes miss it by a hundredth."""
    x, weight = torch.tensor([[3.0, 1.0]]), torch.tensor([[5.0, 0.5]])
    codes, scratch = torch.zeros(1024, dtype=torch.uint8), torch.zeros(128, dtype=torch.uint8)
    out = torch.empty(1, 1)
    layout = (codes.data_ptr(), 1, 2, format.group_size or 0, format.has_zeros, layout_code(format))
    module.quantize_rows(weight.data_ptr(), 0, 2, 1, *layout, 0, False, 1)
    module.quantized_linear(
        *(x.data_ptr(), 0, 2, 1, *layout, scratch.data_ptr()),
        *(0, out.data_ptr(), 0, 1, NO_ACTIVATION, False, 1),
    )
    if abs(out.item() - 15.5) < 0.2:
        return None
    return f"smoke run: 3 * 5 + 1 * 0.5 in codes of {format} gave {out.item()}"


def layout_code(format: WeightFormat) -> int:
    """How its codes are stored: `Codes` of src/kernels.h."""
    if not format.keeps_activations:
        return 0
    return 2 if format.codes is DType.FLOAT8_E4M3FN else 1


def _smoke_failure(module: ModuleType) -> str | None:
    """Multiply 3 by 5 through the real path: catches a broken build before a model does."""
    x = torch.tensor([[3.0, 1.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[5.0, 0.5]], dtype=torch.bfloat16)
    packed, out = torch.zeros(32, dtype=torch.bfloat16), torch.empty(1, 1)
    module.pack_rows(weight.data_ptr(), 1, 2, 1, packed.data_ptr(), 1, 2, 1, 0, False, 1)
    module.linear(
        x.data_ptr(), 2, 1, packed.data_ptr(), 1, 2, 1, 0, out.data_ptr(), 0, 1, 0, False, 1
    )
    return None if out.item() == 15.5 else f"smoke run: 3 * 5 + 1 * 0.5 gave {out.item()}"


def needs_avx512_bf16(caps: Capabilities, problem: HasDType) -> str | None:
    """The predicate that all kernels here share: pure, so it holds for absent CPUs too."""
    reason = needs_cpu(caps, problem)
    if reason is None and problem.dtype not in COMPUTED:
        return f"computes in {', '.join(map(str, COMPUTED))}; the problem is in {problem.dtype}"
    return reason


def needs_plain_weights(caps: Capabilities, problem: HasWeights) -> str | None:
    """For families that store a weight in the model's dtype."""
    return needs_avx512_bf16(caps, problem) or needs_unquantized(caps, problem)


def needs_avx512_vnni(caps: Capabilities, problem: HasWeights) -> str | None:
    """For families that store a weight as codes; the module is compiled with BF16 throughout."""
    reason = needs_avx512_bf16(caps, problem)
    if reason is None and Feature.AVX512_VNNI not in caps.features:
        reason = f"needs {Feature.AVX512_VNNI}; {caps.name} has {caps.feature_names()}"
    return reason or needs_codes(caps, problem)


def needs_avx512_vbmi(caps: Capabilities, problem: HasWeights) -> str | None:
    """For families that decode a weight's codes to floats; the module has BF16 throughout."""
    reason = needs_avx512_bf16(caps, problem)
    if reason is None and Feature.AVX512_VBMI not in caps.features:
        reason = f"needs {Feature.AVX512_VBMI}; {caps.name} has {caps.feature_names()}"
    return reason or needs_floats(caps, problem)


def needs_cpu(caps: Capabilities, _problem: object) -> str | None:
    """The same for problems whose dtype is fixed."""
    if caps.vendor == "null" or caps.is_accelerator:
        return f"runs on CPUs only; this is {caps.name} ({caps.arch})"
    if Feature.AVX512_BF16 not in caps.features:
        return f"needs {Feature.AVX512_BF16}; {caps.name} has {caps.feature_names()}"
    return None
