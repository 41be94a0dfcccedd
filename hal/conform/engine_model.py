"""The engine's own runner and layers behind what the conformance kit drives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hal import opset
from hal.assembly import Assembled, assemble, make_selector
from hal.binding import Binder, Buffer
from hal.collective import Collective
from hal.config import EngineConfig, ModelLimits, ResolvedConfig, resolve
from hal.conformance.model_run import ModelStep, Part, StepOutput
from hal.conformance.stage import poison
from hal.conformance.tiny_checkpoint import write_model
from hal.conformance.tiny_models import MAX_POSITIONS, TinyModel
from hal.device import Device
from hal.engine.batch import Batch, SamplingBatch, SamplingSettings
from hal.engine.layers.decoder import Layer
from hal.engine.loader import load_weights
from hal.engine.model_config import ModelConfig, read_model_config
from hal.engine.models import MODELS
from hal.engine.progress import SilentProgress
from hal.engine.weights import CheckpointReader
from hal.opset.attention import AttentionFamily, AttentionProblem
from hal.opset.elementwise import ElementwiseProblem
from hal.opset.indexing import GatherProblem
from hal.select import SelectionPolicy
from hal.tensor import Tensor

MAX_ROWS = 128  # tokens of one step, all of which are sampled
NUM_BLOCKS = 96
BLOCK_SIZE = 16
_NUM_SLOTS = 8  # of sequences; behind them a slot for every other sampled row


class EngineModel:
    """A ModelUnderTest: every token of a step is sampled, so that all its logits can be read."""

    block_size = BLOCK_SIZE
    num_blocks = NUM_BLOCKS
    max_blocks_per_seq = MAX_POSITIONS // BLOCK_SIZE

    def __init__(self, assembled: Assembled, device: Device) -> None:
        self._assembled = assembled
        self._device = device
        self._num_steps = 0

    def variant_kernels(self) -> tuple[str, ...]:
        """The chosen kernels that sum and do not claim to be batch-invariant, as op=kernel."""
        selections = self._assembled.binder.selector.report()
        return tuple(
            f"{s.op}={s.kernel.name}"
            for s in selections
            if not s.kernel.traits.is_batch_invariant(s.problem)
        )

    def kernels(self) -> dict[str, str]:
        """Op -> the kernel chosen for it; the first where an op has several sites."""
        found: dict[str, str] = {}
        for selection in self._assembled.binder.selector.report():
            found.setdefault(selection.op, selection.kernel.name)
        return found

    def kv_caches(self) -> tuple[Tensor, ...]:
        return self._assembled.runner.kv_caches

    def num_graphs(self) -> int:
        """How many sizes of steps were captured by now."""
        graphs = self._assembled.runner.graphs
        return 0 if graphs is None else graphs.num_graphs

    def poison(self) -> None:
        families = self._assembled.decoder.attention_families
        for family, kv in zip(families, self.kv_caches(), strict=True):
            dtype = family.problem.kv_storage
            problem = GatherProblem(width=kv.shape[-1], dtype=dtype)
            values = poison(tuple(kv.shape), dtype)
            self._assembled.binder.bind(opset.store, problem)(values, kv)

    def submit(self, step: ModelStep) -> StepOutput:
        self._num_steps += 1
        batch = _batch(step, self._num_steps)
        runner = self._assembled.runner
        result = runner.submit(batch).wait()
        logits = self._device.download(runner.sampler.logits.rows(batch.num_samples))
        last = np.cumsum(batch.q_lens) - 1
        return StepOutput(np.array(logits, dtype=np.float64), result.token_ids[last, 0])


def _batch(step: ModelStep, number: int) -> Batch:
    """What the scheduler would send, except that every row is sampled."""
    q_lens = np.array([len(part.token_ids) for part in step.parts], dtype=np.int32)
    positions = np.concatenate([_positions(part) for part in step.parts])
    num_tokens = len(positions)
    # Each part's last token into its sequence's slot, every other row into one of its own.
    sample_slots = np.arange(_NUM_SLOTS, _NUM_SLOTS + num_tokens, dtype=np.int32)
    sample_slots[np.cumsum(q_lens) - 1] = [part.slot for part in step.parts]
    return Batch(
        step=number,
        slots=np.array([part.slot for part in step.parts], dtype=np.int32),
        q_lens=q_lens,
        seq_lens=np.array([p.start for p in step.parts], dtype=np.int32) + q_lens,
        token_ids=np.concatenate([part.token_ids for part in step.parts]),
        positions=positions,
        block_updates=step.block_updates,
        block_copies=step.block_copies,
        sample_index=np.arange(num_tokens, dtype=np.int32),
        sample_slots=sample_slots,
        sampling=_greedy(num_tokens),
    )


def _positions(part: Part) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.arange(part.start, part.start + len(part.token_ids), dtype=np.int32)


def _greedy(num_rows: int) -> SamplingBatch:
    zeros, ints = np.zeros(num_rows, np.float32), np.zeros(num_rows, np.int32)
    no_ids, no_values = np.empty(0, np.int32), np.empty(0, np.float32)
    return SamplingBatch(
        settings=SamplingSettings(
            temperature=zeros,
            top_k=ints,
            top_p=np.ones(num_rows, np.float32),
            min_p=zeros,
            seeds=np.zeros(num_rows, np.uint64),
            num_logprobs=np.full(num_rows, -1, np.int32),
            presence=zeros,
            frequency=zeros,
            repetition=np.ones(num_rows, np.float32),
        ),
        token_index=ints,
        bias_rows=no_ids,
        bias_ids=no_ids,
        bias_values=no_values,
        penalty_rows=no_ids,
        penalty_ids=no_ids,
        penalty_counts=no_ids,
    )


class EngineLayer:
    """A LayerUnderTest: one layer of the model, called as its decoder calls it."""

    def __init__(self, layer: Layer, binder: Binder, problem: AttentionProblem, width: int) -> None:
        self._layer = layer
        self.problem = problem
        self.family: AttentionFamily = layer.attention.family
        # The decoder's own, by their names: it is not running meanwhile.
        self._hidden: Buffer = binder.arena.buffer("hidden", width, problem.dtype)
        self._delta: Buffer = binder.arena.buffer("delta", width, problem.dtype)
        self._add = binder.bind(opset.add, ElementwiseProblem(width=width, dtype=problem.dtype))

    def __call__(self, x: Tensor, positions: Tensor, kv: Tensor, out: Tensor) -> None:
        rows = x.shape[0]
        hidden, delta = self._hidden.rows(rows), self._delta.rows(rows)
        self._layer.attention(hidden, positions, kv, delta, self._layer.attention_norm.of(x, None))
        self._layer.mlp(hidden, delta, self._layer.mlp_norm.of(delta, x))
        self._add(x, delta, out)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A tiny model on the device: whole, and layer by layer. read_bytes: of its checkpoint."""

    model: EngineModel
    layers: tuple[EngineLayer, ...]
    resolved: ResolvedConfig
    read_bytes: int


