"""What each key has used: requests and tokens of the last minute, and what runs now."""

from __future__ import annotations

import time
from collections.abc import Callable

from hal.server.errors import ApiError, jittered_s
from hal.server.keys import KeyLimits

_MINUTE_S = 60.0
_CONCURRENCY_RETRY_S = 1.0


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
    """

    def __init__(self, quota: Quota, reserved_in: Bucket | None, num_reserved: int) -> None:
        self._quota = quota
        self._reserved_in = reserved_in
        self._num_reserved = num_reserved
        self._is_open = True

    def settle(self, num_tokens: int) -> None:
        """Only the first call counts."""
        if not self._is_open:
            return
        self._is_open = False
        self._quota.end(self._reserved_in, num_tokens - self._num_reserved)


class Quota:
    """One key's use against its limits. Each refusal is an ApiError 429 with Retry-After."""

    def __init__(self, limits: KeyLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_running = 0
        self._clock = clock
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
        if self._tokens:
            _check_tokens(self._tokens, num_tokens, now)
            self._tokens.take(num_tokens)
        if self._requests:
            self._requests.take(1)
        self.num_running += 1
        return Lease(self, self._tokens, num_tokens)

    def end(self, reserved_in: Bucket | None, num_more: int) -> None:
        """A request ended that used so many tokens more (less, if negative) than were reserved."""
        self.num_running -= 1
        if reserved_in is not None:
            reserved_in.level(self._clock())
            reserved_in.take(num_more)

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
