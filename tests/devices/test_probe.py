"""Planted drivers that crash, hang or babble: each becomes a reason, and the others are spared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from hal.device import Device
from hal.devices import child, host
from hal.devices.probe import probe
from hal.devices.registry import CpuVendor, TorchVendor
from hal.devices.torch_build import TorchBuild
from hal.devices.vendor import Vendor
from hal.report import DeviceReport, capabilities_as_json, capabilities_from_json

CRASH = "import os; os.abort()"
HANG = "import threading; threading.Event().wait()"
BABBLE = "print('hal-devices:[{]')"
SILENCE = "pass"
FAILURE = "import sys; sys.exit('driver library mismatch')"
NOT_A_REPORT = 'print(\'hal-devices:[{"device": "cuda:0"}]\')'
PATIENT_TIMEOUT_S = 300.0  # a slow machine is not a failure
HANG_TIMEOUT_S = 0.2


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def driver_is_there(build: TorchBuild | None) -> None:
    return None


def vendor_with(command: Sequence[str], timeout_s: float = PATIENT_TIMEOUT_S) -> TorchVendor:
    return TorchVendor("cuda", driver_is_there, command, timeout_s)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (CRASH, "the driver crashed the probe with SIGABRT"),
        (FAILURE, "the probe failed with exit code 1: driver library mismatch"),
        (SILENCE, "the probe ended without an answer"),
        (BABBLE, "the probe's answer is damaged"),
        (NOT_A_REPORT, "the probe's answer is damaged: not a device report"),
    ],
)
def test_what_the_child_does_becomes_the_reason(code: str, reason: str) -> None:
    report = probe([vendor_with(python(code)), CpuVendor()])
    broken, cpu = report.devices
    assert broken.spec == "cuda" and not broken.is_usable
    assert broken.reason.startswith(reason)
    assert cpu.is_usable


def test_a_hanging_driver_is_left_after_the_timeout() -> None:
    report = probe([vendor_with(python(HANG), HANG_TIMEOUT_S)])
    assert report.devices[0].reason == "no answer from the driver within 0.2 s: it hangs"


def test_a_command_that_cannot_start() -> None:
    answer = child.ask(["/nonexistent/python"])
    assert answer.failure.startswith("the probe did not start")


def test_an_answer_among_the_drivers_chatter(capfd: pytest.CaptureFixture[str]) -> None:
    caps = host.cpu_capabilities()
    sent = (DeviceReport(spec="cuda:0", capabilities=caps), DeviceReport(spec="cuda:1", reason="x"))
    child.print_answer(sent)
    said = capfd.readouterr().out
    answer = child.ask(python(f"print('warming up', end=''); print({said!r}); print('bye')"))
    assert answer == child.Answer(devices=sent)


def test_capabilities_survive_json() -> None:
    caps = host.cpu_capabilities()
    assert capabilities_from_json(capabilities_as_json(caps)) == caps
    with pytest.raises(ValueError, match="not the capabilities"):
        capabilities_from_json({**capabilities_as_json(caps), "colour": "green"})
    with pytest.raises(ValueError, match="not the capabilities"):
        capabilities_from_json({"name": "half a device"})


class RaisingVendor(Vendor):
    """A plugged-in vendor with a bug."""

    name = "buggy"

    def probe(self) -> tuple[DeviceReport, ...]:
        raise KeyError("firmware")

    def open(self, report: DeviceReport, detail: str) -> Device:
        raise NotImplementedError


def test_a_vendor_that_raises_is_reported_too() -> None:
    report = probe([RaisingVendor(), CpuVendor()])
    assert [d.is_usable for d in report.devices] == [False, True]
    assert "KeyError: 'firmware'" in report.devices[0].reason


def test_the_real_child_answers_on_this_machine() -> None:
    answer = child.ask(child.module_command("hal.devices.torch_probe"), PATIENT_TIMEOUT_S)
    assert answer.failure == ""
    assert {d.spec.partition(":")[0] for d in answer.devices} <= {"cuda", "rocm"}
    assert all(d.is_usable or d.reason for d in answer.devices)


def test_probing_imports_no_torch_and_no_driver_here() -> None:
    code = (
        "from hal.devices import probe; import sys; report = probe(); "
        "sys.exit('torch' in sys.modules or 'pyopencl' in sys.modules or not report.devices)"
    )
    done = subprocess.run(python(code), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
