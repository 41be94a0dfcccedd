"""qk_norm_rope: partial rotations, odd head sizes, QK-norm, positions far apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hal.conformance import oracle
from hal.conformance.case import Case, Check, equal
from hal.conformance.limits import LIMITS
from hal.conformance.stage import Float64, Stage, Value
from hal.dtypes import DType
from hal.opset.attention import RopeProblem
from hal.select import Kernel

MAX_POSITIONS = 4096
EPS = 1e-6


def rope_table(stage: Stage, rotary_dim: int) -> Value:
    """[MAX_POSITIONS, rotary_dim]: cosines, then sines of distinct frequencies."""
    frequency = 10_000.0 ** -(np.arange(rotary_dim // 2) / max(1, rotary_dim // 2))
    angle = np.arange(MAX_POSITIONS)[:, None] * frequency
    return stage.place(np.concatenate([np.cos(angle), np.sin(angle)], axis=1), DType.FLOAT32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeCase(Case):
    """Rotated in place: values keep their bits."""

    problem: RopeProblem

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        p = self.problem
        table = rope_table(stage, p.rotary_dim)
        weights = [stage.normal((p.head_dim,), p.dtype) for _ in range(2)] if p.has_norm else []
        width = (p.num_heads + 2 * p.num_kv_heads) * p.head_dim
        qkv = stage.normal((17, width), p.dtype)
        positions = stage.rng.integers(0, MAX_POSITIONS, 17).astype(np.int32)
        positions[:2] = (0, MAX_POSITIONS - 1)
        q_norm, k_norm = (w.host for w in weights) if weights else (None, None)
        expected = oracle.qk_norm_rope(qkv.host, p, positions, table.host, q_norm, k_norm, EPS)
        q_device, k_device = (w.device for w in weights) if weights else (None, None)
        call = stage.bind(kernel, p)
        most: Float64 | None = None
        for num_tokens in (17, 2, 1):
            rows = stage.place(qkv.host[:num_tokens], p.dtype).device
            call(
                rows,
                p,
                stage.indices(positions[:num_tokens]),
                table.device,
                q_device,
                k_device,
                EPS,
            )
            result = stage.read(rows)
            most = result if most is None else most
            yield from self._checks(result, expected[:num_tokens])
            if kernel.traits.is_batch_invariant(self.problem):
                yield equal(f"batch-invariant at T={num_tokens}", result, most[:num_tokens])

    def _checks(self, result: Float64, expected: Float64) -> Iterator[Check]:
        p = self.problem
        rotated = (p.num_heads + p.num_kv_heads) * p.head_dim
        heads = (len(result), -1, p.head_dim)
        yield self.close(
            f"queries and keys, T={len(result)}",
            result[:, :rotated].reshape(heads),
            expected[:, :rotated].reshape(heads),
        )
        yield equal("values", result[:, rotated:], expected[:, rotated:])


def rope_cases() -> Iterator[RopeCase]:
    shapes = ((4, 2, 64, 64), (4, 4, 80, 32), (8, 1, 96, 96), (2, 1, 128, 64), (3, 3, 256, 256))
    for dtype in LIMITS:
        for num_heads, num_kv_heads, head_dim, rotary_dim in shapes:
            for has_norm in (False, True):
                yield RopeCase(
                    op="qk_norm_rope",
                    name=f"h{num_heads}-kv{num_kv_heads}-d{head_dim}-r{rotary_dim}"
                    f"{'-norm' if has_norm else ''}",
                    problem=RopeProblem(
                        num_heads=num_heads,
                        num_kv_heads=num_kv_heads,
                        head_dim=head_dim,
                        rotary_dim=rotary_dim,
                        has_norm=has_norm,
                        dtype=dtype,
                    ),
                    dtype=dtype,
                )
