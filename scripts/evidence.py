"""Writes the evidence rows from what runs on this machine, and prints the table.

    python scripts/evidence.py            run conformance on every present device, then merge
    python scripts/evidence.py --compile  compile run-time kernels for every arch, then merge
    python scripts/evidence.py --emulate  run AMD machine code under the emulator, then merge
    python scripts/evidence.py --print    only print what the committed rows show here

A kernel of this repository gets a row where it passed every case that it accepts, on a device that
is here, and a row `compiles` for an arch where the machine code of all its sites is as it should
be (hal-info verify), and a row `emulated` where that code passed the same cases as in CI under the
emulator (hal-info verify --execute). Rows for other archs and compilers stay. Where any check
fails on a device, none is added for it, and kernels that failed lose theirs. `benchmarked` needs a
measurement that names the kernels that ran; no file in benchmarks/results/ does, so no row claims
it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import date

import hal
from hal.cli.installation import package_version
from hal.conform.compile_matrix import MatrixRequest, compile_matrix
from hal.conform.emulated import (
    COMPILED_WITH,
    EmulatedRecord,
    EmulationRequest,
    emulate,
    summaries,
)
from hal.conform.run import ConformRequest, conform_device
from hal.conformance.report import KernelRun, Results
from hal.device import Capabilities
from hal.devices import open_device
from hal.devices.probe import probe
from hal.devices.registry import all_vendors
from hal.evidence.rows import Level, Row, is_current, merge, read_rows, write_rows
from hal.evidence.source import kernel_source
from hal.kernels import register_all
from hal.kernels.triton.verify.matrix import KERNEL, Compiled
from hal.kernels.triton.verify.targets import DEFAULT_ARCHS
from hal.select import OPS


def new_rows(results: Results, caps: Capabilities) -> Iterator[Row]:
    """A row for each kernel that passed here and whose source is known."""
    for run in results.kernels:
        row = _row(run, caps)
        if row is not None:
            yield row


def _row(run: KernelRun, caps: Capabilities) -> Row | None:
    source = kernel_source(run.kernel)
    is_ours = run.kernel.implementation.__module__.startswith("hal.kernels.")
    if source is None or not is_ours or not run.summary.has_passed:
        return None
    return Row(
        level=Level.CONFORMS,
        arch=caps.arch,
        op=run.kernel.op,
        kernel=run.kernel.name,
        source_hash=source.hash,
        compiler=source.compiler,
        date=date.today().isoformat(),
        device=caps.name,
        driver=caps.versions.driver,
        num_cases=run.summary.num_passed,
        proof=f"hal-info conform, hal {hal.__version__}, torch {package_version('torch').version}",
    )


def compiled_rows(cells: Iterable[Compiled]) -> Iterator[Row]:
    """A row for each op on each arch for which all sites that it accepts compile without fault."""
    by_place: dict[tuple[str, str], list[Compiled]] = defaultdict(list)
    for cell in cells:
        if not cell.rejected:
            by_place[cell.op, cell.arch].append(cell)
    for (op, arch), found in by_place.items():
        source = kernel_source(OPS[op].kernels[KERNEL])
        if source is None or any(cell.faults for cell in found):
            continue
        yield Row(
            level=Level.COMPILES,
            arch=arch,
            op=op,
            kernel=KERNEL,
            source_hash=source.hash,
            compiler=source.compiler,
            date=date.today().isoformat(),
            proof=f"hal-info verify, {len(found)} sites, hal {hal.__version__}",
        )


def record_compiled() -> bool:
    """Compile for every arch and write what came out; False when there was a fault."""
    register_all()
    cells = list(compile_matrix(MatrixRequest(archs=DEFAULT_ARCHS)))
    faulty = [cell for cell in cells if cell.faults]
    print("\n".join(f"fault: {cell}" for cell in faulty))
    places = {(cell.op, cell.arch) for cell in faulty}
    kept = (
        row
        for row in read_rows()
        if row.level is not Level.COMPILES or (row.op, row.arch) not in places
    )
    write_rows(merge(kept, compiled_rows(cells)))
    return not faulty


def emulated_rows(records: Sequence[EmulatedRecord]) -> Iterator[Row]:
    """A row for each op on each arch whose code passed every case that its kernel accepts."""
    kernels = {found.record.op: found.record.kernel for found in records}
    for summary in summaries(records):
        kernel = kernels[summary.name]
        source = kernel_source(OPS[summary.name].kernels[kernel])
        if source is None or not summary.has_passed:
            continue
        yield Row(
            level=Level.EMULATED,
            arch=summary.variant,
            op=summary.name,
            kernel=kernel,
            source_hash=source.hash,
            compiler=source.compiler,
            date=date.today().isoformat(),
            num_cases=summary.num_passed,
            proof=f"hal-info verify --execute, {COMPILED_WITH}, "
            f"triton {package_version('triton').version}, hal {hal.__version__}",
        )


def record_emulated() -> bool:
    """Run the code under the emulator and write what it showed; False when a case failed."""
    records = list(emulate(EmulationRequest()))
    bad = {
        (summary.name, summary.variant)
        for summary in summaries(records)
        if summary.num_failed or summary.num_missing
    }
    print("\n".join(f"not shown: {op} on {arch}" for op, arch in sorted(bad)))
    kept = (
        row
        for row in read_rows()
        if row.level is not Level.EMULATED or (row.op, row.arch) not in bad
    )
    write_rows(merge(kept, emulated_rows(records)))
    return not bad


def without_failed(rows: tuple[Row, ...], results: Results, arch: str) -> tuple[Row, ...]:
    """What stays when kernels have failed on `arch`, whatever they showed before."""
    failed = {(run.kernel.op, run.kernel.name) for run in results.kernels if run.summary.num_failed}
    return tuple(row for row in rows if row.arch != arch or (row.op, row.kernel) not in failed)


def table(rows: tuple[Row, ...]) -> Iterator[str]:
    """One line a row; a row of another source than the one here counts as reference."""
    register_all()
    for row in rows:
        op = OPS.get(row.op)
        kernel = None if op is None else op.kernels.get(row.kernel)
        is_live = kernel is not None and is_current(row, kernel) and not row.missing_proof()
        level = str(row.level) if is_live else "reference (stale: source or compiler changed)"
        yield (
            f"{row.arch:<18} {row.op:<17} {row.kernel:<12} {level:<12} "
            f"{row.num_cases:>3} cases  {row.date}  {row.compiler or '-'}"
        )


def present_devices() -> Iterator[str]:
    """Every usable device that `auto` may choose: one that poses as another shows nothing."""
    vendors = [vendor for vendor in all_vendors().values() if vendor.is_for_auto]
    for report in probe(vendors).usable():
        yield report.spec


def record(spec: str) -> bool:
    """Run conformance on one device and write what it showed; False when a check failed."""
    device = open_device(spec).device
    caps = device.capabilities
    results = conform_device(device, ConformRequest())
    num_passed = sum(s.num_passed for s in results.summaries())
    print(
        f"{spec}: {num_passed} cases passed, {results.num_failed} failed, "
        f"{len(results.gaps)} missing"
    )
    rows = read_rows()
    if results.num_failed:
        write_rows(without_failed(rows, results, caps.arch))
        return False
    write_rows(merge(rows, new_rows(results, caps)))
    return True


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--print"], ["--compile"], ["--emulate"]):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments == ["--compile"]:
        return 0 if record_compiled() else 1
    if arguments == ["--emulate"]:
        return 0 if record_emulated() else 1
    failed = [spec for spec in (() if arguments else present_devices()) if not record(spec)]
    print("\n".join(table(read_rows())))
    if failed:
        print(
            f"evidence: checks fail on {', '.join(failed)}; see hal-info conform", file=sys.stderr
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
