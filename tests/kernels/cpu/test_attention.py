"""Paged attention where conformance cases do not reach: long contexts, wide heads, many heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hal.conformance import oracle
from hal.conformance.attention_cases import stored_codes
from hal.conformance.limits import LIMITS, relative_l2
from hal.conformance.paged import PagedCache, SequenceStep
from hal.conformance.stage import Float64, Stage
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.attention import NativeAttention
from hal.kernels.reference.kv_codes import to_codes
from hal.opset.attention import AttentionProblem, AttentionSpec

DTYPES = [DType.FLOAT32, DType.BFLOAT16]
CODES = "codes"
CACHES = [*DTYPES, CODES]
PLAIN = AttentionProblem(
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    dtype=DType.BFLOAT16,
    block_size=16,
    spec=AttentionSpec(scale=0.125),
)
# Decodes of one split and of several, chunks short enough to split and not, a fresh prefill.
MIXED = [(1, 1), (1, 64), (1, 700), (3, 1300), (40, 600), (70, 70), (1, 513)]


def with_cache(problem: AttentionProblem, cache: DType | str) -> AttentionProblem:
    """The problem in that dtype, or in bfloat16 over a cache of codes."""
    if isinstance(cache, DType):
        return replace(problem, dtype=cache)
    spec = replace(problem.spec, kv_dtype=DType.INT8)
    return replace(problem, dtype=DType.BFLOAT16, spec=spec)


def skip_odd_codes(head_dim: int, cache: DType | str) -> None:
    if cache == CODES and head_dim % 4 != 0:
        pytest.skip(f"codes are multiplied by fours; head_dim is {head_dim}")


class Scene:
    """Random tokens of some sequences in a paged cache full of NaN elsewhere."""

    def __init__(self, stage: Stage, problem: AttentionProblem, seq_lens: list[int]) -> None:
        self.problem, self._stage = problem, stage
        self.family = NativeAttention(problem, stage.binder)
        self.cache = PagedCache(stage, self.family, problem, seq_lens)
        rows = [stage.normal((n, problem.qkv_width), problem.dtype).host for n in seq_lens]
        self.qkv = rows
        self.write(seq_lens)

    def write(self, seq_lens: list[int]) -> None:
        """Every token's keys and values."""
        self.cache.plan([SequenceStep(n, n) for n in seq_lens], list(range(len(seq_lens))))
        self.family.write_kv(self._place(np.concatenate(self.qkv)), self.cache.kv)

    def attend(self, steps: list[tuple[int, int]], seqs: list[int] | None = None) -> Float64:
        """Each (q_len, seq_len) names the tokens seq_len - q_len .. of its sequence."""
        seqs = list(range(len(steps))) if seqs is None else seqs
        self.cache.plan([SequenceStep(*step) for step in steps], seqs)
        rows = [self.qkv[s][n - q : n] for s, (q, n) in zip(seqs, steps, strict=True)]
        queries = np.concatenate(rows)
        p = self.problem
        queries[:, p.num_heads * p.head_dim :] = np.nan
        out = self._stage.poisoned((len(queries), p.num_heads * p.head_dim), p.dtype)
        self.family.attend(self._place(queries), self.cache.kv, out)
        return self._stage.read(out)

    def expected(self, steps: list[tuple[int, int]]) -> Float64:
        p = self.problem
        results = []
        for rows, (q_len, seq_len) in zip(self.qkv, steps, strict=True):
            heads = rows[:seq_len].reshape(seq_len, -1, p.head_dim)
            q, k, v = np.split(heads, [p.num_heads, p.num_heads + p.num_kv_heads], axis=1)
            if p.kv_dtype is DType.INT8:
                k, v = stored_codes(k, p.kv_dtype), stored_codes(v, p.kv_dtype)
            results.append(oracle.attend(q[seq_len - q_len :], k, v, p.spec).reshape(q_len, -1))
        return np.concatenate(results)

    def _place(self, rows: Float64) -> torch.Tensor:
        placed = self._stage.place(rows, self.problem.dtype).device
        assert isinstance(placed, torch.Tensor)
        return placed


