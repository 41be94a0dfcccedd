"""The GPU's benchmark of products, on tensors of the host with a clock that is made up."""

from __future__ import annotations

import cpu_linear
import gpu_linear
import pytest

import hal.kernels
from hal.devices.cpu import CpuDevice
from hal.errors import HalError


class MadeUpClock:
    """Every run takes a millisecond more than the one before."""

    def __init__(self) -> None:
        self.num_prepared = self.num_runs = 0

    def prepare(self, run: gpu_linear.Run) -> gpu_linear.Run:
        self.num_prepared += 1
        return run

    def seconds(self, run: gpu_linear.Run) -> float:
        run()
        self.num_runs += 1
        return self.num_runs * 1e-3


def test_arms_take_turns_and_are_compared_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    hal.kernels.register_all()
    monkeypatch.setattr(cpu_linear, "_SIZE", 64)
    monkeypatch.setattr(cpu_linear, "_CACHE_BYTES", 20_000)
    monkeypatch.setattr(gpu_linear, "_NUM_TOKENS", (1, 5))
    clock = MadeUpClock()
    arms = gpu_linear.parse_arms("torch:none,reference_quantized:int4-a16")
    rows = gpu_linear.measure(arms, CpuDevice(), 3, clock)
    assert [(row.kernel, row.num_tokens) for row in rows] == [
        *(("torch", 1), ("reference_quantized", 1), ("torch", 5), ("reference_quantized", 5))
    ]
    assert (clock.num_prepared, clock.num_runs) == (4, 12)
    # 1, 3, 5 and 2, 4, 6 ms of all copies.
    num_copies = -(-20_000 // (64 * 64 * 2)), -(-20_000 // (64 * (64 + 8)))
    assert rows[0].speed_up == 1.0
    assert rows[1].speed_up == pytest.approx(3 / num_copies[0] / (4 / num_copies[1]), abs=1e-3)


@pytest.mark.parametrize("text", ["torch", "torch:", ":none", "torch:int3"])
def test_an_arm_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(HalError):
        gpu_linear.parse_arms(text)
