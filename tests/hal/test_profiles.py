"""Device profiles: shape, plausibility, sources; planted nonsense is caught by the same checks."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from hal.device import Feature, MemoryKind
from hal.devices import cuda, rocm
from hal.devices.host import Processor, float32_lanes, processor_arch, processor_features
from hal.dtypes import DType
from hal.errors import ConfigError
from hal.profiles import Link, Profile, all_profiles, find_profile, parse_target

GIB = 1 << 30
TERA = 1e12
PROFILES = all_profiles()
RAW: dict[str, dict[str, Any]] = tomllib.loads(
    files("hal.profiles").joinpath("devices.toml").read_text(encoding="utf-8")
)
NUMBERS = ("memory_gib", "bandwidth_gb_s", "compute_units", "simd_width", "peak_tflops")
# What the kernel of such a machine lists in /proc/cpuinfo, as far as hal looks.
_AVX512 = "avx2 avx512f avx512_vnni"
CPU_FLAGS = {
    "avx2": "avx2",
    "avx-vnni": "avx2 avx_vnni",
    "avx512": _AVX512,
    "avx512-bf16": f"{_AVX512} avx512_bf16 avx512vbmi",
    "amx": f"{_AVX512} avx_vnni avx512_bf16 avx512vbmi amx_tile amx_bf16 amx_int8",
    "arm-bf16": "asimd asimddp sve bf16 i8mm",
    "arm-neon": "asimd asimddp",
}
ASKED_FOR = """v100-16gb v100-32gb a100-40gb a100-80gb a6000 l4 l40s rtx3090 rtx4090 rtx5090 h100
h200 gh200 b200 gb10 mi210 mi250x mi300x mi300a mi325x mi355x rx7900xtx rx9070xt w7900 strixhalo
b580 gaudi2 gaudi3 tpu-v5e tpu-v6e inferentia2 avx2 avx512 avx512-bf16 amx arm-bf16""".split()


def faults(profile: Profile) -> Iterator[str]:
    """What cannot be true of a real device."""
    peaks = profile.peak_flops
    if not 8 <= profile.memory_bytes / GIB <= 1024:
        yield "memory"
    if not 40e9 <= profile.bandwidth_bytes_per_s <= 10e12:
        yield "bandwidth"
    # Reading all memory once takes between a hundredth of a second and some seconds.
    if not 0.005 <= profile.memory_bytes / profile.bandwidth_bytes_per_s <= 2:
        yield "memory against bandwidth"
    if not peaks or not all(0.5 * TERA <= peak <= 6000 * TERA for peak in peaks.values()):
        yield "peaks"
    yield from _ratio_faults(profile)
    if profile.is_accelerator and not 1 <= profile.compute_units <= 512:
        yield "compute units"
    if profile.simd_width not in (4, 8, 16, 32, 64, 128):
        yield "simd width"
    for link in profile.links:
        if not 10e9 <= link.bytes_per_s <= 1e12 or not 2 <= link.max_devices <= 256:
            yield f"link {link.kind}"
        if link.bytes_per_s >= profile.bandwidth_bytes_per_s:
            yield f"link {link.kind} is faster than memory"


def _ratio_faults(profile: Profile) -> Iterator[str]:
    """A figure with sparsity, or of another accumulation, is off by two against its neighbours."""
    peaks = profile.peak_flops
    half = peaks.get(DType.BFLOAT16) or peaks.get(DType.FLOAT16)
    both = [peaks[d] for d in (DType.FLOAT16, DType.BFLOAT16) if d in peaks]
    if len(set(both)) > 1:
        yield "float16 and bfloat16 differ"
    for narrow in (DType.FLOAT8_E4M3FN, DType.FLOAT8_E4M3FNUZ, DType.INT8):
        if half and narrow in peaks and not 0.99 <= peaks[narrow] / half <= 4.1:
            yield f"{narrow} against 16 bit"
    if half and DType.FLOAT32 in peaks and not 1.9 <= half / peaks[DType.FLOAT32] <= 31:
        yield "16 bit against float32"
    by_feature = (
        (Feature.FP16_MMA, DType.FLOAT16),
        (Feature.BF16_MMA, DType.BFLOAT16),
        (Feature.INT8_MMA, DType.INT8),
        (Feature.FP8_OCP_MMA, DType.FLOAT8_E4M3FN),
        (Feature.FP8_FNUZ_MMA, DType.FLOAT8_E4M3FNUZ),
    )
    for feature, dtype in by_feature:
        if (feature in profile.features) != (dtype in peaks):
            yield f"{feature} and a peak of {dtype}"
    # Work a byte: from laptops to servers a device multiplies 10 to 1000 times a byte it reads.
    if half and not 10 <= half / profile.bandwidth_bytes_per_s <= 1000:
        yield "16 bit against bandwidth"


def source_faults(row: dict[str, Any]) -> Iterator[str]:
    """Numbers without a source, and sources without a number."""
    numbers = {*NUMBERS, *(k for k in ("shared_memory_kib", "links") if k in row)}
    sources = row["sources"]
    yield from (f"no source for {name}" for name in sorted(numbers - sources.keys()))
    yield from (f"source for {name}, which is not there" for name in sources.keys() - numbers)
    yield from (f"source of {name} is empty" for name, text in sources.items() if len(text) < 5)


def test_every_device_that_users_ask_for_is_there() -> None:
    assert set(ASKED_FOR) <= PROFILES.keys()
    assert len(PROFILES) >= 35


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_a_profile_is_plausible(profile: Profile) -> None:
    assert list(faults(profile)) == []
    assert profile.title and profile.vendor and profile.arch
    assert profile.name == profile.name.lower() and " " not in profile.name
    assert profile.capabilities().memory.available_bytes == profile.memory_bytes


@pytest.mark.parametrize("name", RAW)
def test_every_number_has_a_source(name: str) -> None:
    assert list(source_faults(RAW[name])) == []


def planted(profile: Profile, **changes: Any) -> list[str]:
    return list(faults(replace(profile, **changes)))


def test_planted_nonsense_is_caught() -> None:
    h100 = PROFILES["h100"]
    peaks = dict(h100.peak_flops)
    sparse = {**peaks, DType.BFLOAT16: 2 * peaks[DType.BFLOAT16]}
    assert planted(h100) == []
    assert planted(h100, memory_bytes=80 * 10**12) == ["memory", "memory against bandwidth"]
    assert "bandwidth" in planted(h100, bandwidth_bytes_per_s=3.35e9)
    assert "float16 and bfloat16 differ" in planted(h100, peak_flops=sparse)
    assert "peaks" in planted(h100, peak_flops={})
    giant = {**peaks, DType.INT8: 5 * peaks[DType.INT8]}
    assert "int8 against 16 bit" in planted(h100, peak_flops=giant)
    assert "fp8_ocp_mma and a peak of float8_e4m3fn" in planted(h100, features=frozenset())
    assert "simd width" in planted(h100, simd_width=33)
    assert "compute units" in planted(h100, compute_units=0)
    fast = Link(kind="magic", bytes_per_s=9e12, max_devices=1)
    assert planted(h100, links=(fast,)) == ["link magic", "link magic is faster than memory"]


def test_planted_missing_sources_are_caught() -> None:
    row = RAW["h100"]
    sources = {k: v for k, v in row["sources"].items() if k != "bandwidth_gb_s"}
    assert list(source_faults({**row, "sources": sources})) == ["no source for bandwidth_gb_s"]
    extra = {**row["sources"], "price": "a shop"}
    assert list(source_faults({**row, "sources": extra})) == [
        "source for price, which is not there"
    ]


@pytest.mark.parametrize(
    "profile", [p for p in PROFILES.values() if p.device == "cuda"], ids=lambda p: p.name
)
def test_features_are_what_the_compute_capability_brings(profile: Profile) -> None:
    digits = profile.arch.removeprefix("sm_")
    assert profile.features == cuda.features(int(digits[:-1]), int(digits[-1]))
    assert (profile.vendor, profile.simd_width) == ("nvidia", 32)


@pytest.mark.parametrize(
    "profile", [p for p in PROFILES.values() if p.device == "rocm"], ids=lambda p: p.name
)
def test_features_are_what_the_gfx_arch_brings(profile: Profile) -> None:
    assert profile.features == rocm.features(profile.arch)
    assert (profile.vendor, profile.simd_width) == ("amd", rocm.wave_size(profile.arch))


@pytest.mark.parametrize(
    "profile", [p for p in PROFILES.values() if p.device == "cpu"], ids=lambda p: p.name
)
def test_cpus_are_what_the_probe_would_say(profile: Profile) -> None:
    flags = frozenset(CPU_FLAGS[profile.name].split())
    cpu = Processor(vendor=profile.vendor, name="", flags=flags)
    assert profile.arch == processor_arch(cpu)
    assert profile.features == processor_features(flags)
    assert profile.simd_width == float32_lanes(flags)
    assert profile.memory_kind is MemoryKind.HOST


def test_every_profile_has_a_kind_that_hal_knows_or_none() -> None:
    assert {p.device for p in PROFILES.values()} == {"cuda", "rocm", "cpu", ""}
    kinds = {p.name: p.memory_kind for p in PROFILES.values()}
    unified = {name for name, kind in kinds.items() if kind is MemoryKind.UNIFIED}
    assert unified == {"gb10", "mi300a", "strixhalo"}


def test_the_page_lists_every_profile() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "plan.md"
    text = page.read_text(encoding="utf-8")
    missing = [name for p in PROFILES.values() for name in (p.name, *p.aliases) if name not in text]
    assert missing == []


def test_names_and_aliases_are_unique() -> None:
    names = [name for p in PROFILES.values() for name in (p.name, *p.aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h200", "h200"),
        (" MI300X ", "mi300x"),
        ("a100", "a100-80gb"),
        ("3090", "rtx3090"),
        ("gfx942", "mi300x"),
        ("sm_90", "h100"),
        ("x86_amx_bf16", "amx"),
    ],
)
def test_find_by_name_alias_or_arch(text: str, name: str) -> None:
    assert find_profile(text).name == name


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean h100.* known: v100-16gb, .*archs: sm_70"):
        find_profile("h1000")
    with pytest.raises(ConfigError, match="'banana'; known"):
        find_profile("banana")


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [("h200", "h200", 1), ("2xMI300X", "mi300x", 2), ("8 x h100", "h100", 8), ("1xl4", "l4", 1)],
)
def test_targets(text: str, name: str, count: int) -> None:
    target = parse_target(text)
    assert (target.name, target.count) == (name, count)
    assert target.is_counted == (text != "h200")


@pytest.mark.parametrize("text", ["0xh100", "1000xh100", "-1xh100", f"{10**30}xh100"])
def test_bad_counts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="count must be from 1 to 256"):
        parse_target(text)


@pytest.mark.parametrize("text", ["", "  ", "2x", "2x "])
def test_a_count_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="names no device"):
        parse_target(text)
