"""The devices that a plan is for: profiles, or what is in this machine."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from hal.device import Capabilities
from hal.devices.opening import AUTO, check_spec, choose_device, parse_spec
from hal.devices.probe import probe
from hal.devices.registry import all_vendors
from hal.errors import ConfigError
from hal.profiles import (
    Link,
    Profile,
    Target,
    all_profiles,
    find_profile,
    nearest_profiles,
    parse_target,
)

# Memory sizes of a present card and its profile may differ by what the driver keeps.
_SAME_MEMORY = 0.08
SLOW_LINK_BYTES_PER_S = 64e9  # PCI Express 5.0 x16, one direction


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDevice:
    """`count` equal devices. profile: None for a present one that no profile describes.

    kind: what `--device` calls it, "" where hal has no such kind
    """

    name: str
    count: int
    is_counted: bool
    is_present: bool
    reason: str
    kind: str
    capabilities: Capabilities
    profile: Profile | None

    def link_between(self, num_devices: int) -> Link | None:
        """The fastest link that so many of them share; None without a profile or a link."""
        if self.profile is None:
            return None
        links = [link for link in self.profile.links if link.max_devices >= num_devices]
        return max(links, key=lambda link: link.bytes_per_s, default=None)


def find_device(text: str) -> PlanDevice:
    """What `--device` names; raises ConfigError (with the nearest names) or DeviceUnavailable."""
    target = parse_target(text)
    profile = _profile(target.name)
    if profile is not None:
        return _absent(target, profile)
    vendor, _, detail = target.name.partition(":")
    vendors = all_vendors()
    if vendor == "null":
        meant = detail.partition(",")[0] or next(iter(all_profiles()))
        raise ConfigError(
            f"--device {text}: the null device has this machine's memory; to plan for a device "
            f"that is absent name it, e.g. --device {meant}"
        )
    if vendor != AUTO and vendor not in vendors:
        raise ConfigError(_unknown(target.name, [AUTO, *vendors]))
    return _present(target)


def larger_profiles(memory_bytes: int) -> list[Profile]:
    """Accelerators with more memory than that, smallest first."""
    bigger = (p for p in all_profiles().values() if p.memory_bytes > memory_bytes)
    return sorted((p for p in bigger if p.is_accelerator), key=lambda p: p.memory_bytes)


def absent(profile: Profile, count: int = 1) -> PlanDevice:
    """The device that a profile describes."""
    return _absent(Target(profile.name, count, is_counted=count > 1), profile)


def _absent(target: Target, profile: Profile) -> PlanDevice:
    is_arch = target.name == profile.arch != profile.name
    first = f"{target.name} means its first profile; " if is_arch else ""
    return PlanDevice(
        name=profile.name,
        count=target.count,
        is_counted=target.is_counted,
        is_present=False,
        reason=f"{first}profile {profile.name}: {profile.title}",
        kind=profile.device,
        capabilities=profile.capabilities(),
        profile=profile,
    )


def _profile(name: str) -> Profile | None:
    try:
        return find_profile(name)
    except ConfigError:
        return None


def _present(target: Target) -> PlanDevice:
    spec, vendors = parse_spec(target.name), all_vendors()
    check_spec(spec, vendors)
    # The CPU is always there; for the others an error names the nearest that works.
    asked = [
        vendor
        for name, vendor in vendors.items()
        if name == spec.vendor or (vendor.is_for_auto and spec.vendor != "cpu")
    ]
    chosen = choose_device(spec, probe(asked), vendors)
    capabilities = chosen.report.capabilities
    assert capabilities is not None, "only usable devices are chosen"
    return PlanDevice(
        name=chosen.report.spec,
        count=target.count,
        is_counted=target.is_counted,
        is_present=True,
        reason=chosen.reason,
        kind=chosen.report.spec.partition(":")[0],
        capabilities=capabilities,
        profile=_profile_of(capabilities),
    )


def _profile_of(caps: Capabilities) -> Profile | None:
    """The one profile of this arch and memory size; a CPU's bandwidth nobody can tell by name."""
    if not caps.is_accelerator:
        return None
    total = caps.memory.total_bytes
    matching = [
        profile
        for profile in all_profiles().values()
        if profile.arch == caps.arch and abs(profile.memory_bytes - total) <= _SAME_MEMORY * total
    ]
    units = [p for p in matching if p.compute_units == caps.compute_units]
    found = units or matching
    return found[0] if len(found) == 1 else None


def _unknown(name: str, kinds: list[str]) -> str:
    kinds = [kind for kind in kinds if kind not in ("null", "opencl")]  # no plan is for those
    close = nearest_profiles(name) or difflib.get_close_matches(name, kinds, n=2)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return (
        f"unknown device {name!r}.{hint} Profiles: {', '.join(all_profiles())}; in this machine: "
        f"{', '.join(kinds)}"
    )
