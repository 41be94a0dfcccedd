"""OpenVINO GenAI's continuous batching pipeline, on a model that optimum-intel has exported."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

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

KV_GIB = 2
FORMATS = {
    "bf16": (),
    "int8": ("--weight-format", "int8"),
    "int4": ("--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"),
}


def exported(settings: Settings) -> Path:
    """The model's intermediate representation in this format, made if it is not in the cache."""
    folder = settings.cache / "openvino" / settings.folder.name / settings.weights
    if (folder / "openvino_model.xml").is_file():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    tool = "from optimum.commands.optimum_cli import main; main()"
    command = [sys.executable, "-c", tool, "export", "openvino", "-m", str(settings.folder)]
    task = ["--task", "text-generation-with-past", *FORMATS[settings.weights], str(part)]
    subprocess.run([*command, *task], check=True, stdout=sys.stderr)
    part.rename(folder)
    return folder


class OpenVino:
    """One pipeline; its KV cache keeps the plugin's default precision."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._geometry = read_geometry(settings.folder)
        self._folder = exported(settings)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = KV_GIB
        scheduler.max_num_seqs = settings.max_num_seqs
        scheduler.max_num_batched_tokens = 2048
        scheduler.enable_prefix_caching = False
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
            self._folder, scheduler, "CPU", self._properties()
        )
        self._scorer: Any = None

    def _properties(self) -> dict[str, object]:
        return {"INFERENCE_NUM_THREADS": self._settings.threads}

    def facts(self) -> Facts:
        model = openvino.Core().read_model(self._folder / "openvino_model.xml")
        constants = {op.get_friendly_name(): _bytes(op) for op in _constants(model)}
        logits = _logits_constant(model)
        elements = math.prod(logits.output(0).shape)
        if elements < self._geometry.embedding_values:
            raise RuntimeError(f"{logits.get_friendly_name()} is not the logits matrix")
        untied = 0 if self._geometry.is_tied else _bytes(logits)
        return Facts(
            engine=f"openvino-genai {openvino_genai.__version__}",
            weight_bytes=int(sum(constants.values()) - untied),
            logits_bits=8 * _bytes(logits) / elements,
            kv_bits=_kv_bits(),
            note=f"logits {logits.get_element_type().to_string()}",
        )

    def prepare(self, case: Case) -> None:
        pass

    def run(self, work: Sequence[Work]) -> Generated:
        watch = Stopwatch(len(work))
        handles = [self._add(index, w) for index, w in enumerate(work)]
        tokens: list[list[int]] = [[] for _ in work]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for index, handle in enumerate(handles):
                while handle.can_read():
                    (output,) = handle.read().values()
                    tokens[index] += output.generated_ids
                    watch.saw(index, len(output.generated_ids))
            watch.end_step()
        return watch.stop(tokens)

    def _add(self, index: int, work: Work) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = work.num_output
        config.ignore_eos = True
        ids = openvino.Tensor(np.array([work.prompt], np.int64))
        return self._pipeline.add_request(index, ids, config)

    def log_likelihood(self, document: Document) -> float:
        """The same file through the plain model, which gives the logits of every position."""
        if self._scorer is None:
            path = self._folder / "openvino_model.xml"
            self._scorer = openvino.Core().compile_model(path, "CPU", self._properties())
        ids = np.array([document.ids[:-1]], np.int64)
        request = self._scorer.create_infer_request()
        request.infer(
            {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "position_ids": np.arange(ids.shape[1])[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        logits = request.get_tensor("logits").data[0, document.start - 1 :].astype(np.float64)
        targets = np.array(document.ids[document.start :])
        chosen = logits[np.arange(len(targets)), targets]
        return float((chosen - np.logaddexp.reduce(logits, axis=1)).sum())


def _constants(model: Any) -> Iterator[Any]:
    """Weights and scales, without the small constants of shapes and masks."""
    floating = ("bf16", "f16", "f32", "u8", "i8", "u4", "i4", "nf4")
    for op in model.get_ops():
        is_weight = op.get_type_name() == "Constant" and len(op.output(0).shape) >= 1
        if is_weight and op.get_element_type().to_string() in floating:
            yield op


def _bytes(constant: Any) -> float:
    """Stored bytes; four-bit values share them."""
    return float(math.prod(constant.output(0).shape) * constant.get_element_type().bitwidth / 8)


def _logits_constant(model: Any) -> Any:
    """The largest constant above the last product: weights, not their scales."""
    node = model.output("logits").get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    found, open_nodes = [], [node.input_value(1).get_node()]
    while open_nodes:
        node = open_nodes.pop()
        if node.get_type_name() == "Constant":
            found.append(node)
        open_nodes += [port.get_source_output().get_node() for port in node.inputs()]
    return max(found, key=_bytes)


def _kv_bits() -> int:
    """What the CPU plugin keeps by default."""
    precision = openvino.Core().get_property("CPU", "KV_CACHE_PRECISION")
    return int(precision.bitwidth) if hasattr(precision, "bitwidth") else 16


if __name__ == "__main__":
    os.environ["OPENVINO_LOG_LEVEL"] = "0"
    serve(OpenVino)
