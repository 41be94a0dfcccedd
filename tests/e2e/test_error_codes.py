"""Every error code, provoked for real: the cause is the last line on stderr, with its numbers."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fake_serving import ROOT, ServerProcess, children_of, serving
from tiny_checkpoints import make_checkpoint

from hal import LLM, GuidedDecodingParams, SamplingParams, errors
from hal.cli import run
from hal.error_codes import ERROR_CODES
from hal.errors import HalError, SelectionError
from hal.kernels import register_all
from hal.select import OPS

BASE = ("--prompt", "hi", "--max-tokens", "4", "--max-model-len", "64", "--max-num-seqs", "2")


@dataclass(frozen=True, slots=True)
class Provocation:
    """A hal-run that must end with `code`; its last line matches `says`."""

    code: str
    arguments: tuple[str, ...]
    says: str


def null(*arguments: str, device: str = "null:h100") -> tuple[str, ...]:
    return ("hal-tiny", "--device", device, *arguments)


COMMANDS = (
    Provocation("HAL-E100", null(device="null:h10"), r"profile 'h10'; did you mean h100"),
    Provocation("HAL-E100", null(device="null:oom@x"), r"'x' is no step.* faults: oom, nan, hang"),
    Provocation("HAL-E110", null(device="2xnull:h100"), r"over 2 devices .*; name one device"),
    Provocation("HAL-E120", null(device="cuda:99"), r"cuda:99 cannot be used: .*works: --device "),
    Provocation("HAL-E200", ("./missing", "--device", "null"), r"\./missing .*; check the path"),
    Provocation("HAL-E210", ("FOLDER/truncated", "--device", "null"), r"model\.safetensors.*bytes"),
    Provocation("HAL-E220", ("FOLDER/mute", "--device", "null"), r"mute.*tokenizer\.json"),
    Provocation(
        "HAL-E300",
        null("--memory", "5MiB"),
        r"weights .* MiB, .*; --memory 5\.00 MiB gives 5\.00 MiB\. .*[Rr]aise --memory by .* to ",
    ),
    Provocation(
        "HAL-E310",
        null(device="null:h100,oom@0"),
        r"no room for a tensor .* MiB wanted, 0 B free, 0 B held here\. Lower --memory",
    ),
    Provocation("HAL-E310", null(device="null:oom@2"), r"step 2 failed: .* 0 B free.*Lower --mem"),
    Provocation("HAL-E400", null("--top-p", "7"), r"top_p .*0.* 1; got 7"),
    Provocation("HAL-E410", null("--max-tokens", "90"), r"max_tokens 90 .* has 64; lower .* to 6"),
    Provocation(
        "HAL-E500",
        null("--strict", "--kernel", "linear=reference"),
        r"no kernel of linear runs .* on NVIDIA H100.*\(sm_90\): .*reference: --strict refuses",
    ),
    Provocation("HAL-E610", null(device="null:nan@2"), r"output token 1 .*Try a wider dtype"),
)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What breaks the engine process of a hal-serve that is given one request."""

    code: str
    arguments: tuple[str, ...]
    harm: Callable[[ServerProcess], None]
    says: str


def ask(server: ServerProcess) -> None:
    complete(server, {"prompt": "hi", "max_tokens": 4})


def complete(server: ServerProcess, body: dict[str, object]) -> httpx.Response:
    with httpx.Client(verify=False, timeout=60) as client:
        return client.post(f"{server.url}/v1/completions", json=body)


def stop_engine(server: ServerProcess) -> None:
    os.kill(server.engine_pid(), signal.SIGSTOP)


def kill_rank(server: ServerProcess) -> None:
    (rank,) = children_of(server.engine_pid())
    os.kill(rank, signal.SIGKILL)


