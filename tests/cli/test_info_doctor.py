"""hal-info doctor: what fails is found, whatever way it fails."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from hal.cli import info
from hal.cli.info import doctor
from hal.cli.info.doctor import examine
from hal.cli.info.selftest import MARK, Result, SelfTest, Verdict, run_one, self_tests
from hal.devices.null import NullDevice
from hal.devices.null_spec import parse_null
from hal.kernels import register_all
from hal.select import OPS
from hal.tensor import Tensor

register_all()


def child(*statements: str) -> list[str]:
    said = f"def say(**e): print('{MARK}' + json.dumps(e), flush=True)"
    return [sys.executable, "-c", "\n".join(("import json, os, time", said, *statements))]


BEGIN = "say(begin='linear fast')"


def test_a_healthy_device_passes_every_test_that_its_kernels_accept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert info.main(["doctor", "--device", "null", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (null,) = said["devices"]
    results = {r["test"]: r for r in null["results"]}
    assert results.keys() == {"copy", "matmul"} | {
        f"{op.name} {kernel}" for op in OPS.values() for kernel in op.kernels
    }
    assert results["matmul"]["verdict"] == "PASS"
    assert results["linear reference"]["verdict"] == "PASS"
    assert results["linear torch"]["verdict"] == "SKIP"
    assert "reference kernels only" in results["linear torch"]["detail"]
    assert said["counts"]["FAIL"] == 0


def test_a_crash_is_the_result_of_the_test_that_ran() -> None:
    passed = "say(test='copy', verdict='PASS', detail='ok')"
    crash = "import sys; print('illegal address', file=sys.stderr, flush=True); os.abort()"
    results = list(examine(child("say(begin='copy')", passed, BEGIN, crash)))
    assert results[0] == Result("copy", Verdict.PASS, "ok")
    assert results[1].test == "linear fast"
    assert results[1].verdict is Verdict.FAIL
    assert results[1].detail == "the process died with SIGABRT: illegal address"


def test_a_hang_is_the_result_of_the_test_that_ran() -> None:
    (result,) = examine(child(BEGIN, "time.sleep(60)"), timeout_s=1.0)
    assert result == Result("linear fast", Verdict.FAIL, "no answer within 1 s: it hangs")


def test_a_driver_that_talks_without_end_does_no_harm() -> None:
    noise = "import sys\nfor _ in range(5000): print('x' * 100); print('y' * 100, file=sys.stderr)"
    done = "say(test='linear fast', verdict='PASS', detail='')"
    (result,) = examine(child(BEGIN, noise, done))
    assert result.verdict is Verdict.PASS


class LossyDevice(NullDevice):
    """Copies go wrong in one byte."""

    def upload(self, host: NDArray[np.generic], into: Tensor | None = None) -> Tensor:
        changed = host.copy()
        changed.view(np.uint8).reshape(-1)[7] ^= 1
        return super().upload(changed, into)


def test_a_changed_byte_is_found() -> None:
    copy = next(self_tests())
    assert run_one(copy, NullDevice()).verdict is Verdict.PASS
    result = run_one(copy, LossyDevice())
    assert result.verdict is Verdict.FAIL
    assert result.detail.startswith("1 of 8388608 bytes")


def test_what_a_test_raises_is_its_failure() -> None:
    def broken(_device: object) -> Result:
        raise RuntimeError("no kernel image")

    result = run_one(SelfTest("linear fast", broken), NullDevice())
    assert result == Result("linear fast", Verdict.FAIL, "RuntimeError: no kernel image")


def test_what_a_kernel_raises_is_its_failure() -> None:
    device = NullDevice(parse_null("oom@0"))
    smoke_run = next(t for t in self_tests() if t.name == "add reference")
    result = run_one(smoke_run, device)
    assert result.verdict is Verdict.FAIL
    assert "DeviceOutOfMemory: HAL-E310: " in result.detail


def test_a_failure_is_the_last_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "command_for", lambda spec: child(BEGIN, "os._exit(3)"))
    assert info.main(["doctor", "--device", "null"]) == 1
    said = capsys.readouterr()
    assert "  FAIL  linear fast" in said.out
    assert said.err.splitlines()[-1] == (
        "hal-info doctor: 1 failed; the first: null linear fast: the process died with exit code 3"
    )


def test_a_pose_is_tested_as_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["doctor", "--device", "null:h100"]) == 0
    assert "SKIP  linear torch" in capsys.readouterr().out
    assert info.main(["doctor", "--device", "null:h100,crash@0"]) == 1
    assert "SIGABRT: null device: aborting" in capsys.readouterr().err.splitlines()[-1]


def test_a_device_that_cannot_be_used_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["doctor", "--device", "cudaa"]) == 2
    assert "Did you mean --device cuda?" in capsys.readouterr().err.splitlines()[-1]
