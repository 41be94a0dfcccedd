"""The AMX kernels on emulated tiles, on any CPU with AVX512, twice.

Once their source, compiled here with the tile instructions in plain C++; and once the native
module's machine code, whose tile instructions this CPU refuses one by one to a handler that does
them (amx_trap.h).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from exact_scratch import give_exact_scratch

import hal.kernels
from hal.conformance.case import Case
from hal.conformance.cases import cases_by_op
from hal.conformance.limits import relative_l2
from hal.conformance.run import conform
from hal.conformance.stage import Stage
from hal.device import Feature
from hal.devices import host
from hal.devices.cpu import CpuDevice
from hal.dtypes import DType
from hal.kernels.cpu import amx, native
from hal.kernels.cpu.linear import stored_weight
from hal.kernels.cpu.packed_weight import PackedWeight
from hal.kernels.cpu.quantized_weight import QuantizedWeight
from hal.opset.linear import LinearProblem
from hal.profiles import find_profile
from hal.select import OPS, Kernel, SelectionPolicy, Selector
from hal.weights import WEIGHT_FORMATS, LogicalWeight, WeightFormat

FORMATS = native.DOTS_WITHOUT_ZEROS
# Rows x columns: less than a strip, an odd number of strips, more than one pair of them; a depth of
# less than a unit, an odd one, one element short of a step, several steps.
SHAPES = [(1, 3), (16, 8), (100, 72), (130, 77), (48, 31), (70, 1027)]
# The ends of both tiles, an uneven block, more than one.
NUM_TOKENS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 67]

hal.kernels.register_all()


class EmulatedModule(ModuleType):
    """The native module, as if this CPU had AMX."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__("emulated")
        self._module = module
        self.amx: ModuleType = module.amx

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)

    def has_amx_kernels(self) -> bool:
        return True


class Source(ModuleType):
    """The products compiled from source, more than `few` tokens on tiles."""

    def __init__(self, library: ctypes.CDLL, few: int) -> None:
        super().__init__("source")
        self._linear = _function(library, "linear_on_tiles", 14)
        self._quantized_linear = _function(library, "quantized_linear_on_tiles", 18)
        self._few = few

    def __getattr__(self, name: str) -> object:
        return getattr(native.load(), name)

    def linear(self, *arguments: int) -> None:
        run = self._linear if arguments[2] > self._few else native.load().linear
        run(*arguments)

    def quantized_linear(self, *arguments: int) -> None:
        run = self._quantized_linear if arguments[3] > self._few else native.load().quantized_linear
        run(*arguments)


def _function(library: ctypes.CDLL, name: str, num_parameters: int) -> Callable[..., None]:
    """Takes integers of any width: what lies above an int's 32 bits is not read."""
    symbol = library[name]
    symbol.argtypes = [ctypes.c_int64] * num_parameters
    symbol.restype = None
    return symbol


@contextmanager
def in_place_of_native(module: EmulatedModule) -> Iterator[EmulatedModule]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "load", lambda: module)
        amx.unavailable.cache_clear()
        yield module
    amx.unavailable.cache_clear()


@pytest.fixture
def module(stage: Stage) -> EmulatedModule:
    if not hasattr(native.load(), "amx"):
        pytest.skip("the native module is built by a compiler without AMX")
    return EmulatedModule(native.load())


@pytest.fixture
def machine_code(module: EmulatedModule, library: ctypes.CDLL) -> Iterator[EmulatedModule]:
    if native.load().has_amx_kernels():
        pytest.skip("this CPU has AMX: the conformance table runs the machine code")
    library.begin_trap()
    with in_place_of_native(module):
        yield module
    library.end_trap()


@pytest.fixture(params=["source", "machine code"])
def tiles(
    request: pytest.FixtureRequest, module: EmulatedModule, library: ctypes.CDLL
) -> Iterator[EmulatedModule]:
    if request.param == "source":
        module.amx = Source(library, few=8)
        with in_place_of_native(module):
            yield module
    else:
        yield request.getfixturevalue("machine_code")


@pytest.fixture
def tiles_for_all(module: EmulatedModule, library: ctypes.CDLL) -> Iterator[EmulatedModule]:
    """The source alone, also for so few tokens that the kernels for AVX512 would run them."""
    module.amx = Source(library, few=0)
    with in_place_of_native(module):
        yield module


