"""Activations rounded by Triton's programs have the reference's codes, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from triton_interpreter import interpreters, round_activations

from hal.kernels.reference.quantized_rows import quantize_activations
from hal.kernels.triton.program import is_installed
from hal.weights import WEIGHT_FORMATS

pytestmark = pytest.mark.skipif(not is_installed(), reason="triton is not installed")

COLUMNS = 100  # no multiple of a group, of a chunk of columns, or of a block


def rows() -> torch.Tensor:
    """Noise, then what is easily got wrong, in columns of the first group."""
    x = torch.randn((9, COLUMNS), generator=torch.Generator().manual_seed(7))
    x[1] = 0.0
    x[2] *= 1e-32  # counts as zero
    x[3] *= 1e30
    x[4, 3], x[5, 3], x[6, 3] = torch.nan, torch.inf, -torch.inf
    x[7, :3] = torch.tensor([127.0, 0.5, -1.5])  # in the middle between two codes
    x[7, 3:] = 2.5
    x[8, 0] = 1e4  # costs its neighbours
    return x


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with interpreters() as processes:
        yield processes


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_and_scales_are_those_of_the_reference(
    name: str, dtype: torch.dtype, pool: ProcessPoolExecutor
) -> None:
    x, format = rows().to(dtype), WEIGHT_FORMATS[name]
    found = pool.submit(round_activations, x, format).result(timeout=120)
    wanted = quantize_activations(x, format)
    assert torch.equal(found.codes, wanted.codes)
    torch.testing.assert_close(found.scales, wanted.scales, rtol=0, atol=0, equal_nan=True)
