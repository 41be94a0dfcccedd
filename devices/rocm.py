"""AMD GPUs: the cheap look, and what a gfx arch means."""

from __future__ import annotations

import os
from pathlib import Path

from hal.device import Capabilities, Feature, Limits, Versions
from hal.devices import pci
from hal.devices.card import CardProperties, card_memory
from hal.devices.host import read_text
from hal.devices.torch_build import TorchBuild
from hal.devices.vendor import Absence

_16_BIT = frozenset({Feature.FP16_MMA, Feature.BF16_MMA, Feature.INT8_MMA})
# Matrix instructions by arch, longest prefix first: MFMA on CDNA, WMMA on RDNA 3 and newer.
# Source: AMD's instruction set guides of CDNA 1 to 4, RDNA 3 and RDNA 4.
_MATRIX_FEATURES = (
    ("gfx942", _16_BIT | {Feature.FP8_FNUZ_MMA}),
    ("gfx950", _16_BIT | {Feature.FP8_OCP_MMA}),
    ("gfx908", _16_BIT),
    ("gfx90a", _16_BIT),
    ("gfx11", _16_BIT),
    ("gfx12", _16_BIT | {Feature.FP8_OCP_MMA}),
)
_KFD_NODES = "sys/class/kfd/kfd/topology/nodes"
_DRIVER_VERSION = "sys/module/amdgpu/version"


def look(build: TorchBuild | None, root: Path = Path("/")) -> Absence | None:
    """Why no AMD GPU can be used, judged without a driver; None = ask the driver."""
    archs = kernel_archs(root)
    if not archs:
        return _absence_of_driver(root)
    if not os.access(root / "dev/kfd", os.R_OK | os.W_OK):
        return Absence(
            f"{', '.join(archs)} is here, but this user or container may not open /dev/kfd",
            "usermod -aG render,video $USER, then log in again; in a container: "
            "--device /dev/kfd --device /dev/dri",
        )
    if build is None or not build.rocm:
        installed = "torch is not installed" if build is None else f"torch {build.version}"
        return Absence(
            f"{', '.join(archs)} is here, but {installed} is built without ROCm",
            "install torch from its ROCm index: https://pytorch.org/get-started/locally",
        )
    return None


def kernel_archs(root: Path = Path("/")) -> tuple[str, ...]:
    """The archs of the GPUs that the kernel driver lists ("gfx942"); no ROCm install needed."""
    archs = []
    for node in sorted((root / _KFD_NODES).glob("*")):
        for line in read_text(node / "properties").splitlines():
            key, _, value = line.partition(" ")
            if key == "gfx_target_version" and int(value):
                archs.append(_arch_of_target_version(int(value)))
    return tuple(archs)


def _arch_of_target_version(version: int) -> str:
    """90402 -> "gfx942", 90010 -> "gfx90a", 110000 -> "gfx1100": the last two are hexadecimal."""
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{step:x}"


def _absence_of_driver(root: Path) -> Absence:
    slots = pci.accelerator_slots(pci.AMD, root)
    if slots:
        return Absence(
            f"an AMD card is on the PCI bus ({', '.join(slots)}), but the amdgpu driver "
            "offers no compute device",
            "install the amdgpu driver; `rocminfo` must list the card",
        )
    return Absence("no AMD GPU and no amdgpu driver on this machine")


def features(arch: str) -> frozenset[Feature]:
    """What a gfx arch brings; graphs come with ROCm itself."""
    for prefix, found in _MATRIX_FEATURES:
        if arch.startswith(prefix):
            return found | {Feature.GRAPHS}
    return frozenset({Feature.GRAPHS})


def wave_size(arch: str) -> int:
    """64 on GCN and CDNA (gfx9), 32 on RDNA, where torch and Triton compile for wave32."""
    return 64 if arch.startswith("gfx9") else 32


def arch_of(card: CardProperties) -> str:
    """ "gfx942" out of "gfx942:sramecc+:xnack-"."""
    return card.gcnArchName.partition(":")[0]


def capabilities(card: CardProperties, free_bytes: int, runtime: str) -> Capabilities:
    """One AMD card; nothing of the CUDA name that ROCm's torch gives it."""
    arch = arch_of(card)
    return Capabilities(
        vendor="amd",
        name=card.name,
        arch=arch,
        memory=card_memory(card, free_bytes),
        compute_units=card.multi_processor_count,
        simd_width=wave_size(arch),
        features=features(arch),
        is_accelerator=True,
        limits=Limits(shared_memory_bytes=card.shared_memory_per_block, max_threads_per_block=1024),
        versions=Versions(
            driver=read_text(Path("/") / _DRIVER_VERSION).strip(), runtime=f"ROCm {runtime}"
        ),
    )


def is_built_for(card: CardProperties, built_archs: list[str]) -> bool:
    """Whether torch has machine code for this very arch: AMD's has no portable form."""
    return arch_of(card) in {arch.partition(":")[0] for arch in built_archs}
