"""Reads a checkpoint folder without torch: its config and its tensors as raw numpy arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Geometry:
    """The numbers of config.json that the arms need."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_len: int
    is_tied: bool

    def kv_bytes(self, bits: int) -> int:
        """Keys and values of one token, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bits // 8

    @property
    def layer_values(self) -> int:
        """Of the matrices of all layers: what one token is multiplied with before the logits."""
        attention = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim
        mlp = 3 * self.intermediate_size
        return self.num_layers * self.hidden_size * (attention + mlp)

    @property
    def embedding_values(self) -> int:
        return self.vocab_size * self.hidden_size


def read_geometry(folder: Path) -> Geometry:
    config = json.loads((folder / "config.json").read_text())
    return Geometry(
        model_type=config["model_type"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        rope_theta=config["rope_parameters"]["rope_theta"],
        rms_norm_eps=config["rms_norm_eps"],
        max_len=config["max_position_embeddings"],
        is_tied=config["tie_word_embeddings"],
    )


def stored_values(folder: Path) -> dict[str, int]:
    """How many values each tensor has, from the files' headers alone."""
    return {
        name: math.prod(entry["shape"])
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in _header(path).items()
    }


def read_bfloat16(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor as uint16 bit patterns, mapped from its file."""
    import numpy as np

    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            data_start = 8 + int.from_bytes(file.read(8), "little")
        for name, entry in _header(path).items():
            if entry["dtype"] != "BF16":
                raise ValueError(f"{path}: {name} is {entry['dtype']}; only BF16 is exported")
            offset = data_start + entry["data_offsets"][0]
            yield name, np.memmap(path, np.uint16, "r", offset, tuple(entry["shape"]))


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header
