"""Models cut over ranks against the same model on one: every architecture, every kind of cut."""

from __future__ import annotations

import numpy as np
import pytest
from rank_threads import run_ranks

from hal.collective import Collective
from hal.conform.engine_model import Loaded, load
from hal.conformance.model_run import Player
from hal.conformance.stage import Float64
from hal.conformance.tiny_checkpoint import tensors_of
from hal.conformance.tiny_models import SHAPES, TinyModel, make_model
from hal.devices import open_device
from hal.dtypes import DType

pytestmark = pytest.mark.parity

DENSE = [name for name, shape in SHAPES.items() if not shape.num_experts]
LIMIT = 1e-5  # relative L2: float32 sums in another order
NUM_PREFILLED, NUM_DECODED = 21, 12


def part_of(
    model: TinyModel, collective: Collective | None = None, *, deterministic: bool = False
) -> Loaded:
    """The whole model, or one rank's part, on a device of its own: a device captures alone."""
    device = open_device("cpu").device
    return load(model, device, collective=collective, deterministic=deterministic)


def played(loaded: Loaded, model: TinyModel) -> tuple[Float64, list[int]]:
    """Logits of two sequences, prefilled in chunks and decoded from their own tokens, and those."""
    rng = np.random.default_rng(3)
    texts = rng.integers(0, model.shape.vocab_size, (2, NUM_PREFILLED), dtype=np.int32)
    player = Player(loaded.model, list(texts), model.shape.window)
    player.step((0, 9), (1, NUM_PREFILLED))
    player.step((0, NUM_PREFILLED - 9))
    for _ in range(NUM_DECODED):
        player.decode(0, 1)
    logits = np.concatenate([player.logits(0), player.logits(1)])
    return logits, player.sampled(0) + player.sampled(1)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("model_type", DENSE)
def test_logits_and_tokens_are_those_of_one_rank(model_type: str, size: int) -> None:
    model = make_model(model_type, DType.FLOAT32)
    expected, tokens = played(part_of(model), model)

    def rank(collective: Collective) -> tuple[Float64, list[int]]:
        return played(part_of(model, collective), model)

    results = run_ranks(size, rank)
    logits = results[0][0]
    assert np.linalg.norm(logits - expected) <= LIMIT * np.linalg.norm(expected)
    for other, sampled in results:
        np.testing.assert_array_equal(other, logits)  # or ranks would sample different tokens
        assert sampled == tokens


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16], ids=str)
def test_ranks_agree_to_the_bit_in_every_dtype(dtype: DType) -> None:
    model = make_model("qwen2", dtype)

    def rank(collective: Collective) -> Float64:
        return played(part_of(model, collective), model)[0]

    first, second = run_ranks(2, rank)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16], ids=str)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("model_type", DENSE)
def test_deterministic_ranks_have_the_bits_of_one(model_type: str, size: int, dtype: DType) -> None:
    model = make_model(model_type, dtype)
    one = part_of(model, deterministic=True)
    expected, tokens = played(one, model)

    def rank(collective: Collective) -> tuple[dict[str, str], Float64, list[int]]:
        loaded = part_of(model, collective, deterministic=True)
        return loaded.model.kernels(), *played(loaded, model)

    for kernels, logits, sampled in run_ranks(size, rank):
        if kernels["mlp_block"] == one.model.kernels()["mlp_block"]:
            np.testing.assert_array_equal(logits, expected)
            assert sampled == tokens
        else:  # 24 columns fit no kernel that keeps gate and up together, unrounded, as the whole
            assert size == 4 and not model.shape.is_gpt2


@pytest.mark.parametrize("model_type", DENSE)
@pytest.mark.parametrize("size", [2, 4])
def test_each_rank_reads_only_its_part(model_type: str, size: int) -> None:
    model = make_model(model_type, DType.FLOAT32)
    shape = model.shape
    read = run_ranks(size, lambda c: part_of(model, c).read_bytes)
    sizes = {name: 4 * values.size for name, values in tensors_of(model)}
    whole = part_of(model).read_bytes
    assert whole == sum(sizes.values())
    copies = max(1, size // shape.num_kv_heads)  # of key and value heads, where there are fewer
    total = sum(num_bytes * _readers(name, size, copies) for name, num_bytes in sizes.items())
    assert sum(read) == total
    assert max(read) < whole / size + (total - whole)


def _readers(name: str, size: int, copies: int) -> int:
    """How many ranks read each byte of a tensor."""
    if "k_proj" in name or "v_proj" in name:
        return copies
    is_partial_bias = name.endswith(("c_proj.bias", "o_proj.bias", "down_proj.bias"))
    is_replicated = "norm" in name or "ln_" in name or "wpe" in name
    return size if is_replicated and not is_partial_bias else 1