def check(stage: Stage, problem: AttentionProblem, steps: list[tuple[int, int]]) -> None:
    scene = Scene(stage, problem, [seq_len for _, seq_len in steps])
    actual, expected = scene.attend(steps), scene.expected(steps)
    assert relative_l2(actual, expected) < LIMITS[problem.dtype]


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec(scale=0.125),
        AttentionSpec(scale=0.125, window=37),
        AttentionSpec(scale=0.125, window=600, softcap=5.0),
    ],
    ids=["full", "window", "window-softcap"],
)
def test_mixed_batch(stage: Stage, spec: AttentionSpec, cache: DType | str) -> None:
    check(stage, with_cache(replace(PLAIN, spec=spec), cache), MIXED)


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("head_dim", [2, 8, 40, 72, 80, 96, 128, 256])
def test_head_dims(stage: Stage, head_dim: int, cache: DType | str) -> None:
    skip_odd_codes(head_dim, cache)
    spec = AttentionSpec(scale=head_dim**-0.5)
    problem = with_cache(replace(PLAIN, head_dim=head_dim, spec=spec), cache)
    check(stage, problem, [(1, 70), (11, 130), (9, 9)])


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (14, 2), (71, 1)], ids=str)
def test_head_groups(stage: Stage, heads: tuple[int, int], cache: DType | str) -> None:
    """71 heads of one KV head do not fit one item: its rows are cut across a token."""
    problem = replace(PLAIN, num_heads=heads[0], num_kv_heads=heads[1])
    check(stage, with_cache(problem, cache), [(1, 70), (5, 600)])


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("block_size", [16, 48, 128])
def test_block_sizes(stage: Stage, block_size: int, cache: DType | str) -> None:
    """Tiles of 64 keys start and end inside blocks."""
    check(stage, with_cache(replace(PLAIN, block_size=block_size), cache), [(1, 700), (30, 200)])


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("window", [None, 90])
def test_same_bits_in_decode_chunk_and_prefill(
    stage: Stage, window: int | None, cache: DType | str
) -> None:
    spec = AttentionSpec(scale=0.125, window=window)
    scene = Scene(stage, with_cache(replace(PLAIN, spec=spec), cache), [650, 40])
    prefill = scene.attend([(650, 650), (40, 40)])
    for first, last in ((500, 530), (630, 650), (511, 512), (512, 513), (649, 650)):
        chunk = scene.attend([(last - first, last)], [0])
        assert np.array_equal(chunk, prefill[first:last]), f"tokens {first} to {last}"


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("head_dim", [2, 40, 64, 80])
@pytest.mark.parametrize("group", range(1, 10))
def test_same_bits_for_few_rows_and_many(
    stage: Stage, group: int, head_dim: int, cache: DType | str
) -> None:
    """Tiles of one to eight rows."""
    skip_odd_codes(head_dim, cache)
    plain = replace(PLAIN, num_heads=group, num_kv_heads=1, head_dim=head_dim)
    problem = with_cache(plain, cache)
    scene = Scene(stage, problem, [600])
    many = scene.attend([(100, 600)])
    for last in (501, 512, 513, 577, 600):
        few = scene.attend([(1, last)])
        assert np.array_equal(few, many[last - 501 : last - 500]), f"token {last - 1}"


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("group", [3, 9])
def test_every_length_up_to_two_tiles(stage: Stage, group: int, cache: DType | str) -> None:
    """The slot behind a sequence's last key holds NaN."""
    problem = with_cache(replace(PLAIN, num_heads=group, num_kv_heads=1), cache)
    check(stage, problem, [(1, seq_len) for seq_len in range(1, 131)])


def test_items_larger_than_a_tile_of_rows(stage: Stage) -> None:
    """96 rows, or 32 tokens of 3 heads; those before a tile of keys are left out of it."""
    scene = Scene(stage, PLAIN, [300])
    whole, expected = scene.attend([(300, 300)]), scene.expected([(300, 300)])
    assert relative_l2(whole, expected) < LIMITS[PLAIN.dtype]
    for first, last in ((1, 33), (33, 65), (60, 92), (200, 300)):
        chunk = scene.attend([(last - first, last)])
        assert np.array_equal(chunk, whole[first:last]), f"tokens {first} to {last}"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_threads_do_not_change_a_bit(stage: Stage, cache: DType | str) -> None:
    scene = Scene(stage, with_cache(PLAIN, cache), [seq_len for _, seq_len in MIXED])
    alone = scene.attend(MIXED)
    torch.set_num_threads(2)
    assert np.array_equal(scene.attend(MIXED), alone)


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("group", [3, 9])
def test_a_query_of_nan_fails_its_own_row_only(
    stage: Stage, group: int, cache: DType | str
) -> None:
    """A NaN must reach the logits, where it fails its request; its neighbours must not notice."""
    problem = with_cache(replace(PLAIN, num_heads=group, num_kv_heads=1), cache)
    scene = Scene(stage, problem, [70, 70])
    clean = scene.attend([(1, 70), (1, 70)])
    scene.qkv[0][69, : problem.head_dim] = np.nan
    out = scene.attend([(1, 70), (1, 70)])
    assert np.isnan(out[0, : problem.head_dim]).all()
    assert np.array_equal(out[0, problem.head_dim :], clean[0, problem.head_dim :])
    assert np.array_equal(out[1], clean[1])


