"""Quotas of keys on a clock of the test's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.server.errors import ApiError
from hal.server.keys import KeyLimits
from hal.server.quotas import Quota


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(quota: Quota, num_tokens: int = 1) -> ApiError:
    with pytest.raises(ApiError) as caught:
        quota.admit(num_tokens)
    assert caught.value.status == 429
    return caught.value


def test_requests_come_back_over_the_minute() -> None:
    clock = Clock()
    quota = Quota(KeyLimits(requests_per_minute=6), clock)
    for _ in range(6):
        quota.admit(10).settle(10)
    error = refused(quota)
    assert error.code == "rate_limit_exceeded"
    assert 10 <= int(error.headers["retry-after"]) <= 13  # a sixth of a minute, and jitter
    clock.now += 10.001
    quota.admit(10).settle(10)
    assert refused(quota).code == "rate_limit_exceeded"
    clock.now += 3600
    assert [quota.admit(1) for _ in range(6)]
    refused(quota)


def test_what_was_reserved_and_not_used_comes_back() -> None:
    quota = Quota(KeyLimits(tokens_per_minute=100), Clock())
    lease = quota.admit(90)
    error = refused(quota, 20)
    assert error.code == "tokens_exceeded"
    assert "20 tokens" in error.message
    assert "10 of this key's 100" in error.message
    assert 6 <= int(error.headers["retry-after"]) <= 8
    lease.settle(30)
    lease.settle(0)  # only the first counts
    quota.admit(70)
    refused(quota, 1)


def test_a_request_that_can_never_run_is_not_to_be_tried_again() -> None:
    error = refused(Quota(KeyLimits(tokens_per_minute=100), Clock()), 101)
    assert error.headers == {"x-should-retry": "false"}
    assert "101" in error.message
    assert "100" in error.message


def test_concurrency() -> None:
    quota = Quota(KeyLimits(max_concurrency=2), Clock())
    first, _ = quota.admit(1), quota.admit(1)
    error = refused(quota)
    assert (error.code, quota.num_running) == ("concurrency_exceeded", 2)
    assert int(error.headers["retry-after"]) in (1, 2)
    first.settle(1)
    quota.admit(1)


def test_a_refusal_takes_nothing() -> None:
    quota = Quota(KeyLimits(requests_per_minute=2, tokens_per_minute=10), Clock())
    quota.admit(10)
    for _ in range(5):
        assert refused(quota, 5).code == "tokens_exceeded"
    assert quota.headers()["x-ratelimit-remaining-requests"] == "1"
    assert quota.num_running == 1


def test_new_limits_hold_at_once_and_what_runs_is_still_counted() -> None:
    quota = Quota(KeyLimits(), Clock())
    lease = quota.admit(10**9)
    assert quota.headers() == {}
    quota.set_limits(KeyLimits(max_concurrency=1))
    assert refused(quota).code == "concurrency_exceeded"
    lease.settle(5)
    quota.admit(1)


def test_a_limit_that_stays_keeps_its_count_and_a_lease_its_bucket() -> None:
    quota = Quota(KeyLimits(tokens_per_minute=100), Clock())
    quota.admit(90)
    quota.set_limits(KeyLimits(tokens_per_minute=100, max_concurrency=9))
    refused(quota, 20)
    free = Quota(KeyLimits(), Clock())
    old = free.admit(1000)
    free.set_limits(KeyLimits(tokens_per_minute=100))
    free.admit(90)
    old.settle(0)  # nothing of it was taken from the new limit
    assert "10 of this key's 100" in refused(free, 20).message


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1), st.floats(0, 90)), max_size=60),
)
def test_no_window_sees_more_than_two_minutes_worth(
    limit: int, steps: list[tuple[int, float, float]]
) -> None:
    """Tokens used in any minute: what the bucket held, and what came while it passed."""
    clock = Clock()
    quota = Quota(KeyLimits(tokens_per_minute=limit), clock)
    used: list[tuple[float, int]] = []
    for num_tokens, share, pause_s in steps:
        clock.now += pause_s
        try:
            lease = quota.admit(num_tokens)
        except ApiError as error:
            assert num_tokens > limit or int(error.headers["retry-after"]) >= 1
            continue
        spent = math.floor(share * num_tokens)
        lease.settle(spent)
        used.append((clock.now, spent))
    for start, _ in used:
        assert sum(n for at, n in used if start <= at <= start + 60) <= 2 * limit + 1e-6
    assert quota.num_running == 0


DAY_S = 86_400


def test_the_budget_of_a_day() -> None:
    clock, calendar = Clock(), Clock()
    calendar.now = 20_000 * DAY_S + DAY_S - 5400  # half past ten in the evening
    quota = Quota(KeyLimits(tokens_per_day=100), clock, calendar)
    late = quota.admit(60)
    quota.admit(40).settle(10)
    assert quota.use().tokens_today == 70
    error = refused(quota, 31)
    assert (error.code, error.headers) == ("insufficient_quota", {"x-should-retry": "false"})
    assert "30 of this key's 100 per day are left" in error.message
    assert "1.5 h" in error.message
    calendar.now += 5400
    quota.admit(100)
    late.settle(0)  # what it gives back was of yesterday
    assert refused(quota, 1).code == "insufficient_quota"


def test_another_server_goes_on_where_this_one_ended() -> None:
    clock, calendar = Clock(), Clock()
    limits = KeyLimits(requests_per_minute=60, tokens_per_minute=600, tokens_per_day=10_000)
    first = Quota(limits, clock, calendar)
    first.admit(500)  # never settled: a killed server cannot know what came of it
    use = first.use()
    calendar.now += 5
    second = Quota(limits, clock, calendar)
    second.resume(use)
    assert second.use().tokens_today == 500
    assert second.headers()["x-ratelimit-remaining-requests"] == "60"
    assert second.headers()["x-ratelimit-remaining-tokens"] == "150"  # 100 left, 10 more a second
    calendar.now += DAY_S
    third = Quota(limits, clock, calendar)
    third.resume(use)
    assert third.use().tokens_today == 0
    assert third.headers()["x-ratelimit-remaining-tokens"] == "600"
