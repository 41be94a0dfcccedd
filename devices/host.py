"""What this machine offers, read from /proc and /sys: no torch, no driver, some milliseconds.

Every reader takes `root`, the folder that stands for `/`, so that recorded machines can be tested.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hal.device import Capabilities, Feature, Memory, MemoryKind, Versions

_KIB = 1024
_ROOT = Path("/")
# cgroup v1 writes "no limit" as the largest page-aligned int64.
_CGROUP_V1_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Processor:
    """The CPU as /proc/cpuinfo names it; `flags` are the instruction sets the kernel enabled."""

    vendor: str
    name: str
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """The tightest memory cgroup above this process, in bytes."""

    limit_bytes: int
    left_bytes: int


def read_text(path: Path) -> str:
    """The file's text, or "" where the kernel does not offer it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processor(root: Path = _ROOT) -> Processor:
    """The first CPU of /proc/cpuinfo; the machine type alone where there is none."""
    fields: dict[str, str] = {}
    for line in read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    machine = platform.machine().lower()
    is_arm = "Features" in fields if fields else machine in ("aarch64", "arm64")
    is_x86 = "flags" in fields if fields else machine in ("x86_64", "amd64")
    vendor = "x86" if is_x86 else "arm" if is_arm else machine or "unknown"
    maker = fields.get("vendor_id") or fields.get("CPU implementer", "")
    model = fields.get("model name") or f"{machine} CPU"
    flags = fields.get("flags") or fields.get("Features") or ""
    name = f"{model} ({maker})" if maker else model
    return Processor(vendor=vendor, name=name, flags=frozenset(flags.split()))


