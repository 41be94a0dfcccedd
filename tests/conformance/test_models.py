"""Layers and whole tiny models on the device, through the engine's own runner."""

from __future__ import annotations

import numpy as np
import pytest

from hal.conform.engine_model import NUM_BLOCKS, load
from hal.conform.run import model_run
from hal.conformance.limits import LIMITS, argmax_regret
from hal.conformance.model_checks import GRAPHS, OWN_TOKENS, SCHEDULES, ModelJudge
from hal.conformance.tiny_models import SHAPES, make_model
from hal.device import Device
from hal.dtypes import DType
from hal.select import OPS


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("model_type", SHAPES)
def test_layers_and_model_conform(
    model_type: str, dtype: DType, device: Device, num_seeds: int
) -> None:
    for seed in range(num_seeds):
        run = model_run(model_type, dtype, device, seed=seed)
        made = [record for record in run.records if not record.case.startswith(GRAPHS)]
        assert [str(record) for record in made if not record.has_passed] == []
        names = {record.case.partition(", seed")[0] for record in made}
        assert names == {"layer 0", "layer 1", *SCHEDULES, OWN_TOKENS}


def test_a_model_without_a_kernel_is_missing_not_passed(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OPS["rms_norm"], "kernels", {})
    run = model_run("llama", DType.FLOAT32, device)
    assert [record.verdict for record in run.records] == ["missing", "missing"]
    assert "no kernel of rms_norm" in run.records[0].detail
    assert not run.summary("model").has_passed


def test_caches_start_as_poison_and_only_written_slots_lose_it(device: Device) -> None:
    model = make_model("llama", DType.FLOAT32)
    loaded = load(model, device)
    judge = ModelJudge(model, 0)
    player = judge.player(loaded.model)
    caches = loaded.model.kv_caches()
    assert all(np.isnan(device.download(kv)).all() for kv in caches)
    player.step((0, 10), (1, 5))
    width = 2 * model.shape.num_kv_heads * model.shape.head_dim
    for kv in caches:
        assert np.count_nonzero(~np.isnan(device.download(kv))) == 15 * width
        assert kv.shape[0] == NUM_BLOCKS


def test_regret_is_what_the_oracle_loses_by_the_devices_choice() -> None:
    expected = np.array([[0.0, -1.0, -3.0], [-2.0, -2.0, -1.0], [0.0, -1.0, -2.0]])
    actual = np.array([[9.0, 8.0, 0.0], [5.0, 0.0, 4.0], [np.nan, 0.0, 1.0]])
    assert argmax_regret(actual, expected).tolist() == [0.0, 1.0, np.inf]
