"""Products of one 4096 x 4096 weight in every format: bytes read and operations a second.

    python benchmarks/cpu_linear.py --threads 2
    python benchmarks/cpu_linear.py --threads 2 --formats none,fp8,int4-a16
    python benchmarks/cpu_linear.py --threads 1 --kernel avx2 --kernel avx512

Enough copies of the weight pass by that none is in cache when its turn comes again, and formats
take turns, so that a neighbour on the machine slows all of them. The rate at which torch sums a
large tensor is measured in the same run, as what reading memory can reach. Each --kernel is one
more arm of every format that it can run, beside the kernels that are preferred here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

import record
import torch

import hal.kernels
from hal.binding import Arena, Binder
from hal.device import Device
from hal.devices.cpu import CpuDevice
from hal.dtypes import DType
from hal.errors import SelectionError
from hal.opset import linear
from hal.opset.linear import LinearFamily, LinearProblem
from hal.select import SelectionPolicy, Selector
from hal.weights import UNQUANTIZED, WEIGHT_FORMATS, LogicalWeight, find_format

_SIZE = 4096
_FORMATS = ",".join((UNQUANTIZED, *WEIGHT_FORMATS))
_NUM_TOKENS = (1, 2, 4, 8, 16, 32, 128, 512)
_CACHE_BYTES = 128 << 20  # more than any last-level cache here


@dataclass(frozen=True, slots=True)
class Row:
    """One format at one number of tokens; rates are of the weight's bytes and of 2 M N K.

    kernel: the one asked for; "" where the preferred one ran
    """

    kernel: str
    format: str
    num_tokens: int
    gigabytes_s: record.Spread
    teraops_s: record.Spread


@dataclass(frozen=True, slots=True)
class Arm:
    """A kernel and a format; kernel "": the preferred one."""

    kernel: str
    format: str


def binder_of(kernel: str, device: Device) -> Binder:
    overrides = {"linear": kernel} if kernel else {}
    policy = SelectionPolicy(overrides=overrides)
    return Binder(Selector(device.capabilities, policy), Arena(max(_NUM_TOKENS)), device)


def arms_of(
    formats: Sequence[str], kernels: Sequence[str], device: Device
) -> dict[Arm, list[LinearFamily]]:
    """Of every kernel the formats that it can run."""
    arms = {}
    for kernel in ("", *kernels):
        binder = binder_of(kernel, device)
        for name in formats:
            with suppress(SelectionError):
                arms[Arm(kernel, name)] = layers_of(name, binder, device)
        binder.arena.allocate(device)
    return arms


def layers_of(name: str, binder: Binder, device: Device) -> list[LinearFamily]:
    """Copies of one random weight that together leave no cache to the next round."""
    problem = LinearProblem(
        in_features=_SIZE,
        out_features=_SIZE,
        dtype=DType.BFLOAT16,
        weights=WEIGHT_FORMATS.get(name),
    )
    values = torch.randn(_SIZE, _SIZE, generator=torch.Generator().manual_seed(0)).bfloat16()
    layers: list[LinearFamily] = []
    while sum(layer.num_bytes for layer in layers) < _CACHE_BYTES:
        layer: LinearFamily = binder.bind(linear, problem)
        layer.allocate(device)
        layer.load(0, LogicalWeight(values=values, dtype=DType.BFLOAT16))
        layers.append(layer)
    return layers


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_row(arm: Arm, layers: list[LinearFamily], num_tokens: int, times: list[float]) -> Row:
    num_bytes = layers[0].num_bytes
    return Row(
        arm.kernel,
        arm.format,
        num_tokens,
        record.spread([num_bytes / t / 1e9 for t in times]),
        record.spread([2 * num_tokens * _SIZE**2 / t / 1e12 for t in times]),
    )


def measure(formats: Sequence[str], rounds: int, kernels: Sequence[str]) -> list[Row]:
    arms = arms_of(formats, kernels, CpuDevice())
    rows = []
    for num_tokens in _NUM_TOKENS:
        x = torch.randn(num_tokens, _SIZE).bfloat16()
        out = torch.empty(num_tokens, _SIZE, dtype=torch.bfloat16)
        times: dict[Arm, list[float]] = {arm: [] for arm in arms}
        for _ in range(rounds):
            for arm, layers in arms.items():
                used = layers if num_tokens <= 16 else layers[:3]
                times[arm] += [seconds(partial(layer, x, out)) for layer in used]
        rows += [measure_row(arm, arms[arm], num_tokens, times[arm]) for arm in arms]
    return rows


def read_rate() -> record.Spread:
    """Bytes a second of torch's sum over more memory than any cache holds."""
    memory = torch.ones(1 << 26, dtype=torch.int64)
    parts = memory.split(1 << 23)
    rates = [part.numel() * 8 / seconds(part.sum) / 1e9 for part in parts * 4]
    return record.spread(rates)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", default=_FORMATS, help="of --quantization, with commas")
    parser.add_argument("--kernel", action="append", default=[], help="one more; may be repeated")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hal.kernels.register_all()
    formats = options.formats.split(",")
    for name in formats:
        find_format(name)  # an error before the minutes
    rate, rows = read_rate(), measure(formats, options.rounds, options.kernel)
    report = {
        **record.header("cpu_linear"),
        "threads": options.threads,
        "size": _SIZE,
        "read_gigabytes_s": asdict(rate),
        "rows": [asdict(row) for row in rows],
    }
    record.write(record.RESULTS / f"cpu_linear-{options.threads}-threads.json", report)
    sys.stdout.write(f"read {rate.median:.1f} GB/s (best {rate.highest:.1f})\n")
    for row in rows:
        sys.stdout.write(
            f"{row.kernel or 'preferred':12} {row.format:18} M={row.num_tokens:<4} "
            f"{row.gigabytes_s.median:6.1f} GB/s "
            f"{row.teraops_s.median:.3f} Top/s (best {row.teraops_s.highest:.3f})\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
