"""The model that a plan is about: config.json, and tensor headers where weights are there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hal.config import ModelLimits
from hal.engine.checkpoint import locate_model
from hal.engine.config_fields import ConfigFields
from hal.engine.model_config import CONFIG_FILE, ModelConfig, parse_model_config
from hal.engine.models import MODELS
from hal.engine.weights import HARMLESS_NAMES, CheckpointReader
from hal.errors import ConfigError, HalError, ModelError
from hal.planning.architectures import read_shape
from hal.planning.quantization import Scheme, stored_scheme
from hal.planning.shape import ModelShape

# Config and headers may differ by what exporters add; more than this is said.
_TOLERANCE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """engine: what start-up would read, None where it refuses; cannot_run: its reason.

    header_elements: numbers stored in the weight files, None where there are none to read
    """

    name: str
    shape: ModelShape
    stored: Scheme | None
    engine: ModelConfig | None
    cannot_run: str
    header_elements: int | None
    notes: tuple[str, ...] = ()

    @property
    def limits(self) -> ModelLimits:
        return ModelLimits(
            dtype=self.shape.dtype, max_position_embeddings=self.shape.max_position_embeddings
        )


def read_planned_model(model: str) -> PlannedModel:
    """Read `model`: a folder, a config.json, hal-tiny, or a hub id that is in the cache.

    Weights are never read and nothing is downloaded. Raises ModelError or ConfigError.
    """
    path = _config_path(model)
    fields = ConfigFields.read(path)
    shape, stored = read_shape(fields), stored_scheme(fields)
    engine, cannot_run = _engine_config(fields)
    elements, notes = None, list(_notes(shape, stored))
    if any(path.parent.glob("*.safetensors")):
        try:
            elements = _header_elements(path.parent)
        except HalError as error:
            notes.append(f"tensor headers were not checked: {error.message}")
    if elements is not None and stored is None:
        notes += _difference(shape, elements)
    return PlannedModel(
        name=model,
        shape=shape,
        stored=stored,
        engine=engine,
        cannot_run=cannot_run,
        header_elements=elements,
        notes=tuple(notes),
    )


def _config_path(model: str) -> Path:
    try:
        found = locate_model(model, offline=True)
        path = found / CONFIG_FILE if found.is_dir() else found
        is_there = path.is_file()
    except OSError as error:
        raise ModelError(f"{model[:200]} cannot be read: {error.strerror}") from error
    except ModelError as error:
        if "hub cache" not in error.message:
            raise
        raise ModelError(
            f"{model} is neither a folder nor in the hub cache, and planning downloads nothing. "
            f"Fetch its config.json once: hf download {model} {CONFIG_FILE}"
        ) from error
    if not is_there:
        raise ModelError(f"{found} is not a model folder: it has no {CONFIG_FILE}")
    return path


def _engine_config(fields: ConfigFields) -> tuple[ModelConfig | None, str]:
    """What start-up would make of it, or why it refuses."""
    model_type = fields.text("model_type", default="")
    if model_type not in MODELS:
        return None, f"architecture {model_type!r} cannot be run yet, only planned"
    try:
        config = parse_model_config(fields, MODELS.keys())
    except (ModelError, ConfigError) as error:
        return None, f"cannot be run yet, only planned: {error.message}"
    if len(set(config.windows)) > 1:
        return None, "layers with and without a window in one model cannot be run yet, only planned"
    return config, ""


def _notes(shape: ModelShape, stored: Scheme | None) -> tuple[str, ...]:
    notes = [shape.guess] if shape.guess else []
    notes += shape.notes
    if not shape.has_dtype and stored is None:
        notes.append(
            "config.json names no dtype: float32, as start-up reads it; --dtype changes that"
        )
    return tuple(notes)


def _header_elements(folder: Path) -> int:
    """Numbers in the weight files, counted from their headers."""
    total = 0
    with CheckpointReader(folder) as reader:
        for name in reader.names():
            if any(re.search(pattern, name) for pattern in HARMLESS_NAMES):
                continue
            size = 1
            for length in reader.shape(name):
                size *= length
            total += size
    return total


def _difference(shape: ModelShape, elements: int) -> list[str]:
    expected = shape.num_parameters
    if abs(elements - expected) <= _TOLERANCE * expected:
        return []
    return [
        f"the weight files hold {elements:,} numbers, config.json means {expected:,} "
        f"({(elements - expected) / expected:+.1%}); the plan follows config.json"
    ]
