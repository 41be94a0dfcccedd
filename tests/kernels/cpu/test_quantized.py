"""Products with codes: every tile height and tail, with the reference's numbers."""

from __future__ import annotations

import pytest
import torch
from exact_scratch import give_exact_scratch

from hal.conformance.stage import Stage
from hal.dtypes import DType
from hal.errors import UnsupportedError, WeightsError
from hal.kernels.cpu import native
from hal.kernels.cpu.block import FusedMlpBlock
from hal.kernels.cpu.linear import PackedLinear, stored_weight
from hal.kernels.cpu.quantized_weight import QuantizedWeight
from hal.kernels.reference.block import ComposedMlpBlock
from hal.kernels.reference.quantized_rows import QuantizedMatrix
from hal.opset.block import MlpBlock, MlpBlockProblem
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearProblem
from hal.weights import WEIGHT_FORMATS, Granularity, LogicalWeight, WeightFormat

FORMATS = list(WEIGHT_FORMATS.values())
# Rows x columns: less than a strip, tails of every kind, several panels and groups.
SHAPES = [(1, 3), (16, 8), (100, 72), (130, 77), (48, 33), (192, 600), (70, 1027)]
# Every tile height, uneven tiles, more than a block of x at 16 tokens.
NUM_TOKENS = [*range(1, 18), 33, 47, 300]


def logical(values: torch.Tensor) -> LogicalWeight:
    return LogicalWeight(values=values, dtype=DType[str(values.dtype)[6:].upper()])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def stored(
    values: torch.Tensor, format: WeightFormat, stage: Stage, *, is_gated: bool = False
) -> QuantizedWeight:
    problem = LinearProblem(
        in_features=values.shape[1],
        out_features=values.shape[0],
        dtype=DType.FLOAT32,
        weights=format,
    )
    weight = stored_weight(problem, stage.binder, is_gated=is_gated)
    assert isinstance(weight, QuantizedWeight)
    stage.binder.arena.allocate(stage.device)
    weight.allocate(stage.device)
    weight.load(0, logical(values))
    return weight


