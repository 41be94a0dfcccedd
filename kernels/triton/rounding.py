"""Activations as int8 codes with their scales: a launch in front of a product of codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from hal.binding import Binder
from hal.dtypes import DType
from hal.kernels.reference.tensors import as_torch
from hal.kernels.triton.program import Program, next_power_of_2
from hal.kernels.triton.tuning import launch_options
from hal.weights import ACTIVATION_GROUP

_ROUND_TOKENS = Program("rounding", "round_tokens")
_ROUND_GROUPS = Program("rounding", "round_groups")


class Rounding(ABC):
    """x as int8 codes with their scales, in the step arena; a row of codes is `width` long.

    top_k: rows for each token of a step
    """

    width: int

    def __init__(self, width: int, num_scales: int, binder: Binder, top_k: int) -> None:
        self.width = width
        rows = binder.arena.max_tokens * top_k
        self._codes = binder.arena.buffer("x_codes", width, DType.INT8, rows)
        self._scales = binder.arena.buffer("x_scales", num_scales, DType.FLOAT32, rows)
        self._options: dict[str, Any] = {
            **launch_options(binder.selector.caps, "rounding"),
            "enable_fp_fusion": False,  # src/rounding.py
        }

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scales = as_torch(self._codes.rows(len(x))), as_torch(self._scales.rows(len(x)))
        self._launch(x, codes, scales)
        return codes, scales

    @abstractmethod
    def _launch(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None: ...


class TokenRounding(Rounding):
    """A scale for each token."""

    def __init__(self, columns: int, binder: Binder, top_k: int = 1) -> None:
        super().__init__(columns, 1, binder, top_k)
        block = min(self._options["BLOCK"], next_power_of_2(columns))
        self._options |= {"WIDTH": columns, "BLOCK": block}

    def _launch(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        _ROUND_TOKENS.launch((len(x),), x, codes, scales, **self._options)


class GroupRounding(Rounding):
    """A scale for each ACTIVATION_GROUP columns, zeros up to `padded_columns`."""

    def __init__(self, columns: int, padded_columns: int, binder: Binder, top_k: int = 1) -> None:
        super().__init__(padded_columns, padded_columns // ACTIVATION_GROUP, binder, top_k)
        block = min(self._options["BLOCK"], next_power_of_2(padded_columns))
        self._num_pieces = -(-padded_columns // block)
        self._options |= {
            "WIDTH": columns,
            "PADDED": padded_columns,
            "GROUP": ACTIVATION_GROUP,
            "BLOCK": block,
        }

    def _launch(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        _ROUND_GROUPS.launch((len(x), self._num_pieces), x, codes, scales, **self._options)
