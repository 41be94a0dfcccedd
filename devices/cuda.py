"""NVIDIA GPUs: the cheap look, and what a card's properties mean."""

from __future__ import annotations

from pathlib import Path

from hal.device import Capabilities, Feature, Limits, Versions
from hal.devices import pci
from hal.devices.card import CardProperties, card_memory
from hal.devices.host import read_text
from hal.devices.torch_build import TorchBuild
from hal.devices.vendor import Absence

# Compute capability x 10 from which the tensor cores multiply this type.
# Source: CUDA C++ Programming Guide, "Compute Capabilities".
_SINCE = (
    (Feature.GRAPHS, 30),
    (Feature.FP16_MMA, 70),
    (Feature.INT8_MMA, 72),
    (Feature.BF16_MMA, 80),
    (Feature.FP8_OCP_MMA, 89),
)
_DEVICE_NODES = ("dev/nvidiactl", "dev/dxg", "dev/nvhost-gpu", "dev/nvgpu")
_DRIVER_VERSION = "sys/module/nvidia/version"


def look(build: TorchBuild | None, root: Path = Path("/")) -> Absence | None:
    """Why no NVIDIA GPU can be used, judged without a driver; None = ask the driver."""
    if not any((root / node).exists() for node in _DEVICE_NODES):
        return _absence_of_driver(root)
    if build is None or not build.cuda:
        installed = "torch is not installed" if build is None else f"torch {build.version}"
        return Absence(
            f"an NVIDIA driver is here, but {installed} is built without CUDA",
            "pip install --force-reinstall --index-url "
            "https://download.pytorch.org/whl/cu130 'torch>=2.11,<2.14'",
        )
    return None


def _absence_of_driver(root: Path) -> Absence:
    if (root / "proc/driver/nvidia/version").exists():
        return Absence(
            "the NVIDIA driver is loaded, but this container was given no GPU (no /dev/nvidiactl)",
            "start the container with --gpus all",
        )
    slots = pci.accelerator_slots(pci.NVIDIA, root)
    if slots:
        return Absence(
            f"an NVIDIA card is on the PCI bus ({', '.join(slots)}), but its driver is not loaded",
            "install the NVIDIA driver; `nvidia-smi` must list the card",
        )
    return Absence("no NVIDIA GPU and no NVIDIA driver on this machine")


def features(major: int, minor: int) -> frozenset[Feature]:
    """What a compute capability brings."""
    return frozenset(f for f, since in _SINCE if major * 10 + minor >= since)


def capabilities(card: CardProperties, free_bytes: int, runtime: str) -> Capabilities:
    """One NVIDIA card."""
    return Capabilities(
        vendor="nvidia",
        name=card.name,
        arch=f"sm_{card.major}{card.minor}",
        memory=card_memory(card, free_bytes),
        compute_units=card.multi_processor_count,
        simd_width=card.warp_size,
        features=features(card.major, card.minor),
        is_accelerator=True,
        limits=Limits(shared_memory_bytes=card.shared_memory_per_block, max_threads_per_block=1024),
        versions=Versions(
            driver=read_text(Path("/") / _DRIVER_VERSION).strip(), runtime=f"CUDA {runtime}"
        ),
    )


def is_built_for(card: CardProperties, built_archs: list[str]) -> bool:
    """Whether torch has machine code (same major, no newer minor) or PTX that this card can run."""
    for arch in built_archs:
        kind, _, digits = arch.partition("_")
        number = int("".join(c for c in digits if c.isdigit()) or 0)
        major, minor = divmod(number, 10)
        if kind == "sm" and major == card.major and minor <= card.minor:
            return True
        if kind == "compute" and (major, minor) <= (card.major, card.minor):
            return True
    return False
