"""What each key has used: requests and tokens of the last minute, tokens of the day, what runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hal.server.errors import ApiError, jittered_s
from hal.server.keys import KeyLimits

_MINUTE_S = 60.0
_DAY_S = 86_400.0
_CONCURRENCY_RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """What a restart must not forget.

    at: seconds since 1970
    tokens_today: of the UTC day that `at` is in, running requests as if they used all they may
    requests_level, tokens_level: what the minute's buckets hold; None without such a limit
    """

    at: float
    tokens_today: int
    requests_level: float | None = None
    tokens_level: float | None = None


class Bucket:
    """Holds at most a minute's worth and refills evenly. Settling may leave a debt."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._filled_at = now

    def level(self, now: float) -> float:
        added = (now - self._filled_at) * self.per_minute / _MINUTE_S
        self._level = min(self._level + added, float(self.per_minute))
        self._filled_at = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until that much is there; 0 if it is."""
        return max(amount - self.level(now), 0.0) * _MINUTE_S / self.per_minute

    def take(self, amount: float) -> None:
        """A negative amount is given back."""
        self._level = min(self._level - amount, float(self.per_minute))


class Lease:
    """One admitted request; settle it once it has ended, with what it really used.

    reserved_in: what its tokens were taken from, which new limits may have replaced meanwhile
    day: that its tokens count for, also where it ends in the next
    """

    def __init__(
        self, quota: Quota, reserved_in: Bucket | None, day: int, num_reserved: int
    ) -> None:
        self._quota = quota
        self._reserved_in = reserved_in
        self._day = day
        self._num_reserved = num_reserved
        self._is_open = True

    def settle(self, num_tokens: int) -> None:
        """Only the first call counts."""
        if not self._is_open:
            return
        self._is_open = False
        self._quota.end(self._reserved_in, self._day, num_tokens - self._num_reserved)


class Quota:
    """One key's use against its limits. Each refusal is an ApiError 429 with Retry-After.

    clock, calendar: seconds that never jump, for rates; seconds since 1970, for days
    """

    def __init__(
        self,
        limits: KeyLimits,
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], float] = time.time,
    ) -> None:
        self.num_running = 0
        self._clock = clock
        self._calendar = calendar
        self._day = self._today()
        self._tokens_today = 0
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.set_limits(limits)

    def set_limits(self, limits: KeyLimits) -> None:
        """From now on; a rate that changes begins with a full minute, and what runs goes on."""
        self.limits = limits
        now = self._clock()
        self._requests = _bucket(self._requests, limits.requests_per_minute, now)
        self._tokens = _bucket(self._tokens, limits.tokens_per_minute, now)

    def admit(self, num_tokens: int) -> Lease:
        """num_tokens: prompt and the longest answer, reserved until the lease is settled."""
        now = self._clock()
        most = self.limits.max_concurrency
        if most is not None and self.num_running >= most:
            raise _refusal(
                "concurrency_exceeded",
                f"{self.num_running} requests of this key are running; its limit is {most}",
                _CONCURRENCY_RETRY_S,
            )
        if self._requests and (wait_s := self._requests.wait_s(1, now)):
            limit = self._requests.per_minute
            message = f"this key's limit of {limit} requests per minute is reached"
            raise _refusal("rate_limit_exceeded", message, wait_s)
        self._check_day(num_tokens)
        if self._tokens:
            _check_tokens(self._tokens, num_tokens, now)
            self._tokens.take(num_tokens)
        if self._requests:
            self._requests.take(1)
        self._tokens_today += num_tokens
        self.num_running += 1
        return Lease(self, self._tokens, self._day, num_tokens)

    def end(self, reserved_in: Bucket | None, day: int, num_more: int) -> None:
        """A request ended that used so many tokens more (less, if negative) than were reserved."""
        self.num_running -= 1
        self._turn_day()
        if day == self._day:
            self._tokens_today += num_more
        if reserved_in is not None:
            reserved_in.level(self._clock())
            reserved_in.take(num_more)

    def use(self) -> KeyUse:
        now = self._clock()
        self._turn_day()
        return KeyUse(
            at=self._calendar(),
            tokens_today=self._tokens_today,
            requests_level=None if self._requests is None else self._requests.level(now),
            tokens_level=None if self._tokens is None else self._tokens.level(now),
        )

    def resume(self, use: KeyUse) -> None:
        """Go on from what an earlier server has counted; buckets have filled since."""
        self._turn_day()
        if int(use.at // _DAY_S) == self._day:
            self._tokens_today = use.tokens_today
        since_s = max(self._calendar() - use.at, 0.0)
        for bucket, level in (
            (self._requests, use.requests_level),
            (self._tokens, use.tokens_level),
        ):
            if bucket is not None and level is not None:
                missing = bucket.per_minute - level - since_s * bucket.per_minute / _MINUTE_S
                bucket.take(max(missing, 0.0))

    def _today(self) -> int:
        return int(self._calendar() // _DAY_S)

    def _turn_day(self) -> None:
        today = self._today()
        if today != self._day:
            self._day, self._tokens_today = today, 0

    def _check_day(self, num_tokens: int) -> None:
        """Raises ApiError, which clients should not try again: the day may be long."""
        self._turn_day()
        limit = self.limits.tokens_per_day
        if limit is None or self._tokens_today + num_tokens <= limit:
            return
        left = max(limit - self._tokens_today, 0)
        hours = (_DAY_S - self._calendar() % _DAY_S) / 3600
        raise ApiError(
            429,
            "insufficient_quota",
            f"prompt and max_tokens are {num_tokens} tokens; {left} of this key's {limit} per day "
            f"are left, the next day (UTC) begins in {hours:.1f} h",
            "insufficient_quota",
            headers={"x-should-retry": "false"},
        )

    def headers(self) -> dict[str, str]:
        """x-ratelimit-* as OpenAI has them, for the limits that are set."""
        now = self._clock()
        found = {"requests": self._requests, "tokens": self._tokens}
        headers: dict[str, str] = {}
        for what, bucket in found.items():
            if bucket is not None:
                remaining = max(int(bucket.level(now)), 0)
                full_s = bucket.wait_s(bucket.per_minute, now)
                headers[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{what}"] = str(remaining)
                headers[f"x-ratelimit-reset-{what}"] = f"{full_s:.3f}s"
        return headers


def _bucket(old: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    return old if old is not None and old.per_minute == per_minute else Bucket(per_minute, now)


def _check_tokens(bucket: Bucket, num_tokens: int, now: float) -> None:
    limit = bucket.per_minute
    if num_tokens > limit:
        message = (
            f"prompt and max_tokens are {num_tokens} tokens; this key may use {limit} per minute, "
            "so it can never run: lower max_tokens or shorten the prompt"
        )
        headers = {"x-should-retry": "false"}
        raise ApiError(429, "tokens_exceeded", message, "rate_limit_error", headers=headers)
    if wait_s := bucket.wait_s(num_tokens, now):
        message = (
            f"prompt and max_tokens are {num_tokens} tokens; {max(int(bucket.level(now)), 0)} of "
            f"this key's {limit} per minute are left"
        )
        raise _refusal("tokens_exceeded", message, wait_s)


def _refusal(code: str, message: str, wait_s: float) -> ApiError:
    retry_s = jittered_s(wait_s)
    headers = {"retry-after": str(retry_s)}
    text = f"{message}; try again in {retry_s} s"
    return ApiError(429, code, text, "rate_limit_error", headers=headers)
