"""Stream a checkpoint into a model's parameters, straight from the mapped file to its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hal.engine.layers.parameters import Parameter, Parameters, WeightFamily
from hal.engine.progress import Progress
from hal.engine.weights import CheckpointReader, check_names
from hal.pack_cache import MADE, KeptWeight, PackCache


def load_weights(
    parameters: Parameters,
    reader: CheckpointReader,
    progress: Progress,
    ignorable: Iterable[str] = (),
    cache: PackCache | None = None,
) -> str:
    """Fill every parameter; they must be allocated. Returns where the bytes came from, in words.
    Raises WeightsError before a byte is read when names or shapes do not match.

    cache: where families that pack or quantise find their bytes from an earlier start, and where
        they are kept for the next one
    """
    parameters.settle(reader.__contains__)
    expected = parameters.shapes
    check_names(expected, reader, ignorable)
    names = [name for name in reader.names() if name in expected]
    if cache is None:
        _load_tensors(parameters, reader, progress, names)
        return MADE
    kept = kept_weights(parameters, reader)
    packed = cache.open(reader.paths, list(kept.values()))
    rest = [name for name in names if parameters[name].family not in kept]
    if packed.is_found:
        progress.start(packed.num_bytes + _num_bytes(parameters, reader, rest))
        if packed.read(progress.advance):
            _stream(parameters, reader, progress, rest)
            progress.finish()
            return packed.outcome
    _load_tensors(parameters, reader, progress, names)
    packed.keep()
    return packed.outcome


def kept_weights(
    parameters: Parameters, reader: CheckpointReader
) -> dict[WeightFamily | None, KeptWeight]:
    """The families whose stored form can be kept, in the order of the layers."""
    filled: dict[WeightFamily, list[Parameter]] = {}
    for parameter in parameters:
        if parameter.family is not None:
            filled.setdefault(parameter.family, []).append(parameter)
    kept: dict[WeightFamily | None, KeptWeight] = {}
    for family, own in filled.items():
        form = family.stored()
        if form is not None:
            kept[family] = KeptWeight(
                form=form,
                module=type(family).__module__,
                tensors=tuple(map(_filling, own)),
                source_bytes=sum(reader.num_bytes(parameter.name) for parameter in own),
            )
    return kept


def _filling(parameter: Parameter) -> str:
    """What the tensor fills, for the key of the cache; its values are in the checkpoint's hash."""
    order = "transposed" if parameter.is_transposed else "as stored"
    return f"{parameter.name} {parameter.shape} {order} from row {parameter.first_row}"


def _load_tensors(
    parameters: Parameters, reader: CheckpointReader, progress: Progress, names: Sequence[str]
) -> None:
    progress.start(_num_bytes(parameters, reader, names))
    _stream(parameters, reader, progress, names)
    progress.finish()


def _num_bytes(parameters: Parameters, reader: CheckpointReader, names: Sequence[str]) -> int:
    """That this rank reads of these tensors."""
    return sum(reader.dtype(name).num_bytes(parameters[name].num_elements) for name in names)


def _stream(
    parameters: Parameters, reader: CheckpointReader, progress: Progress, names: Sequence[str]
) -> None:
    for name in names:
        parameter, before = parameters[name], reader.num_bytes_read
        for part in parameter.parts:
            part.load(
                reader.read(name, part.rows, part.columns, transposed=parameter.is_transposed)
            )
        progress.advance(reader.num_bytes_read - before)
