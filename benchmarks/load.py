"""Memory that loading a checkpoint takes beyond its weights, and how fast it goes.

    python benchmarks/load.py --model llama-3.2-1b [--quantization int4]

Growth is of private and shared-memory pages (RssAnon + RssShmem); pages of the mapped file are
the kernel's to drop. The limit is 1.15 x the weights as stored in memory (1.2 x if quantised) plus
the largest tensor. Nothing comes from the pack cache or goes into it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import models
import record

from hal.build import build_engine
from hal.config import UNQUANTIZED, EngineConfig
from hal.engine.progress import SilentProgress


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes before and at the highest point of the load, and the limit between them."""

    weights_bytes: int
    largest_tensor_bytes: int
    growth_bytes: int
    limit_bytes: int
    seconds: float


def held_bytes() -> int:
    """Private and shared-memory bytes of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


class HighWater(SilentProgress):
    """Looks at the process after every tensor."""

    def __init__(self) -> None:
        self.highest = 0

    def advance(self, amount: int) -> None:
        self.highest = max(self.highest, held_bytes())


def measure(folder: Path, name: str, quantization: str) -> Growth:
    sizes = [math.prod(shape) * 2 for _, shape in models.tensor_shapes(models.SHAPES[name])]
    # torch and the kernels are imported before the start: they are no part of a load.
    build_engine(config(models.make_model("warm-up", folder.parent), quantization))
    before, watch = held_bytes(), HighWater()
    start = time.perf_counter()
    plan = build_engine(config(folder, quantization), watch).plan
    seconds = time.perf_counter() - start
    highest = max(watch.highest, held_bytes())
    is_quantized = quantization != UNQUANTIZED
    weights_bytes = plan.weights_bytes if is_quantized else sum(sizes)
    assert plan.weights_bytes >= weights_bytes
    return Growth(
        weights_bytes=weights_bytes,
        largest_tensor_bytes=max(sizes),
        growth_bytes=highest - before,
        limit_bytes=int((1.2 if is_quantized else 1.15) * weights_bytes) + max(sizes),
        seconds=round(seconds, 2),
    )


def config(folder: Path, quantization: str) -> EngineConfig:
    return EngineConfig(
        model=str(folder),
        device="cpu",
        quantization=quantization,
        max_num_seqs=1,
        max_model_len=64,
        cache=False,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=models.SHAPES, default="llama-3.2-1b")
    parser.add_argument("--quantization", default=UNQUANTIZED)
    parser.add_argument("--models", type=Path, default=Path("/tmp/hal-models"))
    options = parser.parse_args()
    is_quantized = options.quantization != UNQUANTIZED
    name = f"{options.model}-{options.quantization}" if is_quantized else options.model
    folder = models.make_model(options.model, options.models)
    growth = measure(folder, options.model, options.quantization)
    settings = {"model": options.model, "quantization": options.quantization}
    report = {**record.header("load"), **settings, **asdict(growth)}
    record.write(record.RESULTS / f"load-{name}.json", report)
    sys.stdout.write(
        f"{name}: weights {growth.weights_bytes / 2**20:.0f} MiB, growth "
        f"{growth.growth_bytes / 2**20:.0f} MiB ({growth.growth_bytes / growth.weights_bytes:.3f} x"
        f"), limit {growth.limit_bytes / 2**20:.0f} MiB, {growth.seconds:.1f} s\n"
    )
    return 0 if growth.growth_bytes <= growth.limit_bytes else 1


if __name__ == "__main__":
    sys.exit(main())
