"""The body of docs/support.md: what runs on which device, from the selection of start-up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import hal.kernels
from hal.cli.info.report import InfoRequest, KernelReport, kernel_report
from hal.cli.info.sites import EXAMPLE_MODEL
from hal.evidence import rows
from hal.profiles import Profile, all_profiles
from hal.report import DeviceReport
from hal.select import Level

_INTRO = f"""\
# Support

What `hal` would choose on each device that it has a profile of, whether or not one is in this
machine: the predicates of the kernels, asked with the profile's capabilities.
`hal-info explain MODEL --device null:PROFILE` says the same for your model, with the reason against
every other kernel; [Kernels](kernels.md) explains the words.

## Kernels

For the shapes of {EXAMPLE_MODEL}, in the element type that `--dtype auto` chooses for a bfloat16
checkpoint. A kernel without a word behind it is native; *upcast* and *reference* are said.
"""
_TYPES = """\
## Element types

How a device multiplies matrices of a type: *native* has instructions for it, *upcast* computes it
in float32, a dash can neither. *unused*: the hardware could, and no kernel of `hal` does yet.

"""
_EVIDENCE = """\
## Evidence

How far each kernel was proved, the last time that it was recorded (`hal/evidence/rows.json`), and
with which compiler. *compiles*: machine code was made and its instructions checked; *emulated*: an
emulator ran it against the oracle ([AMD cards](amd.md)); *conforms*: it ran on a device. A kernel
whose source has changed since counts for nothing until it is recorded again: `hal-info` knows.

"""
_OTHERS = """\
## Planned for only

Devices that `hal-info plan` knows and `hal` cannot run on: """


def support_page() -> str:
    """Kernels and element types of every profile."""
    hal.kernels.register_all()
    runnable = [profile for profile in all_profiles().values() if profile.device]
    reports = {profile.name: _report(profile) for profile in runnable}
    others = ", ".join(p.title for p in all_profiles().values() if not p.device)
    parts = [
        _INTRO,
        "\n".join(_kernel_table(reports)) + "\n",
        _TYPES + "\n".join(_type_table(runnable, reports)) + "\n",
        _EVIDENCE + "\n".join(_evidence_table()) + "\n",
    ]
    if others:
        parts.append(f"{_OTHERS}{others}.\n")
    return "\n".join(parts)


def _report(profile: Profile) -> KernelReport:
    """As `hal-info` would report the device."""
    device = DeviceReport(spec=profile.name, capabilities=profile.capabilities())
    return kernel_report(InfoRequest(), device, is_present=False)


def _kernel_table(reports: dict[str, KernelReport]) -> Iterator[str]:
    """A column for each set of devices that choose alike."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, report in reports.items():
        groups.setdefault(tuple(_cells(report)), []).append(name)
    columns = list(groups)
    for number, names in enumerate(groups.values(), 1):
        yield f"{number}. {', '.join(f'`{name}`' for name in names)}"
    yield ""
    yield _row(["op", *(str(number) for number in range(1, len(columns) + 1))])
    yield _row(["---"] * (len(columns) + 1))
    ops = [site.op for site in next(iter(reports.values())).sites]
    for index, op in enumerate(ops):
        yield _row([f"`{op}`", *(column[index] for column in columns)])


def _cells(report: KernelReport) -> Iterator[str]:
    for site in report.sites:
        level = "" if site.level is Level.NATIVE else f" ({site.level})"
        yield f"{site.kernel}{level}"


def _type_table(profiles: Sequence[Profile], reports: dict[str, KernelReport]) -> Iterator[str]:
    dtypes = [m.dtype for m in next(iter(reports.values())).facts.matrix]
    yield _row(["device", "arch", *dtypes])
    yield _row(["---"] * (2 + len(dtypes)))
    for profile in profiles:
        matrix = reports[profile.name].facts.matrix
        cells = [_type_cell(m.support, m.note) for m in matrix]
        yield _row([f"`{profile.name}`", profile.arch, *cells])


def _type_cell(support: str, note: str) -> str:
    if support == "absent":
        return "-"
    return "unused" if support == "native" and note else support


def _evidence_table() -> Iterator[str]:
    """A line for each kernel, compiler, day and level: archs of which the same ops are shown."""
    shown: dict[tuple[str, str, str, str], dict[str, list[str]]] = {}
    for row in sorted(rows(), key=lambda r: (r.kernel, r.level, r.arch, r.op)):
        place = (row.kernel, row.compiler, str(row.level), row.date)
        shown.setdefault(place, {}).setdefault(row.arch, []).append(f"`{row.op}`")
    yield _row(["archs", "kernel", "compiler", "level", "recorded", "ops"])
    yield _row(["---"] * 6)
    for place, by_arch in shown.items():
        archs_of: dict[str, list[str]] = {}
        for arch, names in by_arch.items():
            archs_of.setdefault(", ".join(names), []).append(arch)
        for ops, archs in archs_of.items():
            yield _row([", ".join(archs), *place, ops])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
