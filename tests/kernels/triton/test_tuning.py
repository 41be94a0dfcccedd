"""Tables of launch options: every row is of use, and says where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from hal.kernels.triton.tuning import TABLES, UNTUNED, find_tuning, launch_options, table_of
from hal.profiles import all_profiles, find_profile

ROOT = Path(__file__).parents[3]
ROWS = [
    pytest.param(vendor, row, id=f"{vendor}-{op}-{shape_class}-{arch}")
    for vendor in TABLES
    for op, classes in table_of(vendor).items()
    for shape_class, archs in classes.items()
    for arch, row in archs.items()
]


@pytest.mark.parametrize(("vendor", "row"), ROWS)
def test_a_row_is_untuned_or_names_its_measurement(vendor: str, row: object) -> None:
    source = getattr(row, "source")  # noqa: B009
    assert source == UNTUNED or (ROOT / "benchmarks/results" / source).is_file()


@pytest.mark.parametrize("vendor", TABLES)
def test_every_shape_class_has_a_row_for_any_arch(vendor: str) -> None:
    for classes in table_of(vendor).values():
        assert all("default" in archs for archs in classes.values())


@pytest.mark.parametrize("vendor", TABLES)
def test_archs_of_rows_exist(vendor: str) -> None:
    known = [p.arch for p in all_profiles().values() if p.vendor == vendor]
    for classes in table_of(vendor).values():
        for arch in {a for archs in classes.values() for a in archs} - {"default"}:
            assert any(name.startswith(arch) for name in known), arch


def test_vendors_have_the_same_ops() -> None:
    tables = [
        {(op, c) for op, classes in table_of(vendor).items() for c in classes} for vendor in TABLES
    ]
    assert all(table == tables[0] for table in tables)


def test_threads_become_warps_of_the_devices_width() -> None:
    wide, narrow = (find_profile(name).capabilities() for name in ("mi300x", "h100"))
    assert (
        launch_options(wide, "tokens")["num_warps"] * 2
        == launch_options(narrow, "tokens")["num_warps"]
    )


def test_the_longest_prefix_of_an_arch_wins() -> None:
    caps = find_profile("mi300x").capabilities()
    assert find_tuning(caps, "tokens") is table_of("amd")["tokens"]["any"]["default"]
