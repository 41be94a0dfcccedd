"""Ranks: which numbers are legal, and what each rank holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from published_configs import PUBLISHED

import hal
from hal.engine.config_fields import ConfigFields
from hal.engine.layers.parameters import Parallel
from hal.errors import ConfigError
from hal.planning.architectures import read_shape
from hal.planning.parallel import COLLECTIVE_BYTES, legal_tp
from hal.planning.shape import Role, Weight

Published = Callable[..., str]


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("llama-3-8b", (1, 2, 4, 8, 16, 32)),
        ("llama-2-70b", (1, 2, 4, 8, 16, 32, 64)),
        ("falcon-180b", (1, 2, 4, 8)),
        ("falcon-7b", (1,)),  # 71 heads, and 71 does not divide the MLP
        ("qwen2-7b", (1, 2, 4)),  # 7 does not go into 4 key and value heads, 28 not into 18944
        ("gpt2", (1, 2, 3, 4, 6, 12)),
        ("phi-2", (1, 2, 4, 8, 16, 32)),
    ],
)
def test_legal_numbers_divide_heads_and_widths(name: str, legal: tuple[int, ...]) -> None:
    assert legal_tp(read_shape(ConfigFields(PUBLISHED[name].config, name))) == legal


def test_an_illegal_number_names_the_legal_ones(published: Published) -> None:
    with pytest.raises(ConfigError, match="3 does not divide 32 attention heads. Legal --tp: 1, 2"):
        hal.plan(published("llama-3-8b"), device="3xh100")


def test_a_rank_keeps_whole_key_value_heads() -> None:
    kv = Weight(
        name="kv", rows=8 * 128, columns=64, role=Role.LINEAR, parallel=Parallel.COLUMN, heads=8
    )
    assert [kv.rank_rows(tp) // 128 for tp in (1, 2, 4, 8, 16, 32)] == [8, 4, 2, 1, 1, 1]


def test_cuts_by_kind() -> None:
    def cut(parallel: Parallel) -> tuple[int, int]:
        weight = Weight(name="w", rows=100, columns=60, role=Role.LINEAR, parallel=parallel)
        return weight.rank_rows(8), weight.rank_columns(8)

    assert cut(Parallel.COLUMN) == cut(Parallel.VOCAB) == (13, 60)
    assert cut(Parallel.ROW) == (100, 8)
    assert cut(Parallel.REPLICATED) == (100, 60)


def test_ranks_share_weights_and_cache(published: Published) -> None:
    model = published("llama-3-70b")
    one, four = hal.plan(model, device="mi355x"), hal.plan(model, device="4xmi355x")
    assert four.inputs.weights_bytes == pytest.approx(one.inputs.weights_bytes / 4, rel=0.001)
    assert four.inputs.kv_bytes_per_block * 4 == one.inputs.kv_bytes_per_block
    assert one.inputs.communicator_bytes == 0
    assert four.inputs.communicator_bytes > COLLECTIVE_BYTES
    sixteen = hal.plan(model, device="16xmi355x")  # 8 key and value heads: two ranks hold a copy
    assert sixteen.inputs.kv_bytes_per_block * 8 == one.inputs.kv_bytes_per_block


def test_a_latent_cache_is_whole_on_every_rank(published: Published) -> None:
    model = published("deepseek-v2-lite")
    one, four = hal.plan(model, device="h100"), hal.plan(model, device="4xh100")
    assert four.inputs.kv_bytes_per_block == one.inputs.kv_bytes_per_block


def test_notes_on_links(published: Published) -> None:
    model = published("llama-3-8b")
    assert any("no link faster than PCI Express" in n for n in hal.plan(model, device="2xl4").notes)
    assert not any("PCI Express" in n for n in hal.plan(model, device="2xh100").notes)
    assert any("no link joins 16 of h100" in n for n in hal.plan(model, device="16xh100").notes)
    assert hal.plan(model, device="2xh100").parallel.link == "nvlink4"
    # Four have no bridge between them.
    assert hal.plan(model, device="4xrtx3090").parallel.link == "pcie4"
    assert hal.plan(model, device="2xrtx3090").parallel.link == "nvlink3"


def test_devices_that_this_version_has_not_are_planned_by_config(published: Published) -> None:
    report = hal.plan(published("llama-3-8b"), device="gaudi3")
    assert report.basis == "config" and report.fits
    assert "not supported yet: Intel Gaudi 3; this version has no such device" in report.notes
    half = hal.plan(published("llama-2-7b"), device="tpu-v6e")
    assert any("no rates: tpu-v6e multiplies no float16" in note for note in half.notes)


def test_tp_and_counts_agree(published: Published) -> None:
    model = published("llama-3-8b")
    assert hal.plan(model, device="h100", tp=2).inputs == hal.plan(model, device="2xh100").inputs
    part = hal.plan(model, device="4xh100", tp=2)
    assert "2 of 4 devices are used; start one server for each 2" in part.notes
    with pytest.raises(ConfigError, match="--tp 4 needs 4 devices, but --device 2xh100 names 2"):
        hal.plan(model, device="2xh100", tp=4)
    with pytest.raises(ConfigError, match="leave the count out, and .* add --tp 2"):
        hal.plan(model, device="2xamx")
