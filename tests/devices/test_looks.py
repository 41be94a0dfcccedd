"""The cheap looks: each way a vendor can be absent gives its own reason and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from hal.devices import cuda, pci, rocm
from hal.devices.torch_build import TorchBuild, read_build, torch_build

CUDA_BUILD = TorchBuild("2.13.0+cu130", cuda="13.0", rocm="")
ROCM_BUILD = TorchBuild("2.13.0+rocm7.0", cuda="", rocm="7.0")
CPU_BUILD = TorchBuild("2.13.0+cpu", cuda="", rocm="")


def _write(root: Path, path: str, text: str = "") -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _card(root: Path, slot: str, vendor: str, device_class: str) -> None:
    _write(root, f"sys/bus/pci/devices/{slot}/vendor", f"{vendor}\n")
    _write(root, f"sys/bus/pci/devices/{slot}/class", f"{device_class}\n")


def _gpu_node(root: Path, version: int) -> None:
    _write(root, "sys/class/kfd/kfd/topology/nodes/0/properties", "gfx_target_version 0\n")
    text = f"simd_count 1216\ngfx_target_version {version}\n"
    _write(root, "sys/class/kfd/kfd/topology/nodes/1/properties", text)


def test_nothing_at_all(tmp_path: Path) -> None:
    for look, build in ((cuda.look, CUDA_BUILD), (rocm.look, ROCM_BUILD)):
        absence = look(build, tmp_path)
        assert absence is not None
        assert absence.reason.startswith("no ") and absence.remedy == ""


def test_a_card_without_its_driver(tmp_path: Path) -> None:
    _card(tmp_path, "0000:01:00.0", pci.NVIDIA, "0x030200")
    _card(tmp_path, "0000:41:00.0", pci.AMD, "0x120000")
    nvidia, amd = cuda.look(CUDA_BUILD, tmp_path), rocm.look(ROCM_BUILD, tmp_path)
    assert nvidia is not None and "0000:01:00.0" in nvidia.reason and "nvidia-smi" in nvidia.remedy
    assert amd is not None and "0000:41:00.0" in amd.reason and "rocminfo" in amd.remedy


def test_a_network_card_of_the_same_vendor_is_no_accelerator(tmp_path: Path) -> None:
    _card(tmp_path, "0000:05:00.0", pci.NVIDIA, "0x020000")
    assert pci.accelerator_slots(pci.NVIDIA, tmp_path) == ()


def test_a_container_that_was_given_no_gpu(tmp_path: Path) -> None:
    _write(tmp_path, "proc/driver/nvidia/version")
    absence = cuda.look(CUDA_BUILD, tmp_path)
    assert absence is not None and "--gpus all" in absence.remedy


@pytest.mark.parametrize("build", [CPU_BUILD, ROCM_BUILD, None])
def test_a_torch_without_cuda(tmp_path: Path, build: TorchBuild | None) -> None:
    _write(tmp_path, "dev/nvidiactl")
    absence = cuda.look(build, tmp_path)
    assert absence is not None and "built without CUDA" in absence.reason
    assert "pip install" in absence.remedy


def test_a_torch_without_rocm_still_names_the_card(tmp_path: Path) -> None:
    _gpu_node(tmp_path, 90402)
    _write(tmp_path, "dev/kfd")
    absence = rocm.look(CUDA_BUILD, tmp_path)
    assert absence is not None
    assert absence.reason == "gfx942 is here, but torch 2.13.0+cu130 is built without ROCm"


def test_a_user_who_may_not_open_the_driver(tmp_path: Path) -> None:
    _gpu_node(tmp_path, 90402)  # and no dev/kfd at all, as in a container
    absence = rocm.look(ROCM_BUILD, tmp_path)
    assert absence is not None and "render,video" in absence.remedy


def test_then_the_driver_is_asked(tmp_path: Path) -> None:
    _write(tmp_path, "dev/nvidiactl")
    _write(tmp_path, "dev/kfd")
    _gpu_node(tmp_path, 110501)
    assert cuda.look(CUDA_BUILD, tmp_path) is None
    assert rocm.look(ROCM_BUILD, tmp_path) is None


@pytest.mark.parametrize(
    ("version", "arch"),
    [(90402, "gfx942"), (90010, "gfx90a"), (90500, "gfx950"), (110000, "gfx1100")],
)
def test_the_kernel_writes_archs_as_numbers(tmp_path: Path, version: int, arch: str) -> None:
    _gpu_node(tmp_path, version)
    assert rocm.kernel_archs(tmp_path) == (arch,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n",
         CPU_BUILD),
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n",
         CUDA_BUILD),
        ("__version__ = '2.13.0+rocm7.0'\ncuda = None\nhip = '7.0'\n", ROCM_BUILD),
    ],
)  # fmt: skip
def test_what_torch_was_built_for(tmp_path: Path, text: str, expected: TorchBuild) -> None:
    _write(tmp_path, "version.py", text)
    assert read_build(tmp_path / "version.py") == expected


def test_the_installed_torch_is_read_without_importing_it() -> None:
    import torch

    build = torch_build()
    assert build is not None
    assert build.version == torch.__version__
    assert (build.cuda, build.rocm) == (torch.version.cuda or "", torch.version.hip or "")
