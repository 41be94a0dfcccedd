"""Products with packed weights: every tile shape and tail, one order of summation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hal.conformance.limits import LIMITS, relative_l2
from hal.conformance.stage import Stage
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.block import FusedMlpBlock
from hal.kernels.cpu.linear import PackedLinear
from hal.kernels.cpu.packed_weight import PackedWeight
from hal.kernels.reference.elementwise import activate
from hal.opset.block import MlpBlockProblem
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearProblem
from hal.weights import LogicalWeight

DTYPES = [DType.FLOAT32, DType.BFLOAT16]
TORCH = {
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
}
# Rows x columns: one element, tails of every kind, more than one depth block of 256.
SHAPES = [(1, 3), (16, 8), (100, 72), (130, 77), (48, 33), (192, 600), (70, 1027)]
# Each tile height, the edges of row blocks of 96, and an uneven split of several.
NUM_TOKENS = [1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 96, 97, 200]


def logical(values: torch.Tensor) -> LogicalWeight:
    names = {dtype: name for name, dtype in TORCH.items()}
    return LogicalWeight(values=values, dtype=names[values.dtype])


def random(*shape: int, dtype: DType, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(TORCH[dtype])


def packed(
    values: torch.Tensor, dtype: DType, stage: Stage, is_gated: bool = False
) -> PackedWeight:
    weight = PackedWeight(values.shape[0], values.shape[1], dtype, is_gated=is_gated)
    weight.allocate(stage.device)
    weight.load(0, logical(values))
    return weight


def product(x: torch.Tensor, weight: PackedWeight, out_dtype: DType | None = None) -> torch.Tensor:
    columns = weight.rows // 2 if weight.is_gated else weight.rows
    dtype = x.dtype if out_dtype is None else TORCH[out_dtype]
    out = torch.full((x.shape[0], columns + 3), float("nan"), dtype=dtype)
    activation = native.ACTIVATION_CODES[Activation.SILU] if weight.is_gated else 0
    weight.multiply(x, out[:, :columns], activation=activation)
    assert out[:, columns:].isnan().all(), "written behind a row"
    return out[:, :columns]


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return relative_l2(actual.double().numpy(), expected.double().numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(stage: Stage, shape: tuple[int, int], dtype: DType) -> None:
    """Rows of x lie apart, with poison between them."""
    rows, columns = shape
    weight = random(rows, columns, dtype=dtype)
    x = torch.full((max(NUM_TOKENS), columns + 5), float("nan"), dtype=TORCH[dtype])
    x[:, :columns] = random(max(NUM_TOKENS), columns, dtype=dtype, seed=1)
    expected = x[:, :columns].double() @ weight.double().T
    stored = packed(weight, dtype, stage)
    for num_tokens in NUM_TOKENS:
        out = product(x[:num_tokens, :columns], stored, DType.FLOAT32)
        # One output has no row to average over: compare with the size of all.
        scale = expected.norm() / expected.numel() ** 0.5
        difference = (out.double() - expected[:num_tokens]).abs().max() / scale
        assert difference < 1e-5, f"{num_tokens} tokens"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order_of_summation_is_the_same_at_every_batch_size(stage: Stage, dtype: DType) -> None:
    x = random(max(NUM_TOKENS), 600, dtype=dtype, seed=2)
    weight = packed(random(192, 600, dtype=dtype), dtype, stage)
    every = product(x, weight)
    for num_tokens in NUM_TOKENS:
        assert torch.equal(product(x[:num_tokens], weight), every[:num_tokens]), num_tokens


@pytest.mark.usefixtures("one_thread")
def test_threads_do_not_change_a_bit(stage: Stage) -> None:
    x = random(100, 300, dtype=DType.BFLOAT16)
    weight = packed(random(200, 300, dtype=DType.BFLOAT16), DType.BFLOAT16, stage)
    alone = product(x, weight)
    torch.set_num_threads(2)
    assert torch.equal(product(x, weight), alone)


@pytest.mark.parametrize("source", [DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [40, 41])
def test_rows_come_back_as_they_were_packed(
    stage: Stage, source: DType, dtype: DType, columns: int
) -> None:
    """Loaded in slices that start and end anywhere; read by the look-up of tied embeddings."""
    values = random(100, columns, dtype=source)
    weight = PackedWeight(100, columns, dtype)
    weight.allocate(stage.device)
    for first, last in ((37, 100), (0, 16), (16, 37)):
        weight.load(first, logical(values[first:last]))
    ids = torch.tensor([99, 0, 15, 16, 37, 63, 64], dtype=torch.int32)
    out = torch.empty(len(ids), columns, dtype=TORCH[dtype])
    weight.look_up(ids, out)
    assert torch.equal(out, values[ids.long()].to(TORCH[dtype]))


def test_an_id_outside_the_vocabulary_gives_nan(stage: Stage) -> None:
    weight = packed(random(20, 8, dtype=DType.BFLOAT16), DType.BFLOAT16, stage)
    ids = torch.tensor([-1, 3, 20], dtype=torch.int32)
    out = torch.zeros(3, 8, dtype=torch.bfloat16)
    weight.look_up(ids, out)
    assert out.isnan().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_of_merged_slices(stage: Stage, dtype: DType) -> None:
    problem = LinearProblem(in_features=24, out_features=50, dtype=dtype, has_bias=True)
    layer = PackedLinear(problem, stage.binder)
    layer.allocate(stage.device)
    weight, bias = random(50, 24, dtype=dtype), random(50, dtype=dtype, seed=3)
    for rows in (slice(0, 30), slice(30, 50)):
        layer.load(rows.start, logical(weight[rows]))
        layer.load_bias(rows.start, bias[rows])
    x = random(9, 24, dtype=dtype, seed=4)
    out = torch.empty(9, 50, dtype=TORCH[dtype])
    layer(x, out)
    expected = x.double() @ weight.double().T + bias.double()
    assert error(out, expected) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("is_gated", [True, False])
def test_mlp_block(stage: Stage, is_gated: bool, activation: Activation, dtype: DType) -> None:
    """With biases; gate and up loaded in slices that cross from one into the other."""
    size = 80
    problem = MlpBlockProblem(
        hidden_size=40,
        intermediate_size=size,
        activation=activation,
        is_gated=is_gated,
        has_bias=True,
        dtype=dtype,
    )
    block = FusedMlpBlock(problem, stage.binder)
    up_rows = 2 * size if is_gated else size
    up, up_bias = random(up_rows, 40, dtype=dtype) / 6, random(up_rows, dtype=dtype)
    down, down_bias = random(40, size, dtype=dtype), random(40, dtype=dtype)
    for family in (block.up, block.down):
        family.allocate(stage.device)
    for rows in (slice(0, 70), slice(70, up_rows)):
        block.up.load(rows.start, logical(up[rows]))
        block.up.load_bias(rows.start, up_bias[rows])
    block.down.load(0, logical(down))
    block.down.load_bias(0, down_bias)
    stage.binder.arena.allocate(stage.device)
    x, out = random(19, 40, dtype=dtype, seed=5), torch.empty(19, 40, dtype=TORCH[dtype])
    block(x, out)
    expected = mlp(x, up, up_bias, down, down_bias, problem)
    assert error(out, expected) < LIMITS[dtype]


def mlp(
    x: torch.Tensor,
    up: torch.Tensor,
    up_bias: torch.Tensor,
    down: torch.Tensor,
    down_bias: torch.Tensor,
    problem: MlpBlockProblem,
) -> torch.Tensor:
    """In float64."""
    hidden = x.double() @ up.double().T + up_bias.double()
    if problem.is_gated:
        gate, hidden = hidden.chunk(2, dim=-1)
        hidden = activate(gate, problem.activation) * hidden
    else:
        hidden = activate(hidden, problem.activation)
    return hidden @ down.double().T + down_bias.double()


def test_nan_in_a_row_stays_in_that_row(stage: Stage) -> None:
    """Padding of the weight is zero, and nothing else is multiplied."""
    x = random(8, 33, dtype=DType.BFLOAT16)
    x[3] = float("nan")
    out = product(x, packed(random(20, 33, dtype=DType.BFLOAT16), DType.BFLOAT16, stage))
    is_nan = out.isnan().any(dim=1).numpy()
    assert np.flatnonzero(is_nan).tolist() == [3]


def all_halves() -> torch.Tensor:
    return torch.arange(1 << 16).to(torch.int16).view(torch.float16)


def floats_of_every_exponent() -> torch.Tensor:
    """Both signs, denormals, infinities, NaN; mantissas that round up, down and to even."""
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x18000, 0x7FFFFF])
    bits = (torch.arange(512) << 23)[:, None] | low
    return bits.to(torch.int32).view(torch.float32).flatten()


@pytest.mark.parametrize("num_rows", [64, 63])
@pytest.mark.parametrize("values", [all_halves(), floats_of_every_exponent()], ids=["f16", "f32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packing_converts_every_number_as_torch_does(
    stage: Stage, dtype: DType, values: torch.Tensor, num_rows: int
) -> None:
    """64 rows are converted in groups, the last of 63 one by one."""
    rows = values.reshape(64, -1)[:num_rows]
    out = torch.empty(rows.shape, dtype=TORCH[dtype])
    packed(rows, dtype, stage).look_up(torch.arange(num_rows, dtype=torch.int32), out)
    expected = rows.to(TORCH[dtype])
    assert torch.equal(out.isnan(), expected.isnan())
    integers = torch.int32 if dtype is DType.FLOAT32 else torch.int16
    numbers = ~expected.isnan()
    assert torch.equal(out.view(integers)[numbers], expected.view(integers)[numbers])
