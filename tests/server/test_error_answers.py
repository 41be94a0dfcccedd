"""What a client gets for each error is what docs/errors.md says."""

from __future__ import annotations

import pytest

from hal.error_codes import ERROR_CODES, ErrorCode
from hal.errors import NOT_FINITE, TOO_LATE, DeviceOutOfMemory, EngineError, GrammarError
from hal.server.errors import api_error, request_lost

ENDED_BY_THE_ENGINE = (
    DeviceOutOfMemory.code,
    EngineError.code,
    GrammarError.code,
    NOT_FINITE,
    TOO_LATE,
)


@pytest.mark.parametrize("entry", ERROR_CODES, ids=lambda entry: entry.code)
def test_status_and_code_are_the_documented_ones(entry: ErrorCode) -> None:
    if entry.code in ENDED_BY_THE_ENGINE:
        answer = request_lost(entry.code, "why")
    else:
        answer = api_error(entry.error("why", code=entry.code))
    if entry.http is None:
        assert (answer.status, answer.code) == (500, "internal_error")
    else:
        assert (answer.status, answer.code) == (entry.http.status, entry.http.code)


def test_a_lost_request_is_told_what_a_client_may_know() -> None:
    full = request_lost(DeviceOutOfMemory.code, "8 B wanted, 0 B free")
    assert full.message == "HAL-E310: 8 B wanted, 0 B free"
    bug = request_lost(EngineError.code, "step 1 failed: OSError: /home/me/secret")
    assert "secret" not in bug.message and "log" in bug.message
    assert request_lost(None, None).message == bug.message