@contextmanager
def model_folder(model: TinyModel) -> Iterator[Path]:
    """The checkpoint of a tiny model, for as long as it is read."""
    with tempfile.TemporaryDirectory(prefix="hal-conform-") as name:
        write_model(model, Path(name))
        yield Path(name)


def load(
    model: TinyModel,
    device: Device,
    *,
    enforce_eager: bool = False,
    deterministic: bool = False,
    collective: Collective | None = None,
) -> Loaded:
    """Through the engine's own config and checkpoint readers; raises HalError as they do.

    collective: of one rank of several, which all must load and run the same
    """
    with model_folder(model) as folder:
        config = read_model_config(folder, MODELS.keys())
        resolved = _resolve(config, model, device, enforce_eager, deterministic)
        selector = make_selector(device.capabilities, SelectionPolicy(deterministic=deterministic))
        assembled = assemble(config, resolved, selector, collective or device.collective(), device)
        width, binder = config.hidden_size, assembled.binder
        layers = tuple(
            EngineLayer(layer, binder, layer.attention.family.problem, width)
            for layer in assembled.decoder.layers
        )
        assembled.decoder.parameters.allocate(device)
        binder.arena.allocate(device)
        assembled.runner.start(NUM_BLOCKS)
        with CheckpointReader(folder) as reader:
            load_weights(assembled.decoder.parameters, reader, SilentProgress())
            read_bytes = reader.num_bytes_read
        device.synchronize()
    return Loaded(EngineModel(assembled, device), layers, assembled.resolved, read_bytes)


def _resolve(
    config: ModelConfig,
    model: TinyModel,
    device: Device,
    enforce_eager: bool,
    deterministic: bool,
) -> ResolvedConfig:
    settings = EngineConfig(
        enforce_eager=enforce_eager,
        deterministic=deterministic,
        dtype=str(model.dtype),
        max_num_seqs=_NUM_SLOTS + MAX_ROWS,
        max_num_batched_tokens=_NUM_SLOTS + MAX_ROWS,
        max_model_len=MAX_POSITIONS,
        block_size=BLOCK_SIZE,
    )
    limits = ModelLimits(dtype=model.dtype, max_position_embeddings=config.max_position_embeddings)
    return resolve(settings, device.capabilities, limits)
