"""What `hal-info` says, as data: devices, chosen kernels, versions, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import hal.kernels
from hal.assembly import make_selector, selection_policy
from hal.cli.info.facts import DeviceFacts, device_facts
from hal.cli.info.sites import EXAMPLE_MODEL, Site, example_sites
from hal.cli.installation import Missing, Version, installed_versions, missing_parts
from hal.collective import SingleRank
from hal.config import EngineConfig, ModelLimits, resolve
from hal.devices.affinity import Affinity, Cpu, allowed_cpus, choose_affinity, describe_nodes
from hal.devices.opening import AUTO, Chosen, check_spec, choose_device, parse_spec
from hal.devices.probe import probe
from hal.devices.registry import all_vendors
from hal.devices.vendor import Vendor
from hal.dtypes import DType
from hal.engine.models import MODELS
from hal.errors import ConfigError, SelectionError
from hal.evidence import evidence_of
from hal.explain import SiteReport, site_reports
from hal.report import DeviceReport, JsonValue, ProbeReport
from hal.select import Selector

# Raised when a key changes its meaning or goes; a new key leaves it alone.
SCHEMA_VERSION = 2
# Most checkpoints are stored in bfloat16; without a model this is what "auto" starts from.
_EXAMPLE_LIMITS = ModelLimits(dtype=DType.BFLOAT16, max_position_embeddings=4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoRequest:
    """What to show; the fields mean what they mean to `hal-serve`."""

    device: str = AUTO
    dtype: str = AUTO
    kernel: tuple[str, ...] = ()
    strict: bool = False
    deterministic: bool = False
    threads: int | None = None
    cpu_affinity: str = AUTO


@dataclass(frozen=True, slots=True)
class NoKernel:
    """An op that nothing on the device can run, with every reason."""

    op: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """One device for the example model, in the dtype chosen for it.

    affinity: where its threads go; None on accelerators; nodes: the host's, where it has several
    """

    device: str
    dtype: str
    dtype_reason: str
    facts: DeviceFacts
    affinity: Affinity | None
    nodes: tuple[str, ...]
    sites: tuple[SiteReport, ...]
    without_kernel: tuple[NoKernel, ...]

    def as_json(self) -> dict[str, JsonValue]:
        return {
            "device": self.device,
            "dtype": self.dtype,
            "dtype_reason": self.dtype_reason,
            **asdict(self.facts),
            "collective": SingleRank.name,
            "cpu_affinity": None
            if self.affinity is None
            else {"value": self.affinity.value, "reason": self.affinity.reason},
            "memory_nodes": list(self.nodes),
            "sites": [site.as_json() for site in self.sites],
            "without_kernel": [asdict(op) for op in self.without_kernel],
        }


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """What `--device` means here, or the error that says why it means nothing."""

    chosen: Chosen | None
    error: ConfigError | None


def choice_among(text: str, report: ProbeReport, vendors: Mapping[str, Vendor]) -> DeviceChoice:
    """Decide as the engine would, from a report of every vendor."""
    try:
        spec = parse_spec(text)
        check_spec(spec, vendors)
        if spec.vendor == AUTO:
            report = ProbeReport(
                tuple(d for d in report.devices if vendors[d.spec.partition(":")[0]].is_for_auto)
            )
        return DeviceChoice(choose_device(spec, report, vendors), None)
    except ConfigError as error:
        return DeviceChoice(None, error)


def kernel_report(
    request: InfoRequest, device: DeviceReport, *, is_present: bool = True
) -> KernelReport:
    """Select a kernel for every op on a usable or an absent device; kernels must be registered."""
    caps = device.capabilities
    assert caps is not None, "only usable devices are asked for kernels"
    config = EngineConfig(
        device=device.spec,
        dtype=request.dtype,
        kernel=request.kernel,
        strict=request.strict,
        deterministic=request.deterministic,
        threads=request.threads,
        cpu_affinity=request.cpu_affinity,
    )
    resolved = resolve(config, caps, _EXAMPLE_LIMITS)
    selector = make_selector(caps, selection_policy(config), is_present=is_present)
    cpus = allowed_cpus() if is_present and not caps.is_accelerator else ()
    without = tuple(_without_kernel(selector, site) for site in example_sites(resolved.dtype))
    return KernelReport(
        device=device.spec,
        dtype=str(resolved.dtype),
        dtype_reason=next(c.reason for c in resolved.choices if c.name == "dtype"),
        facts=device_facts(caps, resolved.dtype, is_present=is_present),
        affinity=_affinity(config, cpus) if cpus else None,
        nodes=describe_nodes(cpus),
        sites=site_reports(selector, evidence_of),
        without_kernel=tuple(op for op in without if op is not None),
    )


def _affinity(config: EngineConfig, cpus: Sequence[Cpu]) -> Affinity:
    import torch

    threads = torch.get_num_threads()
    return choose_affinity(config.cpu_affinity, config.threads, threads, cpus)


def _without_kernel(selector: Selector, site: Site) -> NoKernel | None:
    """Selects a kernel for the site; the selector remembers it."""
    try:
        selector.select(site.op, site.problem)
    except SelectionError as error:
        return NoKernel(site.op.name, error.message)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoReport:
    """Everything `hal-info` prints."""

    request: InfoRequest
    probe: ProbeReport
    choice: DeviceChoice
    kernels: tuple[KernelReport, ...]
    versions: tuple[Version, ...]
    missing: tuple[Missing, ...]

    def as_json(self) -> dict[str, JsonValue]:
        chosen, error = self.choice.chosen, self.choice.error
        return {
            "schema": SCHEMA_VERSION,
            "requested": self.request.device,
            "chosen": None if chosen is None else chosen.report.spec,
            "reason": "" if chosen is None else chosen.reason,
            "error": None if error is None else {"code": error.code, "message": error.message},
            "devices": [device.as_json() for device in self.probe.devices],
            "example_model": EXAMPLE_MODEL,
            "kernels": [kernels.as_json() for kernels in self.kernels],
            "architectures": sorted(MODELS),
            "versions": {v.name: v.version for v in self.versions},
            "missing": [asdict(m) for m in self.missing],
        }


def collect(request: InfoRequest, vendors: Mapping[str, Vendor] | None = None) -> InfoReport:
    """Look at everything. Raises ConfigError for a dtype or kernel override that nobody knows."""
    known = all_vendors() if vendors is None else vendors
    # Asking drivers and importing kernels (torch) take about as long: side by side.
    with ThreadPoolExecutor(max_workers=2) as pool:
        probing = pool.submit(probe, known.values())
        versions = pool.submit(installed_versions)
        hal.kernels.register_all()
        report = probing.result()
    choice = choice_among(request.device, report, known)
    kernels = [kernel_report(request, device) for device in report.usable()]
    if choice.chosen is not None and choice.chosen.posed is not None:
        kernels.append(kernel_report(request, choice.chosen.posed, is_present=False))
    return InfoReport(
        request=request,
        probe=report,
        choice=choice,
        kernels=tuple(kernels),
        versions=versions.result(),
        missing=missing_parts(versions.result()),
    )