def sapphire_rapids() -> CpuDevice:
    """This CPU, as if it had AMX."""
    caps = host.cpu_capabilities()
    added = {Feature.AMX_BF16, Feature.AMX_INT8}
    return CpuDevice(replace(caps, features=caps.features | added))


AMX_KERNELS = [
    OPS[op].kernels[name]
    for op in ("linear", "vocab", "mlp_block", "grouped_linear", "moe_block")
    for name in ("amx_bf16", "amx_int8")
]
AMX_ROWS = [
    pytest.param(kernel, case, id=f"{kernel.op}-{kernel.name}-{case.label}")
    for kernel in AMX_KERNELS
    for case in cases_by_op()[kernel.op]
    if kernel.traits.rejects(sapphire_rapids().capabilities, case.problem) is None
]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("kernel", "case"), AMX_ROWS)
def test_conformance(kernel: Kernel, case: Case) -> None:
    record = conform(kernel, case, sapphire_rapids())
    assert not record.skipped, record.skipped
    assert record.has_passed, str(record)


def test_every_kernel_was_among_them() -> None:
    for kernel in AMX_KERNELS:
        assert any(kernel in row.values for row in AMX_ROWS), f"{kernel.op} {kernel.name}"


ZEN4 = frozenset({Feature.AVX512, Feature.AVX512_BF16, Feature.AVX512_VNNI})
XEON = ZEN4 | {Feature.AMX_BF16, Feature.AMX_INT8}


@pytest.mark.parametrize(
    ("features", "dtype", "format", "bf16", "int8"),
    [
        (ZEN4, DType.BFLOAT16, None, "needs amx_bf16; a CPU has avx512", "stores quantized"),
        (ZEN4, DType.BFLOAT16, "int8", "needs amx_bf16", "needs amx_int8; a CPU has avx512"),
        (XEON, DType.BFLOAT16, None, "", "stores quantized weights; the problem keeps them"),
        (XEON, DType.BFLOAT16, "int4", "the problem asks for int4", ""),
        (XEON, DType.FLOAT32, None, "multiplies in bfloat16; the problem is in float32", "keeps"),
        (XEON, DType.FLOAT32, "int8", "multiplies in bfloat16", ""),
        (frozenset(), DType.BFLOAT16, "int8", "needs avx512_bf16", "needs avx512_bf16"),
    ],
)
def test_reasons(
    features: frozenset[Feature], dtype: DType, format: str | None, bf16: str, int8: str
) -> None:
    """Of absent CPUs as well."""
    caps = replace(host.cpu_capabilities(), name="a CPU", features=features)
    weights = WEIGHT_FORMATS[format] if format else None
    problem = LinearProblem(in_features=8, out_features=8, dtype=dtype, weights=weights)
    for said, rejects in ((bf16, amx.needs_amx_bf16), (int8, amx.needs_amx_int8)):
        reason = rejects(caps, problem)
        assert (reason is None) == (said == "") and said in (reason or "")


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT32])
@pytest.mark.parametrize("format", [None, "int8", "int4"])
@pytest.mark.parametrize("is_deterministic", [False, True])
def test_what_a_cpu_with_amx_would_choose(
    dtype: DType, format: str | None, is_deterministic: bool
) -> None:
    """bfloat16 on tiles is not batch-invariant; codes on tiles are."""
    weights = WEIGHT_FORMATS[format] if format else None
    problem = LinearProblem(in_features=8, out_features=8, dtype=dtype, weights=weights)
    caps = find_profile("amx").capabilities()
    policy = SelectionPolicy(deterministic=is_deterministic)
    selection = Selector(caps, policy, is_present=False).select(OPS["linear"], problem)
    on_tiles = dtype is DType.BFLOAT16 and not is_deterministic
    plain = "amx_bf16" if on_tiles else "avx512_bf16"
    assert selection.kernel.name == ("amx_int8" if format else plain)