BREAKDOWNS = (
    Breakdown(
        "HAL-E601",
        ("--device", "null:h100,crash@1"),
        ask,
        r"\(pid \d+\) was killed by SIGABRT\..*stand above.*lower --memory",
    ),
    Breakdown(
        "HAL-E602",
        ("--device", "null:h100", "--heartbeat-timeout", "1"),
        stop_engine,
        r"\(pid \d+\) sent no heartbeat for 1 s.*Start again",
    ),
    Breakdown(
        "HAL-E603",
        ("--device", "null:h100,hang@1", "--step-timeout", "1"),
        ask,
        r"step 1 of the engine \(pid \d+\) .* more than 1 s\..*raise --step-timeout",
    ),
    Breakdown(
        "HAL-E604",
        ("--device", "cpu", "--tensor-parallel-size", "2"),
        kill_rank,
        r"rank 1 \(pid \d+\) was killed by SIGKILL",
    ),
)
IN_PYTHON = ("HAL-E420", "HAL-E421", "HAL-E430", "HAL-E600")
"""No command alone provokes these; they have tests of their own."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models that are broken in one way each."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "mute", "llama")
    weights = (folder / "mute" / "model.safetensors").read_bytes()
    shutil.copytree(folder / "mute", folder / "truncated")
    (folder / "truncated" / "model.safetensors").write_bytes(weights[:-1000])
    (folder / "mute" / "tokenizer.json").unlink()
    return folder


def entry_of(code: str) -> type[HalError]:
    return next(entry.error for entry in ERROR_CODES if entry.code == code)


@pytest.mark.parametrize("case", COMMANDS, ids=lambda c: f"{c.code} {c.arguments[2]}")
def test_a_command_ends_with_the_cause(
    case: Provocation, folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [part.replace("FOLDER", str(folders)) for part in case.arguments]
    exit_code = run.main([*BASE, *arguments])
    stderr = capfd.readouterr().err
    last = stderr.rstrip().splitlines()[-1]
    assert last.startswith(f"hal-run: {case.code}: ")
    assert re.search(case.says, last), last
    assert "Traceback" not in stderr
    # A step that an allocation failed is the engine's failure, whatever the device says of it.
    is_step = "step 2 failed" in last
    assert exit_code == (6 if is_step else entry_of(case.code).exit_code)


@pytest.mark.parametrize("case", BREAKDOWNS, ids=lambda c: c.code)
def test_a_server_ends_with_the_cause(case: Breakdown) -> None:
    with serving(["hal-tiny", "--max-model-len", "64", *case.arguments]) as server:
        case.harm(server.wait_ready())
        assert server.wait() == entry_of(case.code).exit_code
        last = server.error_lines[-1]
    assert last.startswith(f"hal-serve: {case.code}: ")
    assert re.search(case.says, last), last
    assert "Traceback" not in "\n".join(server.error_lines)


def test_a_server_without_a_kernel_prints_the_rows_of_explain() -> None:
    """From the engine process to the terminal, one row a kernel, the cause last."""
    arguments = ["hal-tiny", "--device", "null:h100", "--strict", "--kernel", "linear=reference"]
    with serving(arguments) as server:
        assert server.wait() == SelectionError.exit_code
        lines = list(server.error_lines)
    register_all()
    rows = dict(line.split(" (", 1) for line in lines if line.startswith("  not "))
    assert rows.keys() == {f"  not {kernel}" for kernel in OPS["linear"].kernels}
    assert rows["  not avx512_bf16"].startswith("cannot run): runs on CPUs only")
    assert rows["  not torch"].endswith("linear=reference was given -> without --kernel")
    assert rows["  not reference"].startswith("--strict): --strict refuses reference kernels")
    assert lines[-1].startswith("hal-serve: HAL-E500: ")


def test_a_grammar_that_is_not_supported_names_the_keyword() -> None:
    guided = GuidedDecodingParams(json={"type": "array", "uniqueItems": True})
    with LLM("hal-tiny", device="null:h100", max_model_len=64) as llm:
        with pytest.raises(HalError) as caught:
            llm.generate("hi", SamplingParams(guided_decoding=guided))
    assert str(caught.value) == (
        "HAL-E430: not supported yet in a JSON schema: 'uniqueItems'. Leave it out"
    )


def test_a_bug_in_a_step_names_step_and_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM("hal-tiny", device="null:h100", max_model_len=64) as llm:

        def broken(*_: object) -> None:
            raise RuntimeError("invalid argument")

        monkeypatch.setattr(llm._open().built.device, "upload", broken)
        with pytest.raises(HalError) as caught:
            llm.generate("hi")
    assert str(caught.value) == (
        "HAL-E600: step 1 failed: RuntimeError: invalid argument. Its 1 sequences ended; others "
        "go on"
    )
    assert caught.value.exit_code == entry_of("HAL-E600").exit_code


def test_a_request_that_is_too_late_is_told_so_and_others_go_on() -> None:
    with serving(["hal-tiny", "--device", "null:h100", "--max-model-len", "64"]) as server:
        server.wait_ready()
        body = {"prompt": "hi", "max_tokens": 4}
        late = complete(server, {**body, "timeout_s": 1e-9})
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_exceeded"
        message = late.json()["error"]["message"]
        assert re.match(r"HAL-E420: .* waited \S+ s and cannot .* timeout_s of 1e-09", message)
        answer = complete(server, {**body, "timeout_s": 60})
        assert answer.status_code == 200


def test_too_large_a_pin_says_how_much_may_be_pinned() -> None:
    with LLM("hal-tiny", device="null:h100", max_model_len=64, max_num_seqs=1) as llm:
        with pytest.raises(HalError) as caught:
            llm.pin(list(range(48)))
        assert re.match(
            r"HAL-E421: .* 3 blocks, 3 .* the most is 2 .*0\.5 of 4\)\. Pin at most 32 more tokens",
            str(caught.value),
        )
        assert llm.generate("hi")[0].outputs[0].token_ids


def defined_codes() -> set[str]:
    """Those of every error class, and the ones that hal.errors gives names."""
    named = {value for value in vars(errors).values() if _is_code(value)}
    return named | {kind.code for kind in _subclasses(HalError)}


def _subclasses(kind: type[HalError]) -> Iterator[type[HalError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _subclasses(child)


def _is_code(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"HAL-E\d{3}", value) is not None


def unprovoked(codes: Iterable[str], provoked: Collection[str]) -> list[str]:
    return sorted(code for code in codes if code not in provoked)


def test_every_code_is_described_and_provoked() -> None:
    described = [entry.code for entry in ERROR_CODES]
    assert described == sorted(set(described)), "in order, each once"
    assert set(described) == defined_codes()
    provoked = {case.code for case in (*COMMANDS, *BREAKDOWNS)} | set(IN_PYTHON)
    assert unprovoked(described, provoked) == []
    assert provoked <= set(described)
    assert unprovoked([*described, "HAL-E999"], provoked) == ["HAL-E999"], "it can fail"


def test_no_source_or_page_names_another_code() -> None:
    known = {entry.code for entry in ERROR_CODES} | {HalError.code}
    sources = [
        p for top in ("hal", "server", "engine", "devices") for p in (ROOT / top).rglob("*.py")
    ]
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    named = {
        code
        for path in (*sources, *pages)
        for code in re.findall(r"HAL-E\d{3}", path.read_text(encoding="utf-8"))
    }
    assert "HAL-E310" in named
    assert named <= known
