"""Who keeps what: every part once, nobody more than rank 0, copies of key and value heads even."""

from __future__ import annotations

import pytest

from hal.share import Cuttable, Share


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("total", [8, 151, 2048])
def test_a_size_is_cut_without_gap_or_overlap(total: int, size: int) -> None:
    parts = [Share(rank, size).of(total) for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(total))
    lengths = [len(part) for part in parts]
    assert max(lengths) == lengths[0] and max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "size"), [(8, 2, 4), (8, 4, 2), (6, 3, 6)])
def test_each_rank_has_the_key_heads_that_its_query_heads_read(
    num_heads: int, num_kv_heads: int, size: int
) -> None:
    group = num_heads // num_kv_heads
    for rank in range(size):
        read = {head // group for head in Share(rank, size).of(num_heads)}
        assert read == set(Share(rank, size).of_kv_heads(num_kv_heads))


def test_legal_sizes_and_the_reason_of_the_others() -> None:
    model = Cuttable(num_heads=12, num_kv_heads=4, widths=(96,))
    assert model.legal_sizes(16) == (1, 2, 4, 12)
    assert model.why_not(5) == "5 does not divide 12 attention heads"
    assert "4 key/value heads can neither be divided nor copied" in str(model.why_not(3))
    assert Cuttable(num_heads=4, num_kv_heads=4, widths=(6,)).why_not(4) == (
        "4 does not divide the MLP's width 6"
    )
