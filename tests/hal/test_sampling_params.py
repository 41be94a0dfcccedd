"""Every wrong setting names its field."""

from __future__ import annotations

from typing import Any

import pytest

from hal.errors import RequestError
from hal.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("temperature", "1"),
        ("top_p", 1.5),
        ("top_k", -2),
        ("min_p", float("inf")),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0.0),
        ("logit_bias", {5: 101.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("max_tokens", 0),
        ("min_tokens", 17),
        ("logprobs", 21),
        ("seed", 2**63),
    ],
)
def test_out_of_range_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert str(caught.value.param).startswith(field)


def test_the_limits_themselves_are_fine() -> None:
    params = SamplingParams(
        n=128, temperature=2.0, top_p=0.0, top_k=-1, min_p=1.0, logprobs=20, seed=-(2**63)
    )
    assert not params.is_greedy and not params.has_penalties
    assert SamplingParams(stop="x").stop_strings == ("x",)
    assert SamplingParams(repetition_penalty=1.1).has_penalties
    assert SamplingParams(temperature=0.0).is_greedy
