"""From the MODEL a user typed to a local folder, and from that folder to its weight files."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from hal.errors import ModelError, WeightsError

EMBEDDED_MODEL = "hal-tiny"

_INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt")
# Sub-folders hold other formats, consolidated*.safetensors the same weights a second time.
_HUB_IGNORED = ("*/*", "consolidated*")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class ShardListing:
    """The weight files of a folder; `weight_map` is what an index promises, else empty."""

    paths: tuple[Path, ...]
    weight_map: Mapping[str, Path]


def resolve_model(model: str, *, offline: bool = False, cache_dir: Path | None = None) -> Path:
    """The folder of `model`: the embedded model's name, a folder, or a hub id.

    A hub id is fetched into huggingface_hub's cache (`cache_dir` overrides which), or with
    `offline` only looked up there. Raises ModelError, whose message has the next step.
    """
    folder = locate_model(model, offline=offline, cache_dir=cache_dir)
    check_model_folder(folder)
    return folder


def locate_model(model: str, *, offline: bool = False, cache_dir: Path | None = None) -> Path:
    """Like `resolve_model`, whatever the folder holds; raises ModelError."""
    if model == EMBEDDED_MODEL:
        return _embedded_folder()
    if model and Path(model).expanduser().exists():  # Path("") is the current folder
        return Path(model).expanduser().resolve()
    if _looks_like_path(model):
        raise ModelError(f"model folder {model} does not exist; check the path")
    if _HUB_ID.fullmatch(model):
        return _hub_folder(model, offline, cache_dir)
    raise ModelError(
        f"{model!r} is neither {EMBEDDED_MODEL}, nor a folder, nor a hub id like owner/name"
    )


def check_model_folder(folder: Path) -> None:
    """Raise ModelError unless `folder` has a config.json and safetensors weights."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file; MODEL is the folder that holds config.json")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    if any(folder.glob("*.safetensors")) or (folder / _INDEX_FILE).is_file():
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(_conversion_advice(folder, pickles))
    if any(folder.glob("*.gguf")):
        raise ModelError(f"{folder} holds GGUF weights; not supported yet: use safetensors")
    raise ModelError(f"{folder} has a config.json but no *.safetensors weights; download them")


def list_shards(folder: Path) -> ShardListing:
    """The safetensors files of `folder`, by its index if it has one; raises WeightsError."""
    index = folder / _INDEX_FILE
    if index.is_file():
        return _indexed_shards(index)
    single = folder / _SINGLE_FILE
    if single.is_file():
        return ShardListing((single,), {})
    paths = sorted(path for path in folder.glob("*.safetensors") if not path.match("consolidated*"))
    if not paths:
        raise WeightsError(f"{folder} has no *.safetensors weights; download them")
    return ShardListing(tuple(paths), {})


def _indexed_shards(index: Path) -> ShardListing:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): index.parent / str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{index} is not a safetensors index ({error!r}). Download the file again."
        ) from error
    for name, path in names.items():
        if path.parent != index.parent:
            raise WeightsError(f"{index}: tensor {name!r} points outside the folder, to {path}")
        if not path.is_file():
            raise WeightsError(
                f"{index} lists {path.name} (for {name!r} and others), which is missing. "
                "Download that file."
            )
    return ShardListing(tuple(sorted(set(names.values()))), names)


def _embedded_folder() -> Path:
    tiny = import_module("hal.tiny")
    folder = tiny.path()
    assert isinstance(folder, Path)
    return folder


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith("/")


def _hub_folder(model: str, offline: bool, cache_dir: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                model,
                allow_patterns=list(_HUB_FILES),
                ignore_patterns=list(_HUB_IGNORED),
                local_files_only=offline,
                cache_dir=cache_dir,
            )
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{model} is gated: accept its licence on its hub page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {model!r}{_suggestion(model)}") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(_not_cached(model, offline)) from error
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"fetching {model} failed: {error}. Try again, or give a local folder."
        ) from error


def _not_cached(model: str, offline: bool) -> str:
    if offline:
        return (
            f"{model} is not a folder and not in the hub cache{_suggestion(model)}. Run once "
            "without --offline, or give a local folder."
        )
    return (
        f"{model} is not a folder, not in the hub cache, and the hub cannot be reached"
        f"{_suggestion(model)}. Check the network, or give a local folder."
    )


def _suggestion(model: str) -> str:
    is_close = difflib.get_close_matches(model, [EMBEDDED_MODEL], cutoff=0.7)
    return f" (did you mean {EMBEDDED_MODEL}?)" if is_close else ""


def _conversion_advice(folder: Path, pickles: list[str]) -> str:
    target = f"{folder}-safetensors"
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"s, t = {str(folder)!r}, {target!r}; "
        "M.from_pretrained(s, dtype='auto').save_pretrained(t); "
        "T.from_pretrained(s).save_pretrained(t)"
    )
    return (
        f"{folder} has only pickled weights ({', '.join(pickles[:3])}), which can run code when "
        f'opened. If you trust them, convert once:\n  python -c "{code}"\nthen use {target}'
    )