def product(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    out = torch.full((x.shape[0], weight.rows + 3), float("nan"))
    give_exact_scratch(weight, len(x), DType[str(x.dtype)[6:].upper()])
    weight.multiply(x, out[:, : weight.rows])
    assert out[:, weight.rows :].isnan().all(), "written behind a row"
    return out[:, : weight.rows]


def reference(values: torch.Tensor, format: WeightFormat, stage: Stage) -> QuantizedMatrix:
    matrix = QuantizedMatrix(values.shape[0], values.shape[1], format)
    matrix.allocate(stage.device)
    matrix.load(0, logical(values))
    return matrix


@pytest.mark.parametrize("format", FORMATS, ids=WEIGHT_FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_is_the_references(
    stage: Stage, shape: tuple[int, int], format: WeightFormat
) -> None:
    """Rows of x lie apart, with poison between them; every M gives the same bits."""
    rows, columns = shape
    values = random(rows, columns)
    x = torch.full((max(NUM_TOKENS), columns + 5), float("nan"))
    x[:, :columns] = random(max(NUM_TOKENS), columns, seed=1)
    expected = reference(values, format, stage).multiply(x[:, :columns])
    weight = stored(values, format, stage)
    every = product(x[:, :columns], weight)
    scale = expected.norm() / expected.numel() ** 0.5
    assert (every - expected).abs().max() / scale < 1e-5
    for num_tokens in NUM_TOKENS:
        out = product(x[:num_tokens, :columns], weight)
        assert torch.equal(out, every[:num_tokens]), f"{num_tokens} tokens"


@pytest.mark.parametrize("format", FORMATS, ids=WEIGHT_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_come_back_as_their_codes(
    stage: Stage, format: WeightFormat, dtype: torch.dtype
) -> None:
    """Loaded in slices that start and end anywhere, read by the look-up of tied embeddings."""
    values = random(100, 41).to(dtype)
    weight = stored(values.float(), format, stage)
    for first, last in ((37, 100), (0, 16), (16, 37)):
        weight.load(first, logical(values[first:last]))
    ids = torch.tensor([99, 0, 15, 16, 37, 63, 64], dtype=torch.int32)
    out = torch.empty(len(ids), 41)
    weight.look_up(ids, out)
    assert torch.equal(out, reference(values, format, stage).look_up(ids))


def e4m3_ladder() -> torch.Tensor:
    """[2, 379]: every magnitude of e4m3 up to 448, what lies half way between two, and close by."""
    steps = [m * 2.0**-9 for m in range(8)]
    steps += [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)][:-1]
    exact = torch.tensor(steps)
    half = (exact[1:] + exact[:-1]) / 2
    row = torch.cat([exact, half, torch.nextafter(half, torch.zeros(()))])
    return torch.stack([row, -row])


def test_every_e4m3_is_stored_and_decoded(stage: Stage) -> None:
    """The subnormal ones as well, whose share in a product is too small to show there."""
    values, fp8 = e4m3_ladder(), WEIGHT_FORMATS["fp8"]
    weight, matrix = stored(values, fp8, stage), reference(values, fp8, stage)
    found = torch.empty_like(values)
    weight.look_up(torch.arange(2, dtype=torch.int32), found)
    assert torch.equal(found, matrix.look_up(torch.arange(2)))
    exact, half, below = values[0, :127], found[0, 127:253], found[0, 253:]
    assert torch.equal(found[:, :127], torch.stack([exact, -exact]))
    assert torch.equal(below, exact[:-1])
    even = torch.stack([exact[:-1], exact[1:]])[torch.arange(126) % 2, torch.arange(126)]
    assert torch.equal(half, even), "of two equally near the one with an even code"
    for columns in torch.arange(values.shape[1]).split(16):
        one_of_each = torch.zeros(len(columns), values.shape[1])
        one_of_each[torch.arange(len(columns)), columns] = 1.0
        assert torch.equal(product(one_of_each, weight), found[:, columns].T)


@pytest.mark.parametrize("name", ["int8-a16", "int4-a16", "int4-asym-a16"])
def test_every_whole_code_is_decoded(stage: Stage, name: str) -> None:
    """Columns of one token each, in groups that hold all codes."""
    values = random(40, 320)
    weight = stored(values, WEIGHT_FORMATS[name], stage)
    found = reference(values, WEIGHT_FORMATS[name], stage).look_up(torch.arange(40))
    assert torch.equal(product(torch.eye(320), weight), found.T)


@pytest.mark.parametrize("format", FORMATS, ids=WEIGHT_FORMATS)
def test_an_id_outside_the_vocabulary_gives_nan(stage: Stage, format: WeightFormat) -> None:
    out = torch.zeros(3, 40)
    ids = torch.tensor([-1, 3, 20], dtype=torch.int32)
    stored(random(20, 40), format, stage).look_up(ids, out)
    assert out.isnan().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("format", FORMATS, ids=WEIGHT_FORMATS)
@pytest.mark.parametrize("columns", [3, 64, 77, 300])
def test_a_load_fills_exactly_the_bytes_that_are_stated(
    stage: Stage, format: WeightFormat, columns: int
) -> None:
    """The layout's arithmetic in Python is that of the native module: none less, none more."""
    weight = QuantizedWeight(33, columns, format)
    memory = torch.full((weight.num_bytes + 64,), 0xA5, dtype=torch.uint8)
    values = random(48, columns)
    layout = (weight.group_size, weight.has_zeros, weight.codes)
    for fill in (0xA5, 0x5A):
        memory.fill_(fill)
        native.load().quantize_rows(
            values.data_ptr(), 0, columns, 48, memory.data_ptr(), 48, columns, *layout, 0, False, 1,
        )  # fmt: skip
        assert (memory[weight.num_bytes :] == fill).all(), "written behind the weight"
        assert (memory[weight.num_bytes - 64 : weight.num_bytes] != fill).any()


@pytest.mark.parametrize("format", FORMATS, ids=WEIGHT_FORMATS)
@pytest.mark.parametrize("num_tokens", [1, 5, 40, 300])
@pytest.mark.usefixtures("one_thread")
def test_threads_do_not_change_a_bit(stage: Stage, num_tokens: int, format: WeightFormat) -> None:
    """More threads than panels share panels; a gate and its up stay with one thread."""
    for is_gated in (False, True):
        weight = stored(random(96, 900), format, stage, is_gated=is_gated)
        x, outs = random(num_tokens, 900, seed=2), []
        for num_threads in (1, 2, 7):
            torch.set_num_threads(num_threads)
            out = torch.full((num_tokens, 48 if is_gated else 96), float("nan"))
            weight.multiply(x, out, None, native.ACTIVATION_CODES[Activation.SILU])
            outs.append(out)
        assert not outs[0].isnan().any()
        assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("format", FORMATS, ids=WEIGHT_FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_activation_stays_in_its_row(stage: Stage, format: WeightFormat, bad: float) -> None:
    """It must not vanish in a code, and its neighbours must not change."""
    x, weight = random(20, 70), stored(random(20, 70), format, stage)
    clean = product(x, weight)
    x[3, 69] = bad
    out = product(x, weight)
    if format.keeps_activations:
        assert not out[3].isfinite().any()  # as of floats: infinity times a code of 0 is NaN
    else:
        assert out[3].isnan().all()
    others = [row for row in range(20) if row != 3]
    assert torch.equal(out[others], clean[others])


@pytest.mark.parametrize("format", FORMATS, ids=WEIGHT_FORMATS)
def test_zeros_and_tiny_values(stage: Stage, format: WeightFormat) -> None:
    """Below SMALLEST all weights and codes are zero; no inverse becomes infinite."""
    values = random(20, 70)
    values[2], values[5] = 0.0, 1e-38
    x = random(4, 70)
    x[1], x[2] = 0.0, -1e-35
    out = product(x, stored(values, format, stage))
    assert out.isfinite().all()
    assert not out[:, [2, 5]].any() and not out[1].any()
    assert not out[2].any() or format.keeps_activations and out[2].abs().max() < 1e-30
    assert torch.allclose(out, reference(values, format, stage).multiply(x), atol=1e-5)


@pytest.mark.parametrize("format", FORMATS, ids=WEIGHT_FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(
    stage: Stage, format: WeightFormat, bad: float
) -> None:
    values = random(40, 70)
    values[7, 69], values[8, 0] = bad, bad
    with pytest.raises(WeightsError, match="2 rows of a weight hold NaN or infinity"):
        stored(values, format, stage)


def test_weights_with_scales_are_refused(stage: Stage) -> None:
    values = random(16, 32)
    weight = stored(values, WEIGHT_FORMATS["int8"], stage)
    scaled = LogicalWeight(
        values=values, dtype=DType.INT8, scales=values[:, :1], granularity=Granularity.CHANNEL
    )
    with pytest.raises(UnsupportedError, match="not supported yet: weights of int8 with scales"):
        weight.load(0, scaled)


@pytest.mark.parametrize("format", FORMATS, ids=WEIGHT_FORMATS)
def test_bias_of_merged_slices(stage: Stage, format: WeightFormat) -> None:
    problem = LinearProblem(
        in_features=24, out_features=50, dtype=DType.FLOAT32, has_bias=True, weights=format
    )
    layer = PackedLinear(problem, stage.binder)
    stage.binder.arena.allocate(stage.device)
    layer.allocate(stage.device)
    values, bias = random(50, 24), random(50, seed=3)
    for rows in (slice(0, 30), slice(30, 50)):
        layer.load(rows.start, logical(values[rows]))
        layer.load_bias(rows.start, bias[rows])
    x, out = random(9, 24, seed=4), torch.empty(9, 50)
    layer(x, out)
    expected = reference(values, format, stage).multiply(x) + bias
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS, ids=WEIGHT_FORMATS)
@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("is_gated", [True, False])
def test_mlp_block(
    stage: Stage, is_gated: bool, activation: Activation, format: WeightFormat
) -> None:
    """Against the composition of unfused kernels; biases, and slices across gate and up."""
    problem = MlpBlockProblem(
        hidden_size=40,
        intermediate_size=80,
        activation=activation,
        is_gated=is_gated,
        has_bias=True,
        dtype=DType.FLOAT32,
        weights=format,
    )
    fused: MlpBlock = FusedMlpBlock(problem, stage.binder)
    composed: MlpBlock = ComposedMlpBlock(problem, stage.binder)
    stage.binder.arena.allocate(stage.device)
    x, results = random(19, 40, seed=5), []
    for block in (fused, composed):
        for family, rows in ((block.up, 160 if is_gated else 80), (block.down, 40)):
            family.allocate(stage.device)
            values, bias = random(rows, family.problem.in_features) / 6, random(rows, seed=7)
            for part in (slice(0, 30), slice(30, rows)):
                family.load(part.start, logical(values[part]))
                family.load_bias(part.start, bias[part])
        out = torch.empty(19, 40)
        block(x, out)
        results.append(out)
    error = (results[0] - results[1]).norm() / results[1].norm()
    assert error < 1e-3  # an inner code may fall the other way
