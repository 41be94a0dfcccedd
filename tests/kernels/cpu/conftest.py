"""A stage on this machine's CPU, or a skip with the reason why its native kernels cannot run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import hal.kernels
from hal.conformance.stage import Stage
from hal.devices.cpu import CpuDevice
from hal.kernels.cpu import native
from hal.opset import linear
from hal.opset.linear import LinearProblem


@pytest.fixture
def stage() -> Stage:
    """Seeded values and a binder over a present CPU that has AVX512_BF16 and AVX512_VNNI."""
    hal.kernels.register_all()
    device = CpuDevice()
    problem = LinearProblem(in_features=1, out_features=1, dtype=hal.dtypes.DType.BFLOAT16)
    traits = linear.kernels["avx512_bf16"].traits
    reason = traits.rejects(device.capabilities, problem) or native.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return Stage(device, seed=20)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The kernels take their number of threads from torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