def test_tiles_that_are_not_lent_are_a_reason(
    module: EmulatedModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_amx_kernels", lambda: False)
    with in_place_of_native(module):
        assert "does not lend this process AMX tiles" in (amx.unavailable() or "")
        del module.amx
        module._module = ModuleType("old")
        amx.unavailable.cache_clear()
        assert "a compiler without AMX" in (amx.unavailable() or "")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def logical(values: torch.Tensor) -> LogicalWeight:
    return LogicalWeight(values=values, dtype=DType[str(values.dtype)[6:].upper()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """What follows the sums; a gated weight has twice as many rows as columns of out."""

    activation: int = native.NO_ACTIVATION
    is_gated: bool = False
    has_bias: bool = False


def product(
    x: torch.Tensor,
    weight: PackedWeight | QuantizedWeight,
    epilogue: Epilogue,
    *,
    on_tiles: bool,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    columns = weight.rows // 2 if epilogue.is_gated else weight.rows
    out = torch.full((x.shape[0] + 1, columns + 3), float("nan"), dtype=out_dtype)
    bias = random(weight.rows, seed=9).to(x.dtype) if epilogue.has_bias else None
    weight._products = amx.products if on_tiles else native.load
    if isinstance(weight, QuantizedWeight):
        give_exact_scratch(weight, len(x), DType[str(x.dtype)[6:].upper()])
    weight.multiply(x, out[:-1, :columns], bias, epilogue.activation)
    assert out[:, columns:].isnan().all() and out[-1].isnan().all(), "written outside"
    return out[:-1, :columns]


def quantized(
    values: torch.Tensor, format: WeightFormat, stage: Stage, *, is_gated: bool = False
) -> QuantizedWeight:
    rows, columns = values.shape
    problem = LinearProblem(
        in_features=columns, out_features=rows, dtype=DType.FLOAT32, weights=format
    )
    weight = stored_weight(problem, stage.binder, is_gated=is_gated)
    assert isinstance(weight, QuantizedWeight)
    stage.binder.arena.allocate(stage.device)
    weight.allocate(stage.device)
    weight.load(0, logical(values))
    return weight


def packed(values: torch.Tensor, stage: Stage, *, is_gated: bool = False) -> PackedWeight:
    rows, columns = values.shape
    weight = PackedWeight(rows, columns, DType.BFLOAT16, is_gated=is_gated)
    weight.allocate(stage.device)
    weight.load(0, logical(values))
    return weight


def rows_apart(x: torch.Tensor) -> torch.Tensor:
    """The same rows with poison between them, an odd number of elements apart."""
    wide = torch.full((len(x), x.shape[1] + 5 + x.shape[1] % 2), float("nan"), dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


@pytest.mark.usefixtures("tiles_for_all")
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_give_the_bits_of_avx512(
    stage: Stage, shape: tuple[int, int], format: WeightFormat
) -> None:
    weight = quantized(random(*shape), format, stage)
    x = rows_apart(random(max(NUM_TOKENS), shape[1], seed=1))
    expected = product(x, weight, Epilogue(), on_tiles=False)
    for num_tokens in NUM_TOKENS:
        out = product(x[:num_tokens], weight, Epilogue(), on_tiles=True)
        assert torch.equal(out, expected[:num_tokens]), f"{num_tokens} tokens"


EPILOGUES = [
    Epilogue(activation=activation, is_gated=is_gated, has_bias=has_bias)
    for activation in (native.NO_ACTIVATION, *native.ACTIVATION_CODES.values())
    for is_gated in (False, True)
    for has_bias in (False, True)
]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("format", [*FORMATS, None], ids=str)
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
def test_what_follows_the_sums_is_that_of_avx512(
    stage: Stage, epilogue: Epilogue, format: WeightFormat | None
) -> None:
    values, x = random(96, 70), random(37, 70, seed=1)
    if format is None:
        values, x = values.bfloat16(), x.bfloat16()
        weight: PackedWeight | QuantizedWeight = packed(values, stage, is_gated=epilogue.is_gated)
    else:
        weight = quantized(values, format, stage, is_gated=epilogue.is_gated)
    out = product(x, weight, epilogue, on_tiles=True)
    expected = product(x, weight, epilogue, on_tiles=False)
    if format is None:
        assert relative_l2(out.double().numpy(), expected.double().numpy()) < 1e-4
    else:
        assert torch.equal(out, expected)


@pytest.mark.usefixtures("tiles_for_all")
@pytest.mark.parametrize("format", [*FORMATS, None], ids=str)
def test_more_of_x_than_cache_takes_at_once(stage: Stage, format: WeightFormat | None) -> None:
    """Blocks of x, the last of them uneven."""
    values, x = random(20, 9001).bfloat16(), random(100, 9001, seed=1).bfloat16()
    weight = packed(values, stage) if format is None else quantized(values, format, stage)
    out = product(x, weight, Epilogue(), on_tiles=True)
    expected = product(x, weight, Epilogue(), on_tiles=False)
    if format is None:
        assert relative_l2(out.double().numpy(), expected.double().numpy()) < 1e-5
    else:
        assert torch.equal(out, expected)


@pytest.mark.usefixtures("tiles_for_all")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_against_float64(stage: Stage, shape: tuple[int, int]) -> None:
    """And the same bits for any number of tokens, as long as all run on tiles."""
    values = random(*shape).bfloat16()
    x = rows_apart(random(max(NUM_TOKENS), shape[1], seed=1).bfloat16())
    weight = packed(values, stage)
    expected = x.double() @ values.double().T
    every = product(x, weight, Epilogue(), on_tiles=True)
    scale = expected.norm() / expected.numel() ** 0.5
    assert (every.double() - expected).abs().max() / scale < 1e-5
    for num_tokens in NUM_TOKENS:
        out = product(x[:num_tokens], weight, Epilogue(), on_tiles=True)
        assert torch.equal(out, every[:num_tokens]), f"{num_tokens} tokens"
        rounded = product(
            x[:num_tokens], weight, Epilogue(), on_tiles=True, out_dtype=torch.bfloat16
        )
        assert torch.equal(rounded, every[:num_tokens].bfloat16()), f"{num_tokens} tokens"


@pytest.mark.usefixtures("tiles", "one_thread")
@pytest.mark.parametrize("format", [*FORMATS, None], ids=str)
def test_threads_do_not_change_a_bit(stage: Stage, format: WeightFormat | None) -> None:
    values, x = random(200, 300).bfloat16(), random(100, 300, seed=1).bfloat16()
    weight = packed(values, stage) if format is None else quantized(values, format, stage)
    alone = product(x, weight, Epilogue(), on_tiles=True)
    torch.set_num_threads(3)
    assert torch.equal(product(x, weight, Epilogue(), on_tiles=True), alone)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("format", [*FORMATS, None], ids=str)
def test_a_bad_activation_stays_in_its_row(stage: Stage, format: WeightFormat | None) -> None:
    values, x = random(20, 71).bfloat16(), random(40, 71, seed=1).bfloat16()
    weight = packed(values, stage) if format is None else quantized(values, format, stage)
    x[3, 70], x[20, 0] = float("nan"), float("inf")
    out = product(x, weight, Epilogue(), on_tiles=True)
    assert np.flatnonzero(~out.isfinite().all(dim=1)).tolist() == [3, 20]
    assert not out[[3, 20]].isfinite().any()


@pytest.mark.parametrize("format", [*FORMATS, None], ids=str)
@pytest.mark.usefixtures("machine_code")
def test_few_tokens_run_without_tiles(
    stage: Stage, library: ctypes.CDLL, format: WeightFormat | None
) -> None:
    values, x = random(16, 8).bfloat16(), random(9, 8, seed=1).bfloat16()
    weight = packed(values, stage) if format is None else quantized(values, format, stage)
    product(x[:8], weight, Epilogue(), on_tiles=True)
    assert library.end_trap() == 0
    library.begin_trap()
    product(x, weight, Epilogue(), on_tiles=True)
    assert library.end_trap() > 0
    library.begin_trap()


def test_the_smoke_run_finds_wrong_tiles(
    tiles: EmulatedModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert amx.unavailable() is None
    for name, said in (
        ("quantized_linear", "in codes"),
        ("linear", "smoke run: 3 * 5 + 1 * 0.5 gave"),
    ):
        monkeypatch.setattr(tiles.amx, name, lambda *arguments: None)
        amx.unavailable.cache_clear()
        assert said in (amx.unavailable() or "")


@pytest.mark.parametrize("instruction", ["ldtilecfg", "tdpbf16ps", "tdpbsud", "tilerelease"])
def test_the_native_module_holds_the_instruction(instruction: str) -> None:
    objdump = shutil.which("objdump")
    if native.unavailable() or objdump is None or not hasattr(native.load(), "amx"):
        pytest.skip("no objdump, or no native module with AMX")
    assert instruction in disassembled(objdump)


def disassembled(objdump: str) -> str:
    path = native.load().__file__
    assert path is not None
    command = [objdump, "--disassemble", "--no-show-raw-insn", path]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
