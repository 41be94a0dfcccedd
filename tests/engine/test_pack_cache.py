"""A start from packed weights on disk against one from the checkpoint: same bytes, same tokens."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from high_water import HighWater, held_bytes
from safetensors.torch import load_file, save_file

from hal.build import BuiltEngine, build_engine
from hal.config import EngineConfig
from hal.engine.loader import kept_weights
from hal.engine.progress import Progress
from hal.engine.request import Request
from hal.engine.weights import CheckpointReader
from hal.errors import WeightsError
from hal.pack_cache import cache as pack_cache
from hal.pack_cache import checkpoint_hash
from hal.sampling_params import SamplingParams
from hal.weights import WEIGHT_FORMATS, LogicalWeight

Maker = Callable[..., Path]
WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2}

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture
def native(device_name: str) -> None:
    from hal.kernels.cpu import native

    if device_name != "cpu" or native.quantized_unavailable():
        pytest.skip("only the CPU's native kernels pack weights")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that takes weights of any size and remembers hashes of fresh files."""
    monkeypatch.setenv("HAL_CACHE_FOLDER", str(tmp_path / "cache"))
    monkeypatch.setattr(pack_cache, "LEAST_SOURCE_BYTES", 0)
    monkeypatch.setattr(checkpoint_hash, "_SETTLED_NS", -(10**15))
    return tmp_path / "cache"


def build(
    model: Path, quantization: str = "int4", progress: Progress | None = None, **settings: object
) -> BuiltEngine:
    base: dict[str, object] = {"device": "cpu", "max_num_seqs": 4, "max_model_len": 128}
    given = {**base, "model": str(model), "quantization": quantization, **settings}
    config = EngineConfig(**given)  # type: ignore[arg-type]  # it checks its fields
    return build_engine(config, progress)


def stored_bytes(built: BuiltEngine) -> list[bytes]:
    with CheckpointReader(built.folder) as reader:
        kept = kept_weights(built.decoder.parameters, reader)
    return [bytes(part) for weight in kept.values() for part in weight.form.parts]


def greedy(built: BuiltEngine) -> list[int]:
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    prompt = tuple(range(5, 40))
    built.engine.add(Request(request_id="0", prompt_token_ids=prompt, params=params))
    return [
        token
        for _ in range(17)
        if built.engine.has_work
        for output in built.engine.step()
        for token in output.token_ids
    ]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines about the cache since the last look."""
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return [line for line in lines if "packed weights" in line]


@pytest.mark.parametrize("quantization", WEIGHT_FORMATS)
@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2", "mixtral", "qwen3_moe"])
def test_a_second_start_has_the_same_bytes_and_tokens(
    tiny_checkpoint: Maker,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    arch: str,
    quantization: str,
) -> None:
    """Biases in the order of packed rows, transposed weights and untied embeddings included."""
    caplog.set_level(logging.INFO, "hal")
    model = tiny_checkpoint(arch)
    first = build(model, quantization)
    (line,) = said(caplog)
    assert line.startswith(f"packed weights kept in cache {folder}")
    second = build(model, quantization)
    (line,) = said(caplog)
    assert line.startswith(f"packed weights from cache {folder}")
    assert "made from the checkpoint, kept in the cache" in first.weights
    assert second.as_dict()["weights"] == second.weights
    assert "packed, from the cache on disk" in second.weights
    assert stored_bytes(first) == stored_bytes(second)
    assert greedy(first) == greedy(second) == greedy(build(model, quantization, cache=False))


def test_a_second_start_reads_no_packed_tensor(
    tiny_checkpoint: Maker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_checkpoint("qwen2", tie_word_embeddings=True)
    build(model)
    read: list[str] = []
    original = CheckpointReader.read

    def spy(self: CheckpointReader, name: str, *rest: Any, **options: Any) -> LogicalWeight:
        read.append(name)
        return original(self, name, *rest, **options)

    monkeypatch.setattr(CheckpointReader, "read", spy)
    build(model)
    assert read and all(name.endswith("norm.weight") for name in read), read


def test_other_weights_or_another_format_are_another_entry(
    tiny_checkpoint: Maker, folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "changed"
    shutil.copytree(tiny_checkpoint("llama"), model)
    before = stored_bytes(build(model))
    assert stored_bytes(build(model, "int8")) != before
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    changed = stored_bytes(build(model))
    assert changed != before
    assert changed == stored_bytes(build(model, cache=False))
    assert len(list(folder.glob("*.packed"))) == 3


def test_a_damaged_entry_is_made_again(
    tiny_checkpoint: Maker, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_checkpoint("qwen2", **WIDE)
    expected = stored_bytes(build(model))
    (entry,) = folder.glob("*.packed")
    sound = entry.read_bytes()
    damaged = bytearray(sound)
    damaged[-5] ^= 1
    entry.write_bytes(damaged)
    caplog.clear()
    assert stored_bytes(build(model)) == expected
    (line,) = said(caplog)
    assert "made again" in line and "damaged" in line
    assert entry.read_bytes() == sound


def test_no_cache_neither_reads_nor_writes(tiny_checkpoint: Maker, folder: Path) -> None:
    built = build(tiny_checkpoint("llama"), cache=False)
    assert built.weights == "made from the checkpoint"
    assert not folder.exists()


def test_a_load_that_fails_keeps_nothing(
    tiny_checkpoint: Maker, folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "nan"
    shutil.copytree(tiny_checkpoint("llama"), model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    for _ in range(2):
        with pytest.raises(WeightsError, match="hold NaN"):
            build(model)
    assert list(folder.glob("*.packed")) == []


def test_weights_that_are_only_repacked_are_not_kept(tiny_checkpoint: Maker, folder: Path) -> None:
    """They are as many bytes as the checkpoint; half as many from float32."""
    model = tiny_checkpoint("llama", dtype="bfloat16")
    build(model, "none")
    assert list(folder.glob("*.packed")) == []
    build(tiny_checkpoint("llama", dtype="float32"), "none", dtype="bfloat16")
    assert len(list(folder.glob("*.packed"))) == 1


def test_the_embedded_model_is_too_small(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pack_cache, "LEAST_SOURCE_BYTES", 64 << 20)
    caplog.set_level(logging.INFO, "hal")
    build(Path("hal-tiny"))
    assert said(caplog) == []
    assert not folder.exists()


def test_reading_an_entry_takes_no_memory_beside_the_weights(
    tiny_checkpoint: Maker, folder: Path
) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    model = tiny_checkpoint("llama", dtype="bfloat16", **sizes)
    build(
        tiny_checkpoint("llama"), max_num_seqs=1, max_model_len=64
    )  # code and libraries are no part of it
    for has_entry in (False, True):
        assert len(list(folder.glob("*.packed"))) == 1 + has_entry
        before, watch = held_bytes(), HighWater()
        built = build(model, progress=watch, max_num_seqs=1, max_model_len=64)
        growth = max(watch.highest, held_bytes()) - before
        plan = built.plan
        beside = plan.activation_bytes + plan.logits_bytes + plan.kv_bytes
        assert growth < 1.2 * plan.weights_bytes + 4096 * 1024 * 2 + beside
        del built


def test_kernels_that_pack_nothing_keep_nothing(tiny_checkpoint: Maker, folder: Path) -> None:
    built = build(tiny_checkpoint("llama"), device="null")
    assert built.weights == "made from the checkpoint"
    assert not folder.exists()
