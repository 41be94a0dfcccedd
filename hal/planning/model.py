"""The model that a plan is about: config.json, and tensor headers where weights are there."""

from __future__ import annotations

import math
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
from hal.planning.quantization import Scheme, stored_scheme, weight_bytes
from hal.planning.shape import ModelShape

# Config and headers may differ by what exporters add; more than this is said.
_TOLERANCE = 0.001
_PACKED_TOLERANCE = 0.01  # some add empty biases to quantised layers


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """engine: what start-up would read, None where it refuses; cannot_run: its reasons.

    header_elements: numbers stored in the weight files, None where there are none to read
    """

    name: str
    shape: ModelShape
    stored: Scheme | None
    engine: ModelConfig | None
    cannot_run: tuple[str, ...]
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
    path = config_path(model)
    fields = ConfigFields.read(path)
    shape, stored = read_shape(fields), stored_scheme(fields)
    cannot_run = _why_not_run(fields, stored)
    headers, notes = None, list(_notes(shape, stored))
    if any(path.parent.glob("*.safetensors")):
        try:
            headers = _read_headers(path.parent)
            notes += _difference(shape, stored, headers)
        except HalError as error:
            notes.append(f"tensor headers were not checked: {error.message}")
    return PlannedModel(
        name=model,
        shape=shape,
        stored=stored,
        engine=None if cannot_run else parse_model_config(fields, MODELS.keys()),
        cannot_run=cannot_run,
        header_elements=None if headers is None else headers.num_elements,
        notes=tuple(notes),
    )


def config_path(model: str) -> Path:
    """Its config.json, also without any weights beside; raises ModelError, downloads nothing."""
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


def _why_not_run(fields: ConfigFields, stored: Scheme | None) -> tuple[str, ...]:
    """Why start-up would refuse this config.json; nothing where it would not."""
    model_type = fields.text("model_type", default="")
    reasons = []
    if model_type not in MODELS:
        name = repr(model_type) if model_type else "without a model_type"
        reasons.append(f"architecture {name} cannot be run yet, only planned")
    if stored is not None:
        reasons.append(f"not supported yet: a checkpoint quantized with {stored.name}")
    if reasons:
        return tuple(reasons)
    try:
        config = parse_model_config(fields, MODELS.keys())
    except (ModelError, ConfigError) as error:
        return (f"cannot be run yet, only planned: {error.message}",)
    if len(set(config.windows)) > 1:
        return ("cannot be run yet, only planned: layers with and without a window in one model",)
    return ()


def _notes(shape: ModelShape, stored: Scheme | None) -> tuple[str, ...]:
    notes = [shape.guess] if shape.guess else []
    notes += shape.notes
    if not shape.has_dtype:
        notes.append(
            "config.json names no dtype: float32, as start-up reads it; --dtype changes that"
        )
    return tuple(notes)


@dataclass(frozen=True, slots=True)
class _Headers:
    """All weight files together."""

    num_elements: int
    num_bytes: int


def _read_headers(folder: Path) -> _Headers:
    num_elements = num_bytes = 0
    with CheckpointReader(folder) as reader:
        for name in reader.names():
            if not any(re.search(pattern, name) for pattern in HARMLESS_NAMES):
                num_elements += math.prod(reader.shape(name))
                num_bytes += reader.num_bytes(name)
    return _Headers(num_elements, num_bytes)


def _difference(shape: ModelShape, stored: Scheme | None, headers: _Headers) -> list[str]:
    """Numbers are compared, and bytes where several numbers are packed into one."""
    if stored is None:
        found, expected, unit = headers.num_elements, shape.num_parameters, "numbers"
    else:
        found, unit = headers.num_bytes, "bytes"
        expected = sum(weight_bytes(w, 1, shape.dtype, stored) for w in shape.weights)
    tolerance = _TOLERANCE if stored is None else _PACKED_TOLERANCE
    if abs(found - expected) <= tolerance * expected:
        return []
    return [
        f"the weight files hold {found:,} {unit}, config.json means {expected:,} "
        f"({(found - expected) / expected:+.1%}); the plan follows config.json"
    ]
