"""The report of `hal-info` for people."""

from __future__ import annotations

from collections.abc import Iterator

from hal.cli.info.columns import hanging, section
from hal.cli.info.facts import DeviceFacts
from hal.cli.info.report import InfoReport, KernelReport
from hal.cli.info.sites import EXAMPLE_MODEL
from hal.device import Capabilities
from hal.engine.models import MODELS
from hal.explain import SiteReport
from hal.memory import format_bytes
from hal.report import DeviceReport
from hal.select import HIGHEST_PREFERENCE, Rule

_INDENT = " " * 12


def render(report: InfoReport) -> str:
    """All sections; the device that would be used carries a star."""
    sections = [
        section("Versions", _version_lines(report)),
        section("Devices", _device_lines(report)),
        section(*_kernel_section(report)),
        section("Model architectures", iter([f"  {', '.join(sorted(MODELS))}"])),
        section("Missing", _missing_lines(report)),
    ]
    return "\n\n".join(s for s in sections if s)


def _wrapped(text: str, first: str) -> str:
    return hanging(text, first, _INDENT)


def _version_lines(report: InfoReport) -> Iterator[str]:
    for found in report.versions:
        yield f"  {found.name:<13} {found.version or 'not installed'}"


def _device_lines(report: InfoReport) -> Iterator[str]:
    chosen = report.choice.chosen
    kernels = {k.device: k for k in report.kernels}
    for device in report.probe.devices:
        is_chosen = chosen is not None and device.spec == chosen.report.spec
        yield from _one_device(device, kernels.get(device.spec), "*" if is_chosen else " ")
    if chosen is not None and chosen.posed is not None:
        yield from _one_device(chosen.posed, kernels.get(chosen.posed.spec), "*", "posed for")
    if chosen is not None:
        yield _wrapped(
            f"--device {report.request.device} means {chosen.report.spec}: {chosen.reason}", "* "
        )


def _one_device(
    device: DeviceReport, kernels: KernelReport | None, mark: str, usable: str = "usable"
) -> Iterator[str]:
    verdict = usable if device.is_usable else f"not usable: {device.reason}"
    yield _wrapped(verdict, f"{mark} {device.spec:<9} ")
    if device.capabilities is not None:
        for line in _capability_lines(device.capabilities):
            yield _wrapped(line, _INDENT)
    if kernels is not None:
        for line in (*_fact_lines(kernels.facts), *_thread_lines(kernels)):
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
    if caps.links:
        yield f"links: {'; '.join(caps.links)}"
    versions = caps.versions
    known = [text for text in (versions.driver, versions.runtime, versions.compiler) if text]
    if known:
        yield f"driver: {', '.join(known)}"


def _chosen_kernels(report: InfoReport) -> KernelReport | None:
    chosen = report.choice.chosen
    if chosen is None:
        return None
    shown = chosen.posed or chosen.report
    return next((k for k in report.kernels if k.device == shown.spec), None)


def _kernel_section(report: InfoReport) -> tuple[str, Iterator[str]]:
    kernels = _chosen_kernels(report)
    if kernels is None:
        return "Kernels", iter(())
    title = (
        f"Kernels on {kernels.device} for {EXAMPLE_MODEL} in {kernels.dtype} "
        f"({kernels.dtype_reason}):\nop, kernel, level, evidence"
    )
    return title, _kernel_lines(kernels)


def _kernel_lines(kernels: KernelReport) -> Iterator[str]:
    for site in kernels.sites:
        wished = f"  {site.reason}" if site.reason != HIGHEST_PREFERENCE else ""
        proof = f" ({site.proof})" if site.proof else ""
        yield f"  {site.op:<17} {site.kernel:<13} {site.level:<10} {site.evidence}{proof}{wished}"
        yield from (_wrapped(line, _INDENT) for line in _other_kernels(site))
    for op in kernels.without_kernel:
        yield _wrapped(f"no kernel: {op.reason}", f"  {op.op:<17} ")


def _other_kernels(site: SiteReport) -> Iterator[str]:
    """Those that could run in one line; each other one with its reason."""
    spare = [r.kernel for r in site.rejected if r.rule is Rule.PREFERENCE]
    if spare:
        yield f"could run, less preferred: {', '.join(spare)} -> --kernel {site.op}=NAME"
    for rejection in site.rejected:
        if rejection.rule is not Rule.PREFERENCE:
            yield rejection.line(site.op)


def _fact_lines(facts: DeviceFacts) -> Iterator[str]:
    yield "matrix products: " + ", ".join(
        f"{m.dtype} {m.support}{f' ({m.note})' if m.note else ''}" for m in facts.matrix
    )
    yield f"FP8 flavour: {facts.fp8 or 'none'}"
    yield f"attention block sizes: {_listed(facts.block_sizes)}"
    yield f"attention head sizes: {_listed(facts.head_sizes)}"
    yield "collective: single (one rank); several devices are not supported yet"


def _thread_lines(kernels: KernelReport) -> Iterator[str]:
    yield from kernels.nodes
    if kernels.affinity is not None:
        yield f"--cpu-affinity means {kernels.affinity.value}: {kernels.affinity.reason}"


def _listed(sizes: tuple[int, ...]) -> str:
    return " ".join(map(str, sizes)) or "none"


def _missing_lines(report: InfoReport) -> Iterator[str]:
    for part in report.missing:
        yield _wrapped(f"{part.what}: {part.consequence}", "  ")
        yield _wrapped(f"-> {part.command}", _INDENT)
