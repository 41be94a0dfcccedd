"""The native module behind this folder's kernels, and the reason where it cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from functools import cache, partial
from importlib import import_module
from types import ModuleType

import torch

from hal.device import Capabilities, Feature
from hal.dtypes import DType
from hal.evidence.source import CompiledPart
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import (
    HasWeights,
    needs_codes,
    needs_floats,
    needs_unquantized,
)
from hal.kernels.torch_native.predicates import HasDType
from hal.opset.elementwise import Activation
from hal.opset.norm import NormInput
from hal.weights import WEIGHT_FORMATS, WeightFormat

# Codes of src/kernels.h.
DTYPE_CODES = {DType.FLOAT32: 0, DType.BFLOAT16: 1, DType.FLOAT16: 2, DType.INT8: 3}
TORCH_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NO_ACTIVATION = 0
ACTIVATION_CODES = {
    Activation.SILU: 1,
    Activation.GELU_TANH: 2,
    Activation.GELU: 3,
    Activation.RELU: 4,
}
COMPUTED = (DType.FLOAT32, DType.BFLOAT16)

NOT_BUILT = "the native module is not built ({}); install hal with a C++ compiler"
OLD_BUILD = "the native module was built from older sources; install hal again"

# What the kernels of an instruction set multiply: dots of codes, codes decoded to floats.
DOTS = tuple(f for f in WEIGHT_FORMATS.values() if not f.keeps_activations)
DOTS_WITHOUT_ZEROS = tuple(f for f in DOTS if not f.has_zeros)
DECODED = tuple(f for f in WEIGHT_FORMATS.values() if f.keeps_activations)

# Gives the functions of one instruction set that multiply packed weights and codes.
Products = Callable[[], ModuleType]


@cache
def load() -> ModuleType:
    """The module `_C`; raises ImportError where it was not built."""
    return import_module("hal.kernels.cpu._C")


class Repeated:
    """A native function whose arguments are prepared again only when one is another object.

    A steady step runs on the same views of the step arena (`Buffer.rows`), and asking torch for
    addresses and strides takes several times as long as the call into the module.
    """

    __slots__ = ("_ids", "_arguments", "_run")

    def __init__(self) -> None:
        self._ids: tuple[int, ...] = ()

    def __call__(self, prepare: Callable[..., Callable[[int], object]], *arguments: object) -> None:
        """prepare(*arguments) gives what is still to be called with the number of threads.

        It is not kept: a method would keep its weight, in a circle, beyond the last use.
        """
        ids = tuple(map(id, arguments))
        if ids != self._ids:
            self._run = prepare(*arguments)
            self._ids = ids
            self._arguments = arguments  # alive, so that no other object gets one of these ids
        self._run(torch.get_num_threads())


def product(products: ModuleType, name: str, norm: NormInput | None) -> Callable[..., object]:
    """A product's function; with a norm the one that norms its x first, told of what."""
    if norm is None:
        plain: Callable[..., object] = getattr(products, name)
        return plain
    values, residual = as_torch(norm.values), norm.residual
    assert values.stride(1) == 1, "columns must be contiguous"
    return partial(
        getattr(products, f"{name}_after_norm"),
        values.data_ptr(),
        values.stride(0),
        0 if residual is None else as_torch(residual).data_ptr(),
        0 if residual is None else as_torch(residual).stride(0),
        as_torch(norm.weight).data_ptr(),
        0 if norm.bias is None else as_torch(norm.bias).data_ptr(),
        norm.eps,
    )


class HugePages:
    """Advised for a cache before its pages are first touched: its blocks are read in no order at
    all, and with small pages each costs a walk of the page tables.
    """

    def __init__(self) -> None:
        self._advised: set[int] = set()

    def advise(self, cache: torch.Tensor) -> None:
        """Once for each."""
        address = cache.data_ptr()
        if address not in self._advised:
            self._advised.add(address)
            load().advise_huge_pages(address, cache.nbytes)


@cache
def compiled_part() -> CompiledPart | None:
    """What the module was made from; None where there is none, or one that does not say."""
    try:
        module = load()
        return CompiledPart(source_hash=module.source_hash, compiler=module.compiler)
    except (ImportError, AttributeError):
        return None


@cache
def module_unavailable() -> str | None:
    """Why nothing of the module can be used."""
    try:
        module = load()
    except ImportError as error:
        return NOT_BUILT.format(error)
    return None if hasattr(module, "Recording") else OLD_BUILD


@cache
def ranks_unavailable() -> str | None:
    """Why what several ranks need cannot be used."""
    if reason := module_unavailable():
        return reason
    return None if hasattr(load(), "Communicator") else OLD_BUILD


@cache
def unavailable() -> str | None:
    """Why the kernels of a present CPU cannot run: not built, not supported, or wrong."""
    try:
        module = load()
    except ImportError as error:
        return NOT_BUILT.format(error)
    if not module.has_avx512_bf16_kernels():
        return f"compiled without AVX512, or this CPU has only {', '.join(module.features())}"
    return smoke_failure(module)


@cache
def quantized_unavailable() -> str | None:
    """The same for the kernels that multiply codes."""
    if reason := unavailable():
        return reason
    module = load()
    if not hasattr(module, "quantized_linear"):
        return OLD_BUILD
    return quantized_smoke_failure(module, DOTS)