# Feature <- any of these kernel flag names (x86 `flags`, ARM `Features`).
_FEATURE_FLAGS = (
    (Feature.AVX2, ("avx2",)),
    (Feature.AVX_VNNI, ("avx_vnni",)),
    (Feature.AVX512, ("avx512f",)),
    (Feature.AVX512_BF16, ("avx512_bf16",)),
    (Feature.AVX512_VNNI, ("avx512_vnni",)),
    (Feature.AVX512_VBMI, ("avx512vbmi",)),
    (Feature.AMX_BF16, ("amx_bf16",)),
    (Feature.AMX_INT8, ("amx_int8",)),
    (Feature.NEON, ("asimd",)),
    (Feature.DOTPROD, ("asimddp",)),
    (Feature.BF16_MMA, ("avx512_bf16", "amx_bf16", "bf16")),
    (Feature.FP16_MMA, ("amx_fp16",)),
    (Feature.INT8_MMA, ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm")),
)

# The widest instruction set names the arch; first match wins.
_ARCH_FLAGS = (
    ("amx_bf16", "amx_bf16"),
    ("avx512_bf16", "avx512_bf16"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512f", "avx512"),
    ("avx_vnni", "avx_vnni"),
    ("avx2", "avx2"),
    ("bf16", "bf16"),
    ("sve", "sve"),
    ("asimd", "neon"),
)


def processor_features(flags: Iterable[str]) -> frozenset[Feature]:
    """The features that these kernel flags stand for; what the host launches can be recorded."""
    present = frozenset(flags)
    found = {f for f, names in _FEATURE_FLAGS if present.intersection(names)}
    return frozenset(found | {Feature.GRAPHS})


def processor_arch(cpu: Processor) -> str:
    """ "x86_avx512_bf16", "arm_neon", ...: the family and its widest useful instruction set."""
    for flag, label in _ARCH_FLAGS:
        if flag in cpu.flags:
            return f"{cpu.vendor}_{label}"
    return cpu.vendor


def float32_lanes(flags: Iterable[str]) -> int:
    """float32 lanes of one vector register."""
    present = frozenset(flags)
    if "avx512f" in present:
        return 16
    return 8 if "avx2" in present else 4


def num_usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may run on: its affinity mask, cut by the cgroup's CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quota = _cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def _cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time per period that the tightest cgroup grants; None = no quota."""
    quotas = []
    for folder in _cgroup_folders(root, "cpu"):
        if v2 := read_text(folder / "cpu.max").split():
            quota, period = v2[0], v2[1]
        else:
            quota = read_text(folder / "cpu.cfs_quota_us").strip()
            period = read_text(folder / "cpu.cfs_period_us").strip()
        if quota not in ("", "max", "-1") and period:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cgroup_memory(root: Path = _ROOT) -> CgroupMemory | None:
    """The memory limit that leaves least, or None without one. Page cache counts as left."""
    found = []
    for folder in _cgroup_folders(root, "memory"):
        limit = _first_number(folder, "memory.max", "memory.limit_in_bytes")
        usage = _first_number(folder, "memory.current", "memory.usage_in_bytes")
        if limit is None or usage is None or limit >= _CGROUP_V1_NO_LIMIT:
            continue
        used = max(0, usage - _reclaimable_bytes(folder))
        found.append(CgroupMemory(limit, max(0, limit - used)))
    return min(found, key=lambda c: c.left_bytes, default=None)


def _first_number(folder: Path, *names: str) -> int | None:
    for name in names:
        text = read_text(folder / name).strip()
        if text.isdigit():
            return int(text)
    return None


def _reclaimable_bytes(folder: Path) -> int:
    """File pages that the kernel drops before it kills: a memory-mapped checkpoint is not used."""
    stat = _key_values(read_text(folder / "memory.stat"))
    prefix = "total_" if "total_inactive_file" in stat else ""
    return stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """This process's cgroup of `controller` and all its ancestors, innermost first.

    Inside a container the listed path often lies outside its mount: then the mount's root counts.
    """
    folders = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mount = root / "sys/fs/cgroup"
        if controller in controllers.split(","):
            mount = mount / controllers if (mount / controllers).is_dir() else mount / controller
        elif hierarchy != "0" or controllers:
            continue
        folder = mount / path.strip("/")
        while folder != mount:
            folders.append(folder)
            folder = folder.parent
        folders.append(mount)
    return folders


def _key_values(text: str) -> dict[str, int]:
    pairs = (line.replace(":", " ").split() for line in text.splitlines())
    return {p[0]: int(p[1]) for p in pairs if len(p) >= 2 and p[1].isdigit()}


def _meminfo_bytes(root: Path) -> tuple[int, int]:
    """(total, available) of /proc/meminfo in bytes; physical memory for both where it is absent."""
    values = _key_values(read_text(root / "proc/meminfo"))
    total = values.get("MemTotal", 0) * _KIB
    if not total:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = values.get("MemAvailable")
    return total, total if available is None else available * _KIB


def available_bytes(root: Path = _ROOT) -> int:
    """Host bytes that may still be taken: min(MemAvailable, what the memory cgroup leaves)."""
    _, available = _meminfo_bytes(root)
    cgroup = cgroup_memory(root)
    return available if cgroup is None else min(available, cgroup.left_bytes)


def host_memory(root: Path = _ROOT) -> Memory:
    """The host's memory as a device's: what a cgroup forbids is not there."""
    total, available = _meminfo_bytes(root)
    cgroup = cgroup_memory(root)
    nodes = list((root / "sys/devices/system/node").glob("node[0-9]*"))
    return Memory(
        kind=MemoryKind.HOST,
        total_bytes=total if cgroup is None else min(total, cgroup.limit_bytes),
        available_bytes=available if cgroup is None else min(available, cgroup.left_bytes),
        cgroup_limit_bytes=None if cgroup is None else cgroup.limit_bytes,
        numa_nodes=max(1, len(nodes)),
    )


def anonymous_bytes(root: Path = _ROOT) -> int:
    """This process's resident private bytes; 0 where /proc is absent."""
    fields = read_text(root / "proc/self/statm").split()
    if len(fields) < 3:
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def cpu_capabilities(root: Path = _ROOT) -> Capabilities:
    """This machine's CPU as a device."""
    cpu = processor(root)
    return Capabilities(
        vendor=cpu.vendor,
        name=cpu.name,
        arch=processor_arch(cpu),
        memory=host_memory(root),
        compute_units=num_usable_cores(root),
        simd_width=float32_lanes(cpu.flags),
        features=processor_features(cpu.flags),
        is_accelerator=False,
        versions=Versions(driver=f"{platform.system()} {platform.release()}"),
    )


def null_capabilities(root: Path = _ROOT) -> Capabilities:
    """A device with nothing a kernel could ask for: every op falls to its reference."""
    return Capabilities(
        vendor="null",
        name="null device (reference kernels)",
        arch="null",
        memory=host_memory(root),
        compute_units=1,
        simd_width=1,
        features=frozenset(),
        is_accelerator=False,
    )
