"""Every op once more in float64 numpy, from its definition; shares no code with any kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hal.opset.attention import AttentionSpec, RopeProblem
from hal.opset.elementwise import Activation

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def rms_norm(y: Float64, weight: Float64, eps: float) -> Float64:
    return np.asarray(y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + eps) * weight)


def layer_norm(y: Float64, weight: Float64, bias: Float64, eps: float) -> Float64:
    centred = y - np.mean(y, axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + eps) * weight + bias)


def activate(x: Float64, activation: Activation) -> Float64:
    match activation:
        case Activation.SILU:
            return x / (1.0 + np.exp(-x))
        case Activation.GELU:
            erf = np.vectorize(math.erf, otypes=[np.float64])
            return 0.5 * x * (1.0 + np.asarray(erf(x / math.sqrt(2.0))))
        case Activation.GELU_TANH:
            inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
            return 0.5 * x * (1.0 + np.tanh(inner))
        case Activation.RELU:
            return np.maximum(x, 0.0)


def rope(
    heads: Float64, positions: NDArray[np.int32], cos_sin: Float64, rotary_dim: int
) -> Float64:
    """heads [T, heads, head_dim], as a product with complex numbers of modulus 1."""
    half = rotary_dim // 2
    turn = cos_sin[positions, :half] + 1j * cos_sin[positions, half:]
    pairs = heads[..., :half] + 1j * heads[..., half:rotary_dim]
    turned = pairs * turn[:, None, :]
    return np.concatenate([turned.real, turned.imag, heads[..., rotary_dim:]], axis=-1)


def qk_norm_rope(
    qkv: Float64,
    problem: RopeProblem,
    positions: NDArray[np.int32],
    cos_sin: Float64,
    q_weight: Float64 | None,
    k_weight: Float64 | None,
    eps: float,
) -> Float64:
    """qkv [T, width] with query and key heads normalised and rotated."""
    result = qkv.copy()
    first = 0
    for num_heads, weight in ((problem.num_heads, q_weight), (problem.num_kv_heads, k_weight)):
        width = num_heads * problem.head_dim
        heads = qkv[:, first : first + width].reshape(len(qkv), num_heads, problem.head_dim)
        if weight is not None:
            heads = rms_norm(heads, weight, eps)
        rotated = rope(heads, positions, cos_sin, problem.rotary_dim)
        result[:, first : first + width] = rotated.reshape(len(qkv), width)
        first += width
    return result


def attend(q: Float64, k: Float64, v: Float64, spec: AttentionSpec) -> Float64:
    """One sequence: q [q_len, heads, dim], the last tokens of k, v [seq_len, kv_heads, dim].

    One query token and one head at a time: nothing to mask, so nothing masked wrongly.
    """
    q_len, num_heads, _ = q.shape
    seq_len, num_kv_heads, _ = k.shape
    out = np.empty_like(q)
    for token in range(q_len):
        position = seq_len - q_len + token
        first = 0 if spec.window is None else max(0, position - spec.window + 1)
        for head in range(num_heads):
            kv_head = head * num_kv_heads // num_heads
            keys = k[first : position + 1, kv_head]
            scores = keys @ q[token, head] * spec.scale
            if spec.softcap is not None:
                scores = np.tanh(scores / spec.softcap) * spec.softcap
            weights = np.exp(scores - scores.max())
            values = v[first : position + 1, kv_head]
            out[token, head] = weights @ values / weights.sum()
    return out


def log_softmax(logits: Float64) -> Float64:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def ranked(row: Float64) -> Int64:
    """Ids from the likeliest; of equal values the lower id first."""
    return np.lexsort((np.arange(len(row)), -row))


@dataclass(frozen=True, slots=True)
class Routed:
    """experts [T, top_k] from the likeliest, and their weights."""

    experts: Int64
    weights: Float64


def top_experts(logits: Float64, top_k: int, *, norms: bool) -> Routed:
    """Each token's choice, of equal logits the lower expert first."""
    experts = np.stack([ranked(row)[:top_k] for row in logits])
    weights = np.take_along_axis(np.exp(log_softmax(logits)), experts, axis=1)
    return Routed(experts, weights / weights.sum(axis=1, keepdims=True) if norms else weights)


@dataclass(frozen=True, slots=True)
class Grouped:
    """As of the op route_experts."""

    slots: Int64
    rows: Int64
    offsets: Int64


def group_choices(experts: Int64, num_experts: int) -> Grouped:
    """One expert after the other takes its tokens, in their order."""
    slots = np.full_like(experts, -1)
    rows: list[int] = []
    offsets = [0]
    for expert in range(num_experts):
        for token, choice in zip(*np.nonzero(experts == expert), strict=True):
            slots[token, choice] = len(rows)
            rows.append(int(token))
        offsets.append(len(rows))
    return Grouped(slots, np.array(rows), np.array(offsets))
