"""Stream a checkpoint into a model's parameters, straight from the mapped file to its place."""

from __future__ import annotations

from collections.abc import Iterable

from hal.engine.layers.parameters import Parameters
from hal.engine.progress import Progress
from hal.engine.weights import CheckpointReader, check_names


def load_weights(
    parameters: Parameters,
    reader: CheckpointReader,
    progress: Progress,
    ignorable: Iterable[str] = (),
) -> None:
    """Fill every parameter; they must be allocated. Raises WeightsError before a byte is read
    when names or shapes do not match."""
    expected = parameters.shapes
    check_names(expected, reader, ignorable)
    names = [name for name in reader.names() if name in expected]
    progress.start(sum(reader.num_bytes(name) for name in names))
    for name in names:
        parameter = parameters[name]
        parameter.load(reader.read(name, transposed=parameter.is_transposed))
        progress.advance(reader.num_bytes(name))
    progress.finish()
