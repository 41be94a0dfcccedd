"""Implementations of the ops, one folder per vendor, each with a reason when it cannot run."""

from __future__ import annotations

from importlib import import_module

# Each imports every kernel module of its folder. Whether a kernel can run is for its predicate to
# say, so importing decides nothing and needs no vendor's library.
KERNEL_PACKAGES = ("hal.kernels.reference", "hal.kernels.torch_native", "hal.kernels.cpu")


def register_all() -> None:
    """Register every kernel beside its op; a second call changes nothing."""
    for package in KERNEL_PACKAGES:
        import_module(package)
