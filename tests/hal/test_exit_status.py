"""How children end: every code has words, also a signal without a name."""

from __future__ import annotations

import pytest

from hal.exit_status import exit_words, last_words


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-6, "SIGABRT"), (-40, "signal 40")]
)
def test_every_code_has_words(code: int, words: str) -> None:
    assert exit_words(code) == words


def test_the_last_line_is_the_cause() -> None:
    assert last_words("a\n  the cause \n\n") == "the cause"
    assert last_words(" \n") == ""