@cache
def decoded_unavailable() -> str | None:
    """The same for the kernels that decode codes to floats."""
    if reason := quantized_unavailable():
        return reason
    module = load()
    if "avx512vbmi" not in module.features():
        return f"decodes with AVX512-VBMI; this CPU has only {', '.join(module.features())}"
    return quantized_smoke_failure(module, DECODED)


def quantized_smoke_failure(
    products: ModuleType, formats: Iterable[WeightFormat], num_tokens: int = 1
) -> str | None:
    """The product of the smoke run with weights in each format."""
    failures = (_codes_failure(products, format, num_tokens) for format in formats)
    return next(filter(None, failures), None)


def _codes_failure(products: ModuleType, format: WeightFormat, num_tokens: int) -> str | None:
    """The same product; codes miss it by a hundredth."""
    x, weight = torch.tensor([[3.0, 1.0]]).repeat(num_tokens, 1), torch.tensor([[5.0, 0.5]])
    codes = torch.zeros(1024, dtype=torch.uint8)
    scratch = torch.zeros(128 * num_tokens, dtype=torch.uint8)
    out = torch.zeros(num_tokens, 1)
    layout = (codes.data_ptr(), 1, 2, *layout_of(format))
    products.quantize_rows(weight.data_ptr(), 0, 2, 1, *layout, 0, False, 1)
    products.quantized_linear(
        *(x.data_ptr(), 0, 2, num_tokens, *layout, scratch.data_ptr()),
        *(0, out.data_ptr(), 0, 1, NO_ACTIVATION, False, 1),
    )
    if bool(((out - 15.5).abs() < 0.2).all()):
        return None
    return f"smoke run: 3 * 5 + 1 * 0.5 in codes of {format} gave {out.flatten().tolist()}"


def layout_of(format: WeightFormat) -> tuple[int, bool, int]:
    """What QuantizedShape of src/kernels.h holds beside the size."""
    return format.group_size or 0, format.has_zeros, layout_code(format)


def layout_code(format: WeightFormat) -> int:
    """How its codes are stored: `Codes` of src/kernels.h."""
    if not format.keeps_activations:
        return 0
    return 2 if format.codes is DType.FLOAT8_E4M3FN else 1


def smoke_failure(products: ModuleType, num_tokens: int = 1) -> str | None:
    """Multiply 3 by 5 through the real path: catches a broken build before a model does."""
    x = torch.tensor([[3.0, 1.0]], dtype=torch.bfloat16).repeat(num_tokens, 1)
    weight = torch.tensor([[5.0, 0.5]], dtype=torch.bfloat16)
    packed, out = torch.zeros(32, dtype=torch.bfloat16), torch.zeros(num_tokens, 1)
    load().pack_rows(weight.data_ptr(), 1, 2, 1, packed.data_ptr(), 1, 2, 1, 0, False, 1)
    products.linear(
        *(x.data_ptr(), 2, num_tokens, packed.data_ptr(), 1, 2, 1),
        *(0, out.data_ptr(), 0, 1, NO_ACTIVATION, False, 1),
    )
    if bool((out == 15.5).all()):
        return None
    return f"smoke run: 3 * 5 + 1 * 0.5 gave {out.flatten().tolist()}"


def needs_any_cpu(caps: Capabilities, _problem: object) -> str | None:
    """For kernels that need no instruction set."""
    if caps.vendor == "null" or caps.is_accelerator:
        return f"runs on CPUs only; this is {caps.name} ({caps.arch})"
    return None


def needs(feature: Feature, caps: Capabilities) -> str | None:
    """Why a device is no CPU that has it: pure, so it holds for absent CPUs too."""
    if reason := needs_any_cpu(caps, None):
        return reason
    if feature not in caps.features:
        return f"needs {feature}; {caps.name} has {caps.feature_names()}"
    return None


def computes_in(dtype: DType) -> str | None:
    """Why no kernel here does."""
    if dtype in COMPUTED:
        return None
    return f"computes in {', '.join(map(str, COMPUTED))}; the problem is in {dtype}"


def needs_cpu(caps: Capabilities, _problem: object) -> str | None:
    """What all kernels for AVX512-BF16 share, also those of problems whose dtype is fixed."""
    return needs(Feature.AVX512_BF16, caps)


def needs_avx512_bf16(caps: Capabilities, problem: HasDType) -> str | None:
    return needs_cpu(caps, problem) or computes_in(problem.dtype)


def needs_plain_weights(caps: Capabilities, problem: HasWeights) -> str | None:
    """For families that store a weight in the model's dtype."""
    return needs_avx512_bf16(caps, problem) or needs_unquantized(caps, problem)


def needs_avx512_vnni(caps: Capabilities, problem: HasWeights) -> str | None:
    """For families that store a weight as codes; the module is compiled with BF16 throughout."""
    reason = needs_avx512_bf16(caps, problem) or needs(Feature.AVX512_VNNI, caps)
    return reason or needs_codes(caps, problem)


def needs_avx512_vbmi(caps: Capabilities, problem: HasWeights) -> str | None:
    """For families that decode a weight's codes to floats; the module has BF16 throughout."""
    reason = needs_avx512_bf16(caps, problem) or needs(Feature.AVX512_VBMI, caps)
    return reason or needs_floats(caps, problem)


def multiplies(problem: HasWeights, formats: Container[WeightFormat]) -> str | None:
    """Why products that know weights in these formats have none for this one."""
    if problem.weights is None or problem.weights in formats:
        return None
    return f"has no products with weights in {problem.weights}"
