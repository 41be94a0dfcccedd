"""Which layers see only the latest tokens, by each family's own keys."""

from __future__ import annotations

from hal.engine.config_fields import ConfigFields
from hal.errors import ModelError

Windows = tuple[int | None, ...]


def no_windows(num_layers: int) -> Windows:
    return (None,) * num_layers


def every_layer(fields: ConfigFields, num_layers: int, default: int | None) -> Windows:
    """Mistral: all layers have the window; a written null means none has."""
    return (_window(fields, default),) * num_layers


def switched(fields: ConfigFields, num_layers: int, default: int) -> Windows:
    """Qwen: off unless use_sliding_window; then layer_types, else from max_window_layers on."""
    if not fields.flag("use_sliding_window", default=False):
        return no_windows(num_layers)
    window = _window(fields, default)
    by_type = _by_layer_types(fields, num_layers, window)
    if by_type is not None:
        return by_type
    first = fields.integer("max_window_layers", default=28)
    return tuple(window if layer >= first else None for layer in range(num_layers))


def alternating(fields: ConfigFields, num_layers: int, default: int, pattern: int) -> Windows:
    """Gemma: every `pattern`-th layer sees everything, the others a window."""
    window = _window(fields, default)
    by_type = _by_layer_types(fields, num_layers, window)
    if by_type is not None:
        return by_type
    period = fields.positive("sliding_window_pattern", default=pattern)
    return tuple(None if (layer + 1) % period == 0 else window for layer in range(num_layers))


def _window(fields: ConfigFields, default: int | None) -> int | None:
    if fields.has("sliding_window") and fields.first("sliding_window") is None:
        return None
    window = fields.optional_integer("sliding_window")
    if window is None:
        return default
    if window <= 0:
        raise ModelError(f"{fields.source}: 'sliding_window' must be above 0; it is {window}")
    return window


def _by_layer_types(fields: ConfigFields, num_layers: int, window: int | None) -> Windows | None:
    kinds = fields.texts("layer_types")
    if not kinds:
        return None
    if len(kinds) != num_layers:
        raise ModelError(
            f"{fields.source}: 'layer_types' has {len(kinds)} entries for {num_layers} layers"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
