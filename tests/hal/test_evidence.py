"""Evidence rows: well formed, proven, and worth nothing once their kernel has changed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import evidence as evidence_script
import pytest

from hal.binding import Binder
from hal.conform.run import ConformRequest, conform_device
from hal.device import Versions
from hal.devices.null import NullDevice
from hal.evidence import Evidence, Level, Row, evidence_of, level_of, rows
from hal.evidence.rows import ROWS_FILE, is_current, merge, read_rows, write_rows
from hal.evidence.source import CompiledPart, hash_of_files, kernel_source
from hal.kernels import register_all
from hal.kernels.cpu import native
from hal.opset.linear import LinearProblem
from hal.select import OPS, Kernel, Traits

register_all()

ROOT = Path(__file__).resolve().parent.parent.parent
ADD = OPS["add"].kernels["reference"]


def row_for(kernel: Kernel, **changes: object) -> Row:
    source = kernel_source(kernel)
    assert source is not None
    row = Row(
        level=Level.CONFORMS,
        arch="arch1",
        op=kernel.op,
        kernel=kernel.name,
        source_hash=source.hash,
        compiler=source.compiler,
        date="2026-01-02",
        device="Card",
        driver="1.0",
        num_cases=6,
        proof="hal-info conform",
    )
    return replace(row, **changes)  # type: ignore[arg-type]  # the dataclass checks the names


def test_levels_are_ordered_and_read_as_words() -> None:
    names = ["reference", "compiles", "emulated", "conforms", "benchmarked"]
    assert [str(level) for level in sorted(Level)] == names


def test_a_row_of_this_source_gives_its_level_on_its_arch_only() -> None:
    among = (row_for(ADD),)
    assert level_of("arch1", "add", ADD, among) is Level.CONFORMS
    assert level_of("arch2", "add", ADD, among) is Level.REFERENCE
    assert level_of("arch1", "add", OPS["add"].kernels["torch"], among) is Level.REFERENCE


@pytest.mark.parametrize("change", [{"source_hash": "0" * 16}, {"compiler": "GNU 1.0"}])
def test_a_changed_kernel_or_compiler_drops_to_reference(change: dict[str, str]) -> None:
    row = row_for(ADD, **change)
    assert not is_current(row, ADD)
    assert level_of("arch1", "add", ADD, (row,)) is Level.REFERENCE


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"driver": ""}, ("driver",)),
        ({"device": "", "num_cases": 0}, ("device", "num_cases")),
        ({"date": ""}, ("date",)),
        ({"level": Level.COMPILES, "compiler": ""}, ("compiler",)),
        ({"level": Level.EMULATED, "compiler": "x", "proof": ""}, ("proof",)),
        ({"level": Level.BENCHMARKED, "proof": ""}, ("proof",)),
    ],
)
def test_no_level_is_reached_without_its_proof(
    change: dict[str, object], missing: tuple[str, ...]
) -> None:
    row = row_for(ADD, **change)
    assert row.missing_proof() == missing
    assert level_of("arch1", "add", ADD, (row,)) is Level.REFERENCE


def test_the_best_row_counts() -> None:
    better = row_for(ADD, level=Level.BENCHMARKED, proof="benchmarks/results/x.json")
    assert level_of("arch1", "add", ADD, (better, row_for(ADD))) is Level.BENCHMARKED


def test_rows_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    written = (row_for(ADD), row_for(ADD, arch="arch0"))
    write_rows(written, path)
    assert read_rows(path) == (written[1], written[0])
    write_rows((), path)
    assert read_rows(path) == ()


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 2, "rows": []}',
        '{"schema": 1}',
        '{"schema": 1, "rows": [{"level": "sure"}]}',
        '{"schema": 1, "rows": [{"level": "conforms", "colour": "red"}]}',
    ],
)
def test_anything_but_rows_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="rows.json"):
        read_rows(path)


def test_a_new_row_replaces_the_old_source_and_leaves_other_archs() -> None:
    old, other = row_for(ADD, source_hash="0" * 16), row_for(ADD, arch="arch2")
    new = row_for(ADD, date="2026-02-03")
    assert set(merge((old, other), (new,))) == {new, other}
    elsewhere = row_for(ADD, compiler="another")
    assert set(merge((elsewhere,), (new,))) == {elsewhere, new}


def module_of(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, **more: object) -> Kernel:
    """A kernel whose source is `text`, in a package of its own."""
    package, module = ModuleType("foreign"), ModuleType("foreign.kernels")
    path = folder / "kernels.py"
    path.write_text(text)
    module.__file__ = str(path)
    module.__dict__.update(more)
    monkeypatch.setitem(sys.modules, "foreign", package)
    monkeypatch.setitem(sys.modules, "foreign.kernels", module)

    def kernel() -> None: ...

    kernel.__module__ = "foreign.kernels"
    return Kernel("add", "foreign", Traits(preference=1), lambda _p, _b: kernel, kernel)


def hash_of(kernel: Kernel) -> str:
    source = kernel_source(kernel)
    assert source is not None
    return source.hash


def test_the_hash_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hash_of(module_of(tmp_path, "x = 1\n", monkeypatch))
    assert hash_of(module_of(tmp_path, "x = 1\n", monkeypatch)) == first
    assert hash_of(module_of(tmp_path, "x = 2\n", monkeypatch)) != first


def test_the_hash_follows_what_the_module_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = ModuleType("foreign.rows")
    used.__file__ = str(tmp_path / "rows.py")
    monkeypatch.setitem(sys.modules, "foreign.rows", used)
    hashes = []
    for text in ("y = 1\n", "y = 2\n"):
        (tmp_path / "rows.py").write_text(text)
        hashes.append(hash_of(module_of(tmp_path, "x = 1\n", monkeypatch, rows=used)))
    assert hashes[0] != hashes[1]


def test_the_hash_follows_what_was_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = module_of(tmp_path, "x = 1\n", monkeypatch)
    plain = hash_of(kernel)
    package = sys.modules["foreign"]
    part = CompiledPart(source_hash="a", compiler="GNU 12")
    monkeypatch.setattr(package, "compiled_part", lambda: part, raising=False)
    source = kernel_source(kernel)
    assert source is not None and source.compiler == "GNU 12" and source.hash != plain
    monkeypatch.setattr(package, "compiled_part", lambda: replace(part, source_hash="b"))
    assert hash_of(kernel) != source.hash
    monkeypatch.setattr(package, "compiled_part", lambda: None)
    assert kernel_source(kernel) is None
    assert level_of("arch1", "add", kernel, (row_for(ADD),)) is Level.REFERENCE


def test_a_kernel_without_a_file_has_no_source() -> None:
    class Made:
        def __init__(self, problem: LinearProblem, binder: Binder) -> None: ...

    Made.__module__ = "nowhere"
    assert kernel_source(Kernel("linear", "made", Traits(preference=1), Made, Made)) is None


def test_the_native_module_was_built_from_these_sources() -> None:
    if native.unavailable():
        pytest.skip(f"no native module: {native.unavailable()}")
    part = native.compiled_part()
    if part is None:
        pytest.skip("a native module of an older build, which does not say what it was made from")
    folder = ROOT / "kernels/cpu"
    files = [*folder.glob("src/*.cpp"), *folder.glob("src/*.h")]
    files += [folder / "bind.cpp", folder / "native.cmake"]
    assert part.source_hash == hash_of_files(folder, files)
    assert part.compiler


def test_a_native_module_that_does_not_say_gives_no_evidence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "load", lambda: ModuleType("_C"))
    assert native.compiled_part.__wrapped__() is None


def test_the_committed_rows_are_well_formed_and_proven() -> None:
    text = json.loads(ROWS_FILE.read_text(encoding="utf-8"))
    assert text["schema"] == 1
    for row in rows():
        assert not row.missing_proof(), row
        assert row.op in OPS, row
        assert len(row.source_hash) == 16
    assert len({(*row.key, row.level) for row in rows()}) == len(rows())


def test_every_committed_row_is_current_or_counts_as_reference() -> None:
    said = list(evidence_script.table(rows()))
    assert len(said) == len(rows())
    for row, line in zip(rows(), said, strict=True):
        kernel = OPS[row.op].kernels.get(row.kernel)
        if kernel is not None and is_current(row, kernel):
            assert level_of(row.arch, row.op, kernel) >= row.level
            assert "stale" not in line
        else:
            assert "reference (stale" in line


def test_benchmarked_rows_name_a_result_of_this_repository() -> None:
    for row in rows():
        if row.level is Level.BENCHMARKED:
            assert (ROOT / row.proof).is_file(), row


def test_rows_come_from_kernels_that_ran_and_passed_only() -> None:
    device = NullDevice()
    device.capabilities = replace(device.capabilities, versions=Versions(driver="none 1"))
    results = conform_device(device, ConformRequest(ops=("add",)))
    (row,) = evidence_script.new_rows(results, device.capabilities)
    assert (row.op, row.kernel, row.num_cases) == ("add", "reference", 6)
    assert row.level is Level.CONFORMS and not row.missing_proof()


def test_a_kernel_that_fails_loses_its_rows_on_that_arch(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Any, y: Any, out: Any) -> None:
        out.copy_(x)

    bad = Kernel("add", "torch", Traits(preference=1), lambda _p, _b: wrong, wrong)
    torch_row = row_for(OPS["add"].kernels["torch"])
    monkeypatch.setitem(OPS["add"].kernels, "torch", bad)
    results = conform_device(NullDevice(), ConformRequest(ops=("add",)))
    elsewhere = replace(torch_row, arch="arch2")
    kept = evidence_script.without_failed(
        (torch_row, elsewhere, row_for(ADD)), results, torch_row.arch
    )
    assert kept == (elsewhere, row_for(ADD))


def test_kernels_of_other_packages_get_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def foreign(x: Any, y: Any, out: Any) -> None:
        OPS["add"].kernels["reference"].implementation(x, y, out)

    kernel = Kernel("add", "foreign", Traits(preference=1), lambda _p, _b: foreign, foreign)
    monkeypatch.setitem(OPS["add"].kernels, "foreign", kernel)
    device = NullDevice()
    results = conform_device(device, ConformRequest(ops=("add",)))
    assert [row.kernel for row in evidence_script.new_rows(results, device.capabilities)] == [
        "reference"
    ]


def test_posed_devices_write_no_rows() -> None:
    assert "null" not in set(evidence_script.present_devices())


def test_what_is_shown_names_compiler_and_date() -> None:
    row = row_for(ADD, level=Level.EMULATED, proof="an emulator")
    older = replace(row, level=Level.COMPILES, date="2026-01-03")
    assert evidence_of("arch1", "add", ADD, (row, older)) == Evidence(
        Level.EMULATED, f"{row.compiler}, 2026-01-02"
    )
    assert evidence_of("arch2", "add", ADD, (row,)) == Evidence(Level.REFERENCE, "")


def test_the_script_refuses_what_it_does_not_know() -> None:
    assert evidence_script.main(["--devices"]) == 2
