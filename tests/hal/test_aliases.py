"""vLLM's names: mapped, accepted as no-ops, or refused with a reason; never swallowed."""

from __future__ import annotations

import pytest

from hal.aliases import ALIASES, apply_aliases
from hal.config import EngineConfig
from hal.errors import ConfigError, UnsupportedError


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"gpu_memory_utilization": 0.5}, {"memory": 0.5}),
        ({"enable_prefix_caching": False}, {"prefix_caching": False}),
        ({"enable_chunked_prefill": True}, {"chunked_prefill": True}),
        ({"model": "m", "max_num_seqs": 3}, {"model": "m", "max_num_seqs": 3}),
        ({"swap_space": 4}, {"swap_space": 4}),
        ({"tensor_parallel_size": 2}, {"tensor_parallel_size": 2}),
        ({"pipeline_parallel_size": 1}, {}),
        ({"trust_remote_code": False}, {}),
        ({"quantization": None}, {}),
        ({"quantization": "int8"}, {"quantization": "int8"}),
        ({"tokenizer": None, "revision": None}, {}),
        ({"seed": None, "max_model_len": None}, {}),
        ({"served_model_name": "x", "disable_log_stats": True}, {}),
        ({"memory": 0.5, "gpu_memory_utilization": 0.5}, {"memory": 0.5}),
    ],
)
def test_accepted(given: dict[str, object], wanted: dict[str, object]) -> None:
    assert apply_aliases(given) == wanted


@pytest.mark.parametrize(
    "given",
    [
        {"trust_remote_code": True},
        {"pipeline_parallel_size": True},
        {"pipeline_parallel_size": 4},
        {"cpu_offload_gb": 1.5},
        {"enable_lora": True},
        {"speculative_config": {"model": "x"}},
        {"load_format": "pt"},
        {"tokenizer": "other"},
        {"revision": "main"},
        {"num_gpu_blocks_override": 7},
    ],
)
def test_refused_with_value_and_reason(given: dict[str, object]) -> None:
    ((name, value),) = given.items()
    with pytest.raises(UnsupportedError) as caught:
        apply_aliases(given)
    assert f"{name}={value!r}; " in caught.value.message
    assert caught.value.exit_code == 2


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean max_model_len"):
        apply_aliases({"max_modl_len": 5})
    with pytest.raises(ConfigError, match="did you mean gpu_memory_utilization"):
        apply_aliases({"gpu_memory_utilisation": 0.5})
    with pytest.raises(ConfigError, match="known settings: .*block_size"):
        apply_aliases({"zzz": 1})


def test_two_names_of_one_setting() -> None:
    with pytest.raises(ConfigError, match=r"memory=0\.9 and gpu_memory_utilization=0\.5"):
        apply_aliases({"memory": 0.9, "gpu_memory_utilization": 0.5})


def test_the_table_is_sound() -> None:
    names = [alias.name for alias in ALIASES]
    assert len(names) == len(set(names))
    for alias in ALIASES:
        assert alias.name not in EngineConfig.field_names()
        assert alias.becomes is None or alias.becomes in EngineConfig.field_names()
        kinds = (alias.becomes is not None, alias.is_noop, bool(alias.reason))
        assert sum(kinds) == 1, f"{alias.name} is mapped, ignored or refused: one of them"
