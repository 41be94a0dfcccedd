"""Shows what each site of a model computes while it runs: to find where two devices part ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hal.engine.layers.decoder import Layer
from hal.tensor import Tensor

Observe = Callable[[str, Tensor], None]
"""Gets a site's name ("layer 3 attention") and its output, [num_tokens, hidden_size]."""


class Tapped:
    """A half of a layer that shows its normed input and its output; everything else is its own."""

    def __init__(self, half: Any, name: str, observe: Observe) -> None:
        self._half = half
        self._name = name
        self._observe = observe

    def __call__(self, x: Tensor, *arguments: Any) -> None:
        self._half(x, *arguments)
        out, _norm = arguments[-2:]  # last in both halves
        self._observe(f"{self._name}_norm", x)
        self._observe(self._name, out)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._half, name)


def tap_layers(layers: Sequence[Layer], observe: Observe) -> tuple[Layer, ...]:
    """The same layers; from now on `observe` sees every output in the order of execution."""
    return tuple(_tap_layer(layer, f"layer {index}", observe) for index, layer in enumerate(layers))


def _tap_layer(layer: Layer, where: str, observe: Observe) -> Layer:
    halves: dict[str, Any] = {
        name: Tapped(getattr(layer, name), f"{where} {name}", observe)
        for name in ("attention", "mlp")
    }
    return replace(layer, **halves)
