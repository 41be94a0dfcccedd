"""Embeddings as the Python API and the server give them out, in vLLM's shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hal.errors import RequestError
from hal.sampling_params import SamplingParams

POOLING_PARAMS = SamplingParams(max_tokens=1, temperature=0.0)
"""Of a request that wants an embedding; its one token means nothing."""


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """embedding: [dimensions] floats."""

    embedding: list[float]


@dataclass(frozen=True, slots=True)
class EmbeddingRequestOutput:
    """A prompt and its embedding."""

    request_id: str
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput


def check_dimensions(dimensions: int | None, hidden_size: int) -> None:
    """Raises RequestError."""
    if dimensions is not None and not 1 <= dimensions <= hidden_size:
        raise RequestError(
            f"dimensions must be from 1 to {hidden_size}, the model's hidden size; "
            f"got {dimensions}",
            param="dimensions",
        )


def finished_embedding(
    data: bytes, dimensions: int | None, *, normalize: bool = True
) -> NDArray[np.float32]:
    """What the engine pooled, cut to its first `dimensions` and then scaled to length 1."""
    vector = np.frombuffer(data, "<f4")[:dimensions]
    if not normalize:
        return vector
    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / length).astype(np.float32) if length > 0 else vector
