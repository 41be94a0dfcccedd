"""Products of one 4096 x 4096 weight on a GPU: kernels against the matrix library, in one run.

    python benchmarks/gpu_linear.py --device cuda
    python benchmarks/gpu_linear.py --device cuda --arms torch:none,gemv:none,mma_int4:int4-g128-a16

An arm is KERNEL:FORMAT, the first is what the others are compared with. Copies of the weight that
together are larger than any cache pass by, arms take turns, and the device's own clock measures a
pass. What copying memory reaches (read and written) is measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import record
import torch
from cpu_linear import Arm, binder_of, layers_of

import hal.kernels
from hal.device import Device
from hal.devices import open_device
from hal.errors import ConfigError
from hal.opset.linear import LinearFamily
from hal.weights import find_format

_ARMS = "torch:none,gemv:none,triton:int4-g128-a16,mma_int4:int4-g128-a16,mma_int4:int4-a16"
_NUM_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
_COPIED_BYTES = 1 << 30

Run = Callable[[], object]


class Clock(Protocol):
    """prepare: once before a run is measured."""

    def prepare(self, run: Run) -> Run: ...

    def seconds(self, run: Run) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """speed_up: over the first arm, of medians; gigabytes_s: of the weight's bytes."""

    kernel: str
    format: str
    num_tokens: int
    microseconds: record.Spread
    gigabytes_s: float
    speed_up: float


class DeviceClock:
    """Events of torch's current stream around a recorded graph: launches from Python take longer
    than a product of one token."""

    def prepare(self, run: Run) -> Run:
        run()  # compiles, and takes what memory it wants
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        graph.replay()
        return graph.replay

    def seconds(self, run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def parse_arms(text: str) -> list[Arm]:
    """Raises ConfigError for what is no KERNEL:FORMAT."""
    arms = []
    for part in text.split(","):
        kernel, _, format = part.partition(":")
        if not kernel or not format:
            raise ConfigError(f"--arms {part!r}: write KERNEL:FORMAT, such as torch:none")
        find_format(format)
        arms.append(Arm(kernel, format))
    return arms


def measure(arms: Sequence[Arm], device: Device, rounds: int, clock: Clock) -> list[Row]:
    """Every arm at every number of tokens."""
    layers: dict[Arm, list[LinearFamily]] = {}
    for arm in arms:
        binder = binder_of(arm.kernel, device)
        layers[arm] = layers_of(arm.format, binder, device)
        binder.arena.allocate(device)
    rows: list[Row] = []
    for num_tokens in _NUM_TOKENS:
        runs = {arm: clock.prepare(_pass(layers[arm], device, num_tokens)) for arm in arms}
        times: dict[Arm, list[float]] = {arm: [] for arm in arms}
        for _ in range(rounds):
            for arm, run in runs.items():
                times[arm].append(clock.seconds(run) / len(layers[arm]))
        first = statistics.median(times[arms[0]])
        rows += [_row(arm, layers[arm][0], num_tokens, times[arm], first) for arm in arms]
    return rows


def _pass(layers: list[LinearFamily], device: Device, num_tokens: int) -> Run:
    """One product with each copy of the weight."""
    p = layers[0].problem
    x, out = (device.empty((num_tokens, n), p.dtype) for n in (p.in_features, p.out_features))
    assert isinstance(x, torch.Tensor)
    x.normal_()

    def run() -> None:
        for layer in layers:
            layer(x, out)

    return run


def _row(arm: Arm, layer: LinearFamily, num_tokens: int, times: list[float], first: float) -> Row:
    median = statistics.median(times)
    return Row(
        kernel=arm.kernel,
        format=arm.format,
        num_tokens=num_tokens,
        microseconds=record.spread([t * 1e6 for t in times]),
        gigabytes_s=round(layer.num_bytes / median / 1e9, 1),
        speed_up=round(first / median, 3),
    )


def copy_rate(clock: Clock) -> record.Spread:
    """Bytes read and written a second by a copy within the device."""
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [clock.seconds(lambda: target.copy_(source)) for _ in range(6)][1:]
    return record.spread([2 * _COPIED_BYTES / t / 1e9 for t in times])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--arms", default=_ARMS, help="KERNEL:FORMAT, with commas")
    options = parser.parse_args()
    hal.kernels.register_all()
    arms = parse_arms(options.arms)
    device = open_device(options.device).device
    clock = DeviceClock()
    rate, rows = copy_rate(clock), measure(arms, device, options.rounds, clock)
    report = {
        **record.header("gpu_linear"),
        "device": device.capabilities.name,
        "driver": device.capabilities.versions.driver,
        "copy_gigabytes_s": asdict(rate),
        "rows": [asdict(row) for row in rows],
    }
    name = device.capabilities.arch
    record.write(record.RESULTS / f"gpu_linear-{name}.json", report)
    sys.stdout.write(f"copy {rate.median:.0f} GB/s\n")
    for row in rows:
        sys.stdout.write(
            f"{row.kernel:10} {row.format:18} M={row.num_tokens:<4} "
            f"{row.microseconds.median:8.1f} us {row.gigabytes_s:7.0f} GB/s x {row.speed_up:.2f}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
