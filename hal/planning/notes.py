"""What a reader of a plan must know beside its numbers: limits of this version, and of the plan."""

from __future__ import annotations

from collections.abc import Iterator

from hal.dtypes import DType
from hal.evidence.rows import Evidence
from hal.explain import emulation_ledger, site_report
from hal.opset.attention import AttentionProblem
from hal.planning.quantization import planned_scheme
from hal.planning.roofline import met_share
from hal.planning.settings import PlanSettings
from hal.planning.shape import ModelShape, Role
from hal.planning.sizing import Basis, Sized, Sizer, is_host
from hal.planning.target import SLOW_LINK_BYTES_PER_S, PlanDevice


def notes(
    sizer: Sizer, settings: PlanSettings, device: PlanDevice, sized: Sized
) -> tuple[str, ...]:
    """In order of weight: what cannot run yet, what was assumed, what is only said."""
    return (
        *_not_yet(sizer, settings, device),
        *_on_the_reference(sizer, device, sized),
        *sizer.model.notes,
        *_kernels(sizer, settings, device),
        *_devices(settings, device),
        *_formats(sizer, settings, device, sized),
        *_experts(sizer.model.shape, sized),
    )


def _not_yet(sizer: Sizer, settings: PlanSettings, device: PlanDevice) -> Iterator[str]:
    yield from sizer.model.cannot_run
    if (settings.tp or 1) > 1 and not (
        is_host(device) and sizer.basis(settings, device) is Basis.ENGINE
    ):
        yield f"not supported yet: tensor parallel (here over {settings.tp} devices)"
    if not device.kind:
        yield f"not supported yet: {device.capabilities.name}; this version has no such device"


def _on_the_reference(sizer: Sizer, device: PlanDevice, sized: Sized) -> Iterator[str]:
    """Codes that no kernel there reads: weights are stored larger, and both are slow."""
    selector, resolved = sizer.selector(device), sized.resolved
    if selector is None:
        return
    formats = {resolved.weights, resolved.head_weights} - {None}
    sites = [
        site_report(selection, Evidence(), selector=selector)
        for selection in selector.report()
        if getattr(selection.problem, "weights", None) in formats
        or (_keeps_codes(selection.problem) and resolved.kv_dtype is not None)
    ]
    yield from emulation_ledger(sites)


def _keeps_codes(problem: object) -> bool:
    return isinstance(problem, AttentionProblem) and problem.holds_codes


def _devices(settings: PlanSettings, device: PlanDevice) -> Iterator[str]:
    tp = settings.tp or 1
    if device.count > tp:
        yield f"{tp} of {device.count} devices are used; start one server for each {tp}"
    if tp == 1 or is_host(device):
        return
    link = device.link_between(tp)
    if device.profile is None:
        yield "no profile describes this device: its links are not known"
    elif link is None:
        most = max((known.max_devices for known in device.profile.links), default=1)
        yield f"no link joins {tp} of {device.name}; at most {most} share one"
    elif link.bytes_per_s <= SLOW_LINK_BYTES_PER_S:
        yield (
            f"{tp} of {device.name} have no link faster than PCI Express between them "
            f"({link.kind}, {link.bytes_per_s / 1e9:g} GB/s one way); every layer waits twice"
        )


def _kernels(sizer: Sizer, settings: PlanSettings, device: PlanDevice) -> Iterator[str]:
    wishes = settings.kernel or settings.strict or settings.deterministic
    if wishes and sizer.basis(settings, device) is Basis.CONFIG:
        yield (
            "--kernel, --strict and --deterministic change nothing here: sizes are derived from "
            "config.json, no kernel is chosen"
        )


def _formats(
    sizer: Sizer, settings: PlanSettings, device: PlanDevice, sized: Sized
) -> Iterator[str]:
    stored, used = sizer.model.shape.dtype, sized.resolved.dtype
    if stored is not used and settings.dtype == "auto":
        reason = next(c.reason for c in sized.resolved.choices if c.name == "dtype")
        yield f"runs in {used}: {reason}"
    scheme = planned_scheme(settings.quantization)
    if scheme is not None and scheme.compute is None:
        yield f"{scheme.name} keeps activations in {used}: it saves memory, not arithmetic"
    if device.profile is None:
        yield "no profile describes this device: no rates"
    elif not {used, DType.FLOAT32} & device.profile.peak_flops.keys():
        yield f"no rates: {device.name} multiplies no {used} matrices; --dtype bfloat16 has rates"


def _experts(shape: ModelShape, sized: Sized) -> Iterator[str]:
    """What the rates take for granted about the router."""
    experts = next((w for w in shape.weights if w.role is Role.EXPERT), None)
    if experts is not None:
        seqs = sized.resolved.max_num_seqs
        one, many = (met_share(experts, num_tokens) for num_tokens in (1, seqs))
        yield (
            f"rates are of a router that favours no expert: a token meets {one:.1%} of them, the "
            f"tokens of a step of {seqs} sequences {many:.1%}; one that does reads less"
        )
