"""llama.cpp through its C API: decode and prefill share batches, as in its own server.

Every sequence has a KV stream of its own and starts at once. The most likely token is found with
numpy, which is faster than llama.cpp's sampler chain.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from peers.cases import Case, Work
from peers.checkpoint import read_geometry
from peers.protocol import (
    Document,
    Facts,
    Generated,
    Settings,
    Stopwatch,
    serve,
)

BATCH_TOKENS = 2048
FORMATS = {
    "bf16": "BF16",
    "int8": "Q8_0",
    "int4": "Q4_0",
}
_FILE_TYPES = {
    "int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}


def gguf_file(settings: Settings) -> Path:
    """The model in this format, made if it is not in the cache."""
    folder = settings.cache / "gguf" / settings.folder.name
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / f"{FORMATS['bf16']}.gguf"
    if not plain.is_file():
        part = plain.with_suffix(".part")
        command = [sys.executable, "-m", "peers.gguf_export", str(settings.folder), str(part)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        part.rename(plain)
    path = folder / f"{FORMATS[settings.weights]}.gguf"
    if not path.is_file():
        _quantize(plain, path, settings)
    return path


def _quantize(plain: Path, path: Path, settings: Settings) -> None:
    """llama.cpp's own mix: what its users get under that name."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = settings.threads
    params.ftype = _FILE_TYPES[settings.weights]
    part = path.with_suffix(".part")
    status = llama_cpp.llama_model_quantize(
        str(plain).encode(), str(part).encode(), ctypes.byref(params)
    )
    if status:
        raise RuntimeError(f"llama_model_quantize gave {status} for {path}")
    part.rename(path)


class LlamaCpp:
    """One model; a context for each case, as large as the case needs."""

    def __init__(self, settings: Settings) -> None:
        llama_cpp.llama_backend_init()
        self._settings = settings
        self._geometry = read_geometry(settings.folder)
        self._path = gguf_file(settings)
        params = llama_cpp.llama_model_default_params()
        self._model: Any = llama_cpp.llama_model_load_from_file(str(self._path).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {self._path}")
        self._context: Any = None
        self._batch: Any = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    def facts(self) -> Facts:
        tensors = {t.name: t for t in gguf.GGUFReader(self._path).tensors}
        embedding = tensors["token_embd.weight"]
        logits = tensors.get("output.weight", embedding)
        total = sum(int(t.n_bytes) for t in tensors.values())
        gathered = 0 if logits is embedding else int(embedding.n_bytes)
        return Facts(
            engine=f"llama-cpp-python {llama_cpp.__version__}",
            weight_bytes=total - gathered,
            logits_bits=round(8 * int(logits.n_bytes) / self._geometry.embedding_values, 2),
            kv_bits=16,
            note=f"{FORMATS[self._settings.weights]}, logits {logits.tensor_type.name}",
        )

    def prepare(self, case: Case) -> None:
        self._open(case.num_requests, case.max_len)

    def _open(self, num_sequences: int, max_len: int) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        padded = -(-max_len // 256) * 256  # of each stream, as the context rounds it itself
        params.n_ctx = num_sequences * padded
        params.n_batch = BATCH_TOKENS
        params.n_seq_max = num_sequences
        params.n_threads = params.n_threads_batch = self._settings.threads
        params.kv_unified = False
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no context of {num_sequences} x {padded} tokens")

    def run(self, work: Sequence[Work]) -> Generated:
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, True)
        loop = _Loop(work, self)
        watch = Stopwatch(len(work))
        while loop.has_work:
            for request in loop.step():
                watch.saw(request)
            watch.end_step()
        return watch.stop(loop.tokens)

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> list[Any]:
        """One batch of (token, position, sequence, wants logits); the logits asked for."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for row, (token, position, sequence, wants_logits) in enumerate(entries):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = wants_logits
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status}")
        return [self._logits(row) for row, entry in enumerate(entries) if entry[3]]

    def _logits(self, row: int) -> Any:
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self._geometry.vocab_size,))

    def log_likelihood(self, document: Document) -> float:
        self._open(1, self._settings.max_len)
        last = len(document.ids) - 1
        rows = self.decode(
            [
                (token, position, 0, position >= document.start - 1)
                for position, token in enumerate(document.ids[:last])
            ]
        )
        scored = document.ids[document.start :]
        return sum(
            float(logits[token] - np.logaddexp.reduce(logits.astype(np.float64)))
            for logits, token in zip(rows, scored, strict=True)
        )


class _Loop:
    """Continuous batching: a token of each running sequence, then prompts up to the limit."""

    def __init__(self, work: Sequence[Work], model: LlamaCpp) -> None:
        self._work, self._model = work, model
        self._done = [0] * len(work)  # tokens in the KV cache
        self.tokens: list[list[int]] = [[] for _ in work]

    @property
    def has_work(self) -> bool:
        return any(len(t) < w.num_output for t, w in zip(self.tokens, self._work, strict=True))

    def step(self) -> list[int]:
        """Runs one batch; returns the requests that got a token."""
        entries: list[tuple[int, int, int, bool]] = []
        sampled: list[int] = []
        for index, (work, made) in enumerate(zip(self._work, self.tokens, strict=True)):
            if made and len(made) < work.num_output:
                entries.append((made[-1], self._done[index], index, True))
                self._done[index] += 1
                sampled.append(index)
        for index, work in enumerate(self._work):
            self._add_prompt(index, work, entries, sampled)
        rows = self._model.decode(entries)
        for index, logits in zip(sampled, rows, strict=True):
            self.tokens[index].append(int(logits.argmax()))
        return sampled

    def _add_prompt(
        self,
        index: int,
        work: Work,
        entries: list[tuple[int, int, int, bool]],
        sampled: list[int],
    ) -> None:
        done, left = self._done[index], BATCH_TOKENS - len(entries)
        chunk = work.prompt[done : done + left]
        last = len(work.prompt) - 1
        entries += [
            (token, position, index, position == last)
            for position, token in enumerate(chunk, start=done)
        ]
        self._done[index] += len(chunk)
        if chunk and self._done[index] == len(work.prompt):
            sampled.append(index)


if __name__ == "__main__":
    serve(LlamaCpp)
