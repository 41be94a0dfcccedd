"""HAL_<FLAG> names are mechanical, misspelt ones are noticed."""

from __future__ import annotations

import pytest

from hal.env import flag_value, parse_switch, unknown_names, variable_of


def test_names() -> None:
    assert variable_of("max-model-len") == "HAL_MAX_MODEL_LEN"
    environ = {"HAL_MAX_MODEL_LEN": "5", "max-model-len": "6"}
    assert flag_value("max-model-len", environ) == "5"
    assert flag_value("port", environ) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("True", True), (" on ", True), ("0", False), ("no", False), ("", False)],
)
def test_switches(text: str, value: bool) -> None:
    assert parse_switch(text) is value


def test_a_switch_that_is_neither() -> None:
    with pytest.raises(ValueError, match="maybe"):
        parse_switch("maybe")


def test_unknown_names() -> None:
    environ = {"HAL_PROT": "1", "HAL_PORT": "2", "HAL_TRACEBACK": "1", "HALO": "1", "PATH": "x"}
    assert unknown_names(["port"], environ) == ["HAL_PROT"]
