"""Weights come from the mapped file without a copy; every damage is named with file and tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hal.dtypes import DType
from hal.engine.weights import CheckpointReader, check_names
from hal.errors import WeightsError


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "a.weight": torch.randn(6, 4, generator=generator),
        "b.weight": torch.randn(3, 5, generator=generator).to(torch.bfloat16),
        "c.bias": torch.randn(7, generator=generator).to(torch.float16),
    }


def _write_sharded(folder: Path, weight_map: dict[str, str]) -> None:
    for file in set(weight_map.values()):
        part = {n: t for n, t in _tensors().items() if weight_map.get(n) == file}
        save_file(part, folder / file)
    _write_index(folder, weight_map)


def _write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _write_raw(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


SHARDS = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}


@pytest.mark.parametrize("is_sharded", [False, True])
def test_every_tensor_comes_back(tmp_path: Path, is_sharded: bool) -> None:
    tensors = _tensors()
    if is_sharded:
        _write_sharded(tmp_path, {**SHARDS, "c.bias": "model-1.safetensors"})
    else:
        save_file(tensors, tmp_path / "model.safetensors")

    with CheckpointReader(tmp_path) as reader:
        assert set(reader.names()) == set(tensors)
        assert reader.total_bytes == 6 * 4 * 4 + 3 * 5 * 2 + 7 * 2
        for name in reader.names():
            weight = reader.read(name)
            assert weight.values.shape == tensors[name].shape == reader.shape(name)
            assert torch.equal(_torch(weight.values), tensors[name])
        assert reader.dtype("b.weight") is DType.BFLOAT16
        assert reader.read("c.bias").dtype is DType.FLOAT16
        assert reader.num_bytes("c.bias") == 14


def _torch(values: object) -> torch.Tensor:
    assert isinstance(values, torch.Tensor)
    return values


def test_names_follow_the_files_so_that_each_page_is_read_once(tmp_path: Path) -> None:
    _write_sharded(tmp_path, {**SHARDS, "c.bias": "model-1.safetensors"})

    names = CheckpointReader(tmp_path).names()

    assert names[-1] == "b.weight"
    assert set(names[:2]) == {"a.weight", "c.bias"}


def test_rows_are_views_of_one_mapping(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    reader = CheckpointReader(tmp_path)

    whole = _torch(reader.read("a.weight").values)
    rows = _torch(reader.read("a.weight", range(2, 5)).values)

    assert torch.equal(rows, _tensors()["a.weight"][2:5])
    assert rows.data_ptr() - whole.data_ptr() == 2 * 4 * 4


def test_transposed_weights_count_rows_by_output(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    reader = CheckpointReader(tmp_path)

    whole = _torch(reader.read("a.weight", transposed=True).values)
    rows = _torch(reader.read("a.weight", range(1, 3), transposed=True).values)

    assert torch.equal(whole, _tensors()["a.weight"].T)
    assert torch.equal(rows, _tensors()["a.weight"].T[1:3])
    assert whole.data_ptr() == _torch(reader.read("a.weight").values).data_ptr()


def test_loading_takes_no_private_memory(tmp_path: Path) -> None:
    num_bytes = 64 * 2**20
    save_file({"big": torch.ones(num_bytes // 4)}, tmp_path / "model.safetensors")
    reader = CheckpointReader(tmp_path)
    before = _private_bytes()

    values = _torch(reader.read("big").values)
    total = values.sum().item()

    assert total == num_bytes // 4
    # The threshold is far below one copy and far above what the allocator and threads need.
    assert _private_bytes() - before < num_bytes // 4


def _private_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return sum(int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


def test_unknown_name(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")

    with pytest.raises(WeightsError, match="no tensor 'd'"):
        CheckpointReader(tmp_path).read("d")


@pytest.mark.parametrize("keep", [0, 4, 20, -1], ids=["empty", "no header", "half", "one byte"])
def test_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(_tensors(), path)
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(WeightsError, match=r"model\.safetensors \(\d+ bytes\) is not a complete"):
        CheckpointReader(tmp_path)


def _entry(start: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"x": _entry(0, 64, [4, 4])},
        {"x": _entry(0, 16, [4]), "y": _entry(8, 24, [4])},
        {"x": _entry(0, 16, [2**62, 2**62])},
        {"x": _entry(16, 0, [4])},
        {"x": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
    ],
    ids=["beyond the file", "overlap", "overflow", "backwards", "negative"],
)
def test_malformed_headers_are_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    _write_raw(tmp_path / "model.safetensors", header, bytes(32))

    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        CheckpointReader(tmp_path)


def test_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 4096)

    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        CheckpointReader(tmp_path)


@given(position=st.integers(0, 400), byte=st.integers(0, 255), keep=st.integers(0, 600))
def test_damage_of_any_kind_is_either_harmless_or_named(
    damaged_folder: Path, position: int, byte: int, keep: int
) -> None:
    data = bytearray(safetensors.torch.save(_tensors()))
    data[position % len(data)] = byte
    (damaged_folder / "model.safetensors").write_bytes(data[:keep] if keep < 500 else data)

    try:
        reader = CheckpointReader(damaged_folder)
        for name in reader.names():
            reader.read(name)
    except WeightsError as error:
        assert "model.safetensors" in str(error)


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def test_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")

    with pytest.raises(WeightsError, match="git lfs pull"):
        CheckpointReader(tmp_path)


def test_exotic_element_type_is_named_with_its_tensor(tmp_path: Path) -> None:
    header = {"x": {"dtype": "U64", "shape": [2], "data_offsets": [0, 16]}}
    _write_raw(tmp_path / "model.safetensors", header, bytes(16))

    with pytest.raises(WeightsError, match="tensor 'x' has the element type U64"):
        CheckpointReader(tmp_path)


def test_index_that_names_a_missing_file(tmp_path: Path) -> None:
    _write_sharded(tmp_path, SHARDS)
    (tmp_path / "model-2.safetensors").unlink()

    with pytest.raises(WeightsError, match=r"model-2\.safetensors \(for 'b\.weight' and others\)"):
        CheckpointReader(tmp_path)


def test_index_that_promises_a_tensor_its_file_lacks(tmp_path: Path) -> None:
    _write_sharded(tmp_path, SHARDS)
    _write_index(tmp_path, {**SHARDS, "c.bias": "model-1.safetensors"})

    with pytest.raises(WeightsError, match=r"model-1\.safetensors holds 'c\.bias'; it does not"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)

    with pytest.raises(WeightsError, match=r"index\.json is not a safetensors index"):
        CheckpointReader(tmp_path)


def test_index_must_not_leave_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(_tensors(), tmp_path / "secret.safetensors")
    _write_index(folder, {"a.weight": "../secret.safetensors"})

    with pytest.raises(WeightsError, match="points outside the folder"):
        CheckpointReader(folder)


def test_one_tensor_in_two_files(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "one.safetensors")
    save_file(_tensors(), tmp_path / "two.safetensors")

    with pytest.raises(WeightsError, match=r"stands in both one\.safetensors and two\.safetensors"):
        CheckpointReader(tmp_path)


@pytest.fixture
def reader(tmp_path: Path) -> CheckpointReader:
    extras = {
        "layers.0.attn.bias": torch.ones(1),
        "layers.0.attn.masked_bias": torch.ones(1),
        "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1),
    }
    save_file({**_tensors(), **extras}, tmp_path / "model.safetensors")
    return CheckpointReader(tmp_path)


EXPECTED = {"a.weight": (6, 4), "b.weight": (3, 5), "c.bias": (7,)}


def test_matching_names_pass_and_known_buffers_are_ignored(reader: CheckpointReader) -> None:
    check_names(EXPECTED, reader)


def test_missing_tensors_are_listed(reader: CheckpointReader) -> None:
    many = {f"layers.{i}.weight": (1,) for i in range(7)}

    with pytest.raises(WeightsError, match=r"7 tensors missing: layers\.0\.weight.* and 2 more"):
        check_names({**EXPECTED, **many}, reader)


def test_extra_tensors_are_listed_unless_ignored(reader: CheckpointReader) -> None:
    expected = {name: shape for name, shape in EXPECTED.items() if name != "c.bias"}

    with pytest.raises(WeightsError, match=r"1 tensor not part of this architecture: c\.bias"):
        check_names(expected, reader)
    check_names(expected, reader, ignorable=[r"^c\."])


def test_an_attention_projection_bias_is_not_a_known_buffer(tmp_path: Path) -> None:
    save_file({"h.0.attn.c_attn.bias": torch.ones(1)}, tmp_path / "model.safetensors")

    with pytest.raises(WeightsError, match=r"c_attn\.bias"):
        check_names({}, CheckpointReader(tmp_path))


def test_other_shapes_are_listed_with_both_values(reader: CheckpointReader) -> None:
    with pytest.raises(WeightsError, match=r"a\.weight is \[6, 4\], expected \[4, 6\]"):
        check_names({**EXPECTED, "a.weight": (4, 6)}, reader)


def test_reads_what_transformers_shards(
    tmp_path: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama"))
    model.save_pretrained(tmp_path, max_shard_size="100KB")

    with CheckpointReader(tmp_path) as reader:
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        for name, parameter in model.state_dict().items():
            assert torch.equal(_torch(reader.read(name).values), parameter)
