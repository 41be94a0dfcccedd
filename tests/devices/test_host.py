"""Reading a machine from /proc and /sys: written-down machines under a temporary root."""

from __future__ import annotations

from pathlib import Path

import pytest

from hal.device import Feature, MemoryKind
from hal.devices import host

GIB = 1 << 30
ZEN4 = "avx2 avx512f avx512_bf16 avx512_vnni avx512vbmi"
SAPPHIRE_RAPIDS = f"{ZEN4} avx_vnni amx_tile amx_bf16 amx_int8"


class Machine:
    """A root folder that is filled file by file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: {64 << 20} kB\nMemAvailable: {48 << 20} kB\n")

    def write(self, path: str, text: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("flags", "arch", "lanes", "has_bf16"),
    [
        (SAPPHIRE_RAPIDS, "x86_amx_bf16", 16, True),
        (ZEN4, "x86_avx512_bf16", 16, True),
        ("avx2 avx512f avx512_vnni", "x86_avx512_vnni", 16, False),
        ("sse2 avx2 avx_vnni", "x86_avx_vnni", 8, False),
        ("sse2 avx2", "x86_avx2", 8, False),
        ("sse2", "x86", 4, False),
    ],
)
def test_x86(machine: Machine, flags: str, arch: str, lanes: int, has_bf16: bool) -> None:
    machine.write(
        "proc/cpuinfo",
        f"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon X\nflags\t\t: {flags}\n"
        "\nprocessor\t: 1\nvendor_id\t: other\nflags\t\t: none",
    )
    caps = host.cpu_capabilities(machine.root)
    assert (caps.vendor, caps.name, caps.arch) == ("x86", "Xeon X (GenuineIntel)", arch)
    assert caps.simd_width == lanes
    assert (Feature.BF16_MMA in caps.features) is has_bf16


def test_arm(machine: Machine) -> None:
    machine.write(
        "proc/cpuinfo",
        "processor\t: 0\nFeatures\t: fp asimd asimddp sve bf16 i8mm\nCPU implementer\t: 0x41",
    )
    caps = host.cpu_capabilities(machine.root)
    assert (caps.vendor, caps.arch, caps.simd_width) == ("arm", "arm_bf16", 4)
    assert caps.features == {
        Feature.BF16_MMA,
        Feature.INT8_MMA,
        Feature.NEON,
        Feature.DOTPROD,
        Feature.GRAPHS,
    }


def test_every_feature_of_a_big_cpu() -> None:
    assert host.processor_features(SAPPHIRE_RAPIDS.split()) == {
        Feature.AVX2,
        Feature.AVX_VNNI,
        Feature.AVX512,
        Feature.AVX512_BF16,
        Feature.AVX512_VNNI,
        Feature.AVX512_VBMI,
        Feature.AMX_BF16,
        Feature.AMX_INT8,
        Feature.BF16_MMA,
        Feature.INT8_MMA,
        Feature.GRAPHS,
    }


def test_a_machine_without_proc_still_has_a_cpu(tmp_path: Path) -> None:
    caps = host.cpu_capabilities(tmp_path)
    assert caps.vendor
    assert caps.memory.total_bytes > 0


def test_memory_without_a_cgroup_is_what_the_kernel_offers(machine: Machine) -> None:
    memory = host.host_memory(machine.root)
    assert memory.kind is MemoryKind.HOST
    assert (memory.total_bytes, memory.available_bytes) == (64 * GIB, 48 * GIB)
    assert (memory.cgroup_limit_bytes, memory.numa_nodes) == (None, 1)


def test_numa_nodes_are_counted(machine: Machine) -> None:
    for node in range(2):
        machine.write(f"sys/devices/system/node/node{node}/cpulist", "0-7")
    assert host.host_memory(machine.root).numa_nodes == 2


def test_cgroup_v2_takes_the_ancestor_that_leaves_least(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/pod/container")
    machine.write("sys/fs/cgroup/memory.max", "max")
    machine.write("sys/fs/cgroup/memory.current", 20 * GIB)
    machine.write("sys/fs/cgroup/pod/container/memory.max", 16 * GIB)
    machine.write("sys/fs/cgroup/pod/container/memory.current", 6 * GIB)
    machine.write("sys/fs/cgroup/pod/memory.max", 8 * GIB)
    machine.write("sys/fs/cgroup/pod/memory.current", 7 * GIB)
    memory = host.host_memory(machine.root)
    assert (memory.total_bytes, memory.available_bytes) == (8 * GIB, 1 * GIB)
    assert memory.cgroup_limit_bytes == 8 * GIB


def test_page_cache_of_a_cgroup_counts_as_left(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/")
    machine.write("sys/fs/cgroup/memory.max", 8 * GIB)
    machine.write("sys/fs/cgroup/memory.current", 7 * GIB)
    stat = f"anon {2 * GIB}\ninactive_file {3 * GIB}\nactive_file {1 * GIB}"
    machine.write("sys/fs/cgroup/memory.stat", stat)
    assert host.available_bytes(machine.root) == 5 * GIB


def test_cgroup_v1_inside_a_container_reads_its_mount(machine: Machine) -> None:
    """The listed path is the host's: it does not exist under the container's mount."""
    machine.write("proc/self/cgroup", "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", 4 * GIB)
    machine.write("sys/fs/cgroup/memory/memory.usage_in_bytes", 3 * GIB)
    stat = f"inactive_file 0\ntotal_inactive_file {1 * GIB}\ntotal_active_file 0"
    machine.write("sys/fs/cgroup/memory/memory.stat", stat)
    machine.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", 100000)
    machine.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", 100000)
    assert host.available_bytes(machine.root) == 2 * GIB
    assert host.num_usable_cores(machine.root) == 1


def test_cgroup_v1_writes_no_limit_as_a_huge_number(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "4:memory:/")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    machine.write("sys/fs/cgroup/memory/memory.usage_in_bytes", GIB)
    assert host.cgroup_memory(machine.root) is None


def test_a_limit_above_what_the_machine_has_left_does_not_raise_it(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/")
    machine.write("sys/fs/cgroup/memory.max", 60 * GIB)
    machine.write("sys/fs/cgroup/memory.current", 0)
    assert host.available_bytes(machine.root) == 48 * GIB


@pytest.mark.parametrize(("cpu_max", "cores"), [("50000 100000", 1), ("100000 100000", 1)])
def test_a_cpu_quota_limits_the_cores(machine: Machine, cpu_max: str, cores: int) -> None:
    machine.write("proc/self/cgroup", "0::/")
    machine.write("sys/fs/cgroup/cpu.max", cpu_max)
    assert host.num_usable_cores(machine.root) == cores


def test_no_quota_leaves_the_affinity_mask(machine: Machine) -> None:
    unlimited = host.num_usable_cores(machine.root)
    machine.write("proc/self/cgroup", "0::/")
    machine.write("sys/fs/cgroup/cpu.max", "max 100000")
    assert host.num_usable_cores(machine.root) == unlimited >= 1
