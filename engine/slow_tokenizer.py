"""Folders without tokenizer.json: convert their older tokenizer files once, keep the result."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hal.errors import TokenizerError

_SLOW_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")


def converted_tokenizer_file(folder: Path, cache_folder: Path | None = None) -> Path:
    """Path of a tokenizer.json made from `folder`'s tokenizer.model, or vocab.json and merges.txt.

    Cached by the files' content. Raises TokenizerError when there is nothing to convert, or when
    the conversion needs a package that is not installed.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json")):
        raise TokenizerError(
            f"{folder} has no tokenizer.json, tokenizer.model or vocab.json; copy the tokenizer "
            "files there. Requests given as token ids still work."
        )
    root = cache_folder if cache_folder is not None else Path.home() / ".cache" / "hal"
    target = root / "tokenizers" / _digest(folder) / "tokenizer.json"
    if not target.is_file():
        _write_whole(target, _convert(folder))
    return target


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _SLOW_FILES:
        path = folder / name
        digest.update(name.encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:32]


def _convert(folder: Path) -> str:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        text = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # any of a dozen converters may raise anything
        raise TokenizerError(
            f"cannot convert the tokenizer files of {folder}: {str(error).rstrip('.')}. "
            "tokenizer.model needs `pip install sentencepiece protobuf`; or put a tokenizer.json "
            "into the folder."
        ) from error
    assert isinstance(text, str)
    return text


def _write_whole(target: Path, text: str) -> None:
    """Write by rename, so that a second process never reads half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)
