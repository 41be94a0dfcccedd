"""MODEL is the embedded model, a folder or a hub id; everything else says what to do next."""

from __future__ import annotations

import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hal.engine.checkpoint import list_shards, resolve_model
from hal.engine.weights import CheckpointReader
from hal.errors import ModelError, WeightsError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _make_folder(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).write_bytes(b"")
    return folder


def _make_cache(root: Path, hub_id: str, *files: str) -> Path:
    """huggingface_hub's layout: refs/main names the commit, snapshots/<commit> has the files."""
    repository = root / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return _make_folder(repository / "snapshots" / COMMIT, *files)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = _make_folder(tmp_path / "m", "config.json", "model.safetensors")

    assert resolve_model(str(folder)) == folder.resolve()


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = _make_folder(tmp_path / "m", "config.json", "model.safetensors")

    assert resolve_model("~/m") == folder.resolve()


def test_the_embedded_model_is_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _make_folder(tmp_path / "tiny", "config.json", "model.safetensors")
    module = types.ModuleType("hal.tiny")
    monkeypatch.setattr(module, "path", lambda: folder, raising=False)
    monkeypatch.setitem(sys.modules, "hal.tiny", module)

    assert resolve_model("hal-tiny", offline=True) == folder


@pytest.mark.parametrize("hub_id", ["owner/model-1.5B", "gpt2"])
def test_a_cached_hub_id_needs_no_network(tmp_path: Path, hub_id: str) -> None:
    snapshot = _make_cache(tmp_path, hub_id, "config.json", "model.safetensors")

    assert resolve_model(hub_id, offline=True, cache_dir=tmp_path) == snapshot


def test_a_hub_id_that_is_not_cached(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not in the hub cache.*without --offline"):
        resolve_model("owner/model", offline=True, cache_dir=tmp_path)


def test_an_unreachable_hub(tmp_path: Path) -> None:
    # tests/conftest.py sets HF_HUB_OFFLINE, which is what a machine without network looks like.
    with pytest.raises(ModelError, match=r"owner/model.*(cannot be reached|failed)"):
        resolve_model("owner/model", cache_dir=tmp_path)


def test_a_misspelt_embedded_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did you mean hal-tiny"):
        resolve_model("hal-tinny", offline=True, cache_dir=tmp_path)


@pytest.mark.parametrize("model", ["/nowhere/model", "./model", "a/b/c", "model/"])
def test_a_missing_folder(model: str) -> None:
    with pytest.raises(ModelError, match="does not exist; check the path"):
        resolve_model(model)


@pytest.mark.parametrize("model", ["", "no spaces allowed", "owner/model:tag"])
def test_neither_folder_nor_hub_id(model: str, tmp_path: Path) -> None:
    # An empty name must not mean the current folder.
    with pytest.raises(ModelError, match="neither hal-tiny, nor a folder, nor a hub id"):
        resolve_model(model, offline=True, cache_dir=tmp_path)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path))


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    folder = _make_folder(tmp_path, "model.safetensors")

    with pytest.raises(ModelError, match="is a file; MODEL is the folder"):
        resolve_model(str(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("files", "message"),
    [((), r"no \*\.safetensors weights"), (("m.gguf",), "GGUF weights; not supported yet")],
)
def test_a_folder_without_weights(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    folder = _make_folder(tmp_path, "config.json", *files)

    with pytest.raises(ModelError, match=message):
        resolve_model(str(folder))


def test_pickled_weights_are_refused_with_a_command_that_works(
    tmp_path: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    from transformers import AutoModelForCausalLM

    source = tiny_checkpoint("llama")
    state = AutoModelForCausalLM.from_pretrained(source).state_dict()
    folder = _make_folder(tmp_path / "old")
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    torch.save(state, folder / "pytorch_model.bin")

    with pytest.raises(ModelError, match="pickled weights") as caught:
        resolve_model(str(folder))

    command = next(line for line in str(caught.value).splitlines() if "python -c" in line)
    program, flag, code = shlex.split(command)
    assert (program, flag) == ("python", "-c")
    exec(code, {})  # noqa: S102 the advice itself is under test
    converted = resolve_model(f"{folder}-safetensors")
    assert set(CheckpointReader(converted).names()) == set(state)


def test_shards_without_an_index_are_all_used(tmp_path: Path) -> None:
    _make_folder(tmp_path, "b.safetensors", "a.safetensors", "consolidated.safetensors")

    assert [path.name for path in list_shards(tmp_path).paths] == ["a.safetensors", "b.safetensors"]


def test_the_usual_name_wins_over_other_files(tmp_path: Path) -> None:
    _make_folder(tmp_path, "model.safetensors", "adapter.safetensors")

    assert [path.name for path in list_shards(tmp_path).paths] == ["model.safetensors"]


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no \*\.safetensors"):
        list_shards(tmp_path)
