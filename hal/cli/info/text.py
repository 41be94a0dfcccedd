"""The report of `hal-info` for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from hal.cli.info.report import InfoReport, KernelReport
from hal.cli.info.sites import EXAMPLE_MODEL
from hal.device import Capabilities
from hal.engine.models import MODELS
from hal.memory import format_bytes
from hal.report import DeviceReport

_WIDTH = 100
_INDENT = " " * 12


def render(report: InfoReport) -> str:
    """All sections; the device that would be used carries a star."""
    sections = [
        _section("Versions", _version_lines(report)),
        _section("Devices", _device_lines(report)),
        _section(*_kernel_section(report)),
        _section("Model architectures", iter([f"  {', '.join(sorted(MODELS))}"])),
        _section("Missing", _missing_lines(report)),
    ]
    return "\n\n".join(s for s in sections if s)


def _section(title: str, lines: Iterator[str]) -> str:
    body = "\n".join(lines)
    return f"{title}\n{body}" if body else ""


def _wrapped(text: str, first: str) -> str:
    return textwrap.fill(
        text,
        width=_WIDTH,
        initial_indent=first,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _version_lines(report: InfoReport) -> Iterator[str]:
    for found in report.versions:
        yield f"  {found.name:<13} {found.version or 'not installed'}"


def _device_lines(report: InfoReport) -> Iterator[str]:
    chosen = report.choice.chosen
    for device in report.probe.devices:
        is_chosen = chosen is not None and device.spec == chosen.report.spec
        yield from _one_device(device, "*" if is_chosen else " ")
    if chosen is not None:
        yield _wrapped(
            f"--device {report.request.device} means {chosen.report.spec}: {chosen.reason}", "* "
        )


def _one_device(device: DeviceReport, mark: str) -> Iterator[str]:
    verdict = "usable" if device.is_usable else f"not usable: {device.reason}"
    yield _wrapped(verdict, f"{mark} {device.spec:<10}")
    if device.capabilities is not None:
        for line in _capability_lines(device.capabilities):
            yield _wrapped(line, _INDENT)
    if device.note:
        yield _wrapped(f"note: {device.note}", _INDENT)
    if device.remedy:
        yield _wrapped(f"-> {device.remedy}", _INDENT)


def _capability_lines(caps: Capabilities) -> Iterator[str]:
    yield f"{caps.name}, {caps.arch} ({caps.vendor})"
    memory = caps.memory
    limit = memory.cgroup_limit_bytes
    cgroup = "" if limit is None else f", cgroup limit {format_bytes(limit)}"
    numa = "" if memory.numa_nodes == 1 else f", {memory.numa_nodes} NUMA nodes"
    yield (
        f"{memory.kind} memory {format_bytes(memory.total_bytes)}, "
        f"{format_bytes(memory.available_bytes)} available{cgroup}{numa}"
    )
    units = "compute units" if caps.is_accelerator else "cores"
    yield f"{units} {caps.compute_units}, SIMD width {caps.simd_width}"
    yield f"features: {caps.feature_names()}"
    versions = caps.versions
    known = [text for text in (versions.driver, versions.runtime, versions.compiler) if text]
    if known:
        yield f"driver: {', '.join(known)}"


def _kernel_section(report: InfoReport) -> tuple[str, Iterator[str]]:
    chosen = report.choice.chosen
    for kernels in report.kernels:
        if chosen is not None and kernels.device == (chosen.posed or chosen.report).spec:
            title = (
                f"Kernels on {kernels.device} for {EXAMPLE_MODEL} in {kernels.dtype} "
                f"({kernels.dtype_reason})"
            )
            return title, _kernel_lines(kernels)
    return "Kernels", iter(())


def _kernel_lines(kernels: KernelReport) -> Iterator[str]:
    for op in kernels.ops:
        if op.kernel:
            yield f"  {op.op:<17} {op.kernel:<16} {op.level:<10} {op.reason}"
        else:
            yield _wrapped(f"no kernel: {op.reason}", f"  {op.op:<17} ")
        for rejection in op.rejected:
            yield _wrapped(f"not {rejection.kernel}: {rejection.reason}", _INDENT)


def _missing_lines(report: InfoReport) -> Iterator[str]:
    for part in report.missing:
        yield _wrapped(f"{part.what}: {part.consequence}", "  ")
        yield _wrapped(f"-> {part.command}", _INDENT)
