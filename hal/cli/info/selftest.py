"""Quick self-tests of one device: copy, matmul, a smoke run of each kernel.

As a module (`python -m hal.cli.info.selftest SPEC PARENT_PID`) it is the child of `hal-info
doctor`: it names each test before it runs, so that a driver that crashes or hangs is the result of
that test.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

import numpy as np

import hal.kernels
from hal import opset
from hal.conformance.cases import cases_by_op
from hal.conformance.limits import LIMITS, relative_l2
from hal.conformance.run import conform
from hal.conformance.stage import Stage, logical
from hal.device import Device
from hal.devices import open_device
from hal.dtypes import DType
from hal.errors import HalError
from hal.memory import format_bytes
from hal.opset.linear import LinearFamily, LinearProblem
from hal.parent_process import die_with_parent
from hal.select import OPS, Kernel

MARK = "hal-selftest:"
_COPY_BYTES = 8 << 20
_MATMUL_SIZE = 256


class Verdict(StrEnum):
    """SKIP: the kernel says that it cannot run on this device; its reason is the detail."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class Result:
    """One self-test."""

    test: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A named test; `run` returns its result and may raise anything."""

    name: str
    run: Callable[[Device], Result]


def self_tests() -> Iterator[SelfTest]:
    """What a device is asked, cheapest first. Kernels must be registered."""
    yield SelfTest("copy", _copy)
    yield SelfTest("matmul", _matmul)
    for op in OPS.values():
        for kernel in op.kernels.values():
            yield SelfTest(f"{op.name} {kernel.name}", _smoke_run(kernel))


def run_one(test: SelfTest, device: Device) -> Result:
    """Whatever a driver or kernel raises is a failure with its reason."""
    try:
        return test.run(device)
    except Exception as error:  # noqa: BLE001  # the test is there to find it
        return Result(test.name, Verdict.FAIL, f"{type(error).__name__}: {error}")


def _copy(device: Device) -> Result:
    sent = np.random.default_rng(0).integers(0, 256, _COPY_BYTES, dtype=np.uint8)
    received = device.download(device.upload(sent.copy()))
    num_wrong = int(np.count_nonzero(sent != received))
    size = format_bytes(_COPY_BYTES)
    if num_wrong:
        return Result("copy", Verdict.FAIL, f"{num_wrong} of {_COPY_BYTES} bytes came back changed")
    return Result("copy", Verdict.PASS, f"{size} to the device and back")


def _matmul(device: Device) -> Result:
    """Through the kernel that a float32 model would use here."""
    stage = Stage(device, seed=0)
    size = _MATMUL_SIZE
    problem = LinearProblem(in_features=size, out_features=size, dtype=DType.FLOAT32)
    kernel = stage.binder.selector.select(opset.linear, problem).kernel
    family: LinearFamily = stage.bind(kernel, problem)
    family.allocate(device)
    weight = stage.weight((size, size), DType.FLOAT32, size**-0.5)
    family.load(0, logical(weight, DType.FLOAT32))
    x, out = stage.normal((size, size), DType.FLOAT32), stage.poisoned((size, size), DType.FLOAT32)
    family(x.device, out)
    error = relative_l2(stage.read(out), x.host @ weight.double().numpy().T)
    limit = LIMITS[DType.FLOAT32]
    text = f"float32 {size} x {size} x {size} by {kernel.name}: error {error:.2g}, limit {limit:g}"
    return Result("matmul", Verdict.PASS if error <= limit else Verdict.FAIL, text)


def _smoke_run(kernel: Kernel) -> Callable[[Device], Result]:
    def run(device: Device) -> Result:
        name = f"{kernel.op} {kernel.name}"
        reason = "there is no case for this op"
        for case in cases_by_op().get(kernel.op, ()):
            record = conform(kernel, case, device)
            if record.skipped:
                reason = record.skipped
                continue
            if record.has_passed:
                return Result(name, Verdict.PASS, case.label)
            detail = record.detail or "nothing was checked"
            return Result(name, Verdict.FAIL, f"{case.label}: {detail}")
        return Result(name, Verdict.SKIP, reason)

    return run


def _say(event: dict[str, str]) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(event)}\n")
    sys.stdout.flush()


def main(spec: str) -> int:
    """The child's side: an event when a test begins, one with its result."""
    _say({"begin": "open"})
    try:
        device = open_device(spec).device
    except HalError as error:
        _say(asdict(Result("open", Verdict.FAIL, str(error))))
        return 0
    hal.kernels.register_all()
    for test in self_tests():
        _say({"begin": test.name})
        _say(asdict(run_one(test, device)))
    return 0


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    sys.exit(main(sys.argv[1]))