@pytest.mark.parametrize("cache", [DType.BFLOAT16, CODES], ids=str)
@pytest.mark.parametrize("group", [3, 9])
def test_weights_are_exact_enough(stage: Stage, group: int, cache: DType | str) -> None:
    """The error is that of rounding weights and output; a coarser exponential, or queries rounded
    to codes of 8 bits, would show in it."""
    problem = with_cache(replace(PLAIN, num_heads=group, num_kv_heads=1), cache)
    scene = Scene(stage, problem, [300])
    assert relative_l2(scene.attend([(300, 300)]), scene.expected([(300, 300)])) < 0.003


def test_large_scores_do_not_overflow(stage: Stage) -> None:
    """Scores of hundreds; e^89 is infinite."""
    check(stage, replace(PLAIN, dtype=DType.FLOAT32, spec=AttentionSpec(scale=4.0)), [(5, 90)])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["key", "value"])
def test_a_key_or_value_that_is_not_finite_shows_wherever_it_is_seen(
    stage: Stage, side: str, value: float
) -> None:
    """A code would hide it; its scale is NaN instead. Tokens before it and other sequences do not
    see it."""
    problem = with_cache(PLAIN, CODES)
    scene = Scene(stage, problem, [70, 70])
    clean = scene.attend([(70, 70), (70, 70)])
    heads = problem.num_heads + (0 if side == "key" else problem.num_kv_heads)
    scene.qkv[0][40, heads * problem.head_dim + 3] = value  # of the first KV head
    scene.write([70, 70])
    out = scene.attend([(70, 70), (70, 70)]).reshape(140, problem.num_heads, problem.head_dim)
    clean = clean.reshape(out.shape)
    assert np.isnan(out[40:70, :3]).all()
    assert np.array_equal(out[:40], clean[:40])
    assert np.array_equal(out[40:70, 3:], clean[40:70, 3:])
    assert np.array_equal(out[70:], clean[70:])


def test_codes_of_zeros_and_of_tiny_values_are_zero(stage: Stage) -> None:
    """Largest magnitudes up to 1e-30 have no finite inverse."""
    problem = with_cache(PLAIN, CODES)
    scene = Scene(stage, problem, [70])
    width = problem.num_heads * problem.head_dim
    scene.qkv[0][:, width:] = 0.0
    scene.qkv[0][::2, width:] = 1e-31
    scene.write([70])
    assert np.array_equal(scene.attend([(70, 70)]), np.zeros((70, width)))


def test_native_codes_are_those_of_the_reference(stage: Stage) -> None:
    """Bit for bit, through both layouts."""
    head_dim, tokens = 8, 16
    spec = AttentionSpec(scale=1.0, kv_dtype=DType.INT8)
    problem = replace(PLAIN, num_heads=1, num_kv_heads=1, head_dim=head_dim, spec=spec)
    scene = Scene(stage, problem, [tokens])
    kv = torch.zeros(scene.family.kv_shape(1), dtype=torch.int8)
    slots = torch.arange(tokens)
    rows = torch.from_numpy(scene.qkv[0]).bfloat16()
    native.load().write_kv(
        *(rows.data_ptr(), rows.stride(0), tokens, 1, kv.data_ptr(), 3, 1, 16, head_dim),
        *(slots.data_ptr(), 1, 1),
    )
    side = tokens * head_dim
    keys = (kv.flatten()[:side] ^ -128).view(head_dim // 4, tokens, 4).permute(1, 0, 2)
    values = kv.flatten()[side : 2 * side].view(tokens // 4, head_dim, 4).permute(0, 2, 1)
    scales = kv.flatten()[2 * side :].view(2, tokens, 2)
    for index, codes in enumerate((keys, values)):
        first = (1 + index) * head_dim
        expected = to_codes(rows[:, first : first + head_dim], DType.INT8)
        stored = torch.cat([codes.reshape(tokens, head_dim), scales[index]], dim=1)
        assert torch.equal(stored, expected)
