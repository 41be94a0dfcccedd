"""MemoryPlan: the ledger adds up, and every remedy it names is exact."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.device import Memory, MemoryKind
from hal.errors import ConfigError, MemoryPlanError
from hal.memory import (
    MemoryMode,
    PlanInputs,
    parse_memory,
    parse_size,
    parse_swap_space,
    plan_memory,
    size_argument,
)

GIB = 1 << 30
MIB = 1 << 20

CARD = Memory(kind=MemoryKind.DEDICATED, total_bytes=80 * GIB, available_bytes=79 * GIB)
HOST = Memory(kind=MemoryKind.HOST, total_bytes=32 * GIB, available_bytes=20 * GIB)

# Llama-3-8B in bfloat16: 128 KiB of KV per token.
LLAMA = PlanInputs(
    memory=CARD,
    request=parse_memory(0.9),
    weights_bytes=15 * GIB,
    activation_bytes=300 * MIB,
    logits_bytes=64 * MIB,
    kv_bytes_per_block=16 * 128 * 1024,
    block_size=16,
    max_model_len=8192,
    max_num_seqs=64,
)


@st.composite
def plan_inputs(draw: st.DrawFn) -> PlanInputs:
    total = draw(st.integers(GIB, 100 * GIB))
    available = draw(st.integers(64 * MIB, total))
    memory = Memory(
        kind=draw(st.sampled_from(MemoryKind)), total_bytes=total, available_bytes=available
    )
    request = draw(
        st.one_of(
            st.floats(0.01, 1.0).map(lambda f: f"{f:.3f}"),
            st.integers(1, 100 * 1024).map(lambda n: f"{n}MiB"),
            st.integers(1, 100 * 1024).map(lambda n: f"reserve:{n}MiB"),
        )
    )
    kv_bytes_per_block = draw(st.integers(1, 4 * MIB))
    return PlanInputs(
        memory=memory,
        request=parse_memory(request),
        weights_bytes=draw(st.integers(0, available)),
        activation_bytes=draw(st.integers(0, available // 16)),
        logits_bytes=draw(st.integers(0, available // 64)),
        kv_bytes_per_block=kv_bytes_per_block,
        bookkeeping_bytes=draw(st.integers(0, available // 64)),
        swap_bytes=draw(st.just(0) | st.integers(kv_bytes_per_block, 64 * kv_bytes_per_block)),
        block_size=draw(st.sampled_from([8, 16, 32])),
        max_model_len=draw(st.integers(1, 20_000)),
        max_num_seqs=draw(st.integers(1, 256)),
        graphs_bytes=draw(st.integers(0, available // 64)),
        communicator_bytes=draw(st.integers(0, available // 64)),
        num_extra_blocks=draw(st.integers(0, 2)),
    )


def fixed_bytes(inputs: PlanInputs) -> int:
    swapped = inputs.swap_bytes // inputs.kv_bytes_per_block * inputs.kv_bytes_per_block
    return (
        (0 if inputs.memory.kind is MemoryKind.DEDICATED else swapped + inputs.bookkeeping_bytes)
        + inputs.weights_bytes
        + inputs.activation_bytes
        + inputs.logits_bytes
        + inputs.graphs_bytes
        + inputs.communicator_bytes
    )


def refusal(inputs: PlanInputs) -> str | None:
    """The message of the error that the plan raises, None if it fits."""
    try:
        plan_memory(inputs)
    except MemoryPlanError as error:
        return error.message
    return None


def check_plan(inputs: PlanInputs) -> None:
    """The bytes add up, and the pool lies between one full sequence and all of them."""
    plan = plan_memory(inputs)
    assert plan.kv_bytes == plan.num_blocks * inputs.kv_bytes_per_block
    assert fixed_bytes(inputs) + plan.kv_bytes + plan.unused_bytes == plan.budget_bytes
    assert plan.unused_bytes >= 0
    assert plan.budget_bytes <= inputs.memory.available_bytes
    own_blocks = plan.num_blocks - inputs.num_extra_blocks
    blocks_per_seq = -(-inputs.max_model_len // inputs.block_size)
    assert blocks_per_seq <= own_blocks <= blocks_per_seq * inputs.max_num_seqs


def with_num_seqs(inputs: PlanInputs, count: int) -> PlanInputs:
    """Logits have a row for each sequence."""
    logits_bytes = -(-inputs.logits_bytes * count // inputs.max_num_seqs)
    return replace(inputs, max_num_seqs=count, logits_bytes=logits_bytes)


def check_remedies(inputs: PlanInputs, message: str) -> set[str]:
    """Apply every remedy of a refusal: it must fit, and no lesser change may. Returns which."""
    found = set()
    if told := re.search(
        r"(?i)raise --memory to (\S+) and lower --max-model-len to (\d+)", message
    ):
        both = replace(inputs, request=parse_memory(told[1]), max_model_len=int(told[2]))
        assert refusal(both) is None
        return {"both"}
    if told := re.search(r"(?i)lower --max-model-len to (\d+)", message):
        longest = int(told[1])
        assert longest < inputs.max_model_len
        assert refusal(replace(inputs, max_model_len=longest)) is None
        assert refusal(replace(inputs, max_model_len=longest + 1)) is not None
        found.add("length")
    if told := re.search(r"(?i)lower --max-num-seqs to (\d+)", message):
        most = int(told[1])
        assert refusal(with_num_seqs(inputs, most)) is None
        assert refusal(with_num_seqs(inputs, most + 1)) is not None
        found.add("sequences")
    if told := re.search(r"(?i)lower --swap-space to (\S+?)( or|$)", message):
        assert refusal(replace(inputs, swap_bytes=parse_swap_space(told[1]))) is None
        assert refusal(replace(inputs, swap_bytes=0)) is None
        found.add("swap space")
    if told := re.search(r"(?i)raise --memory by .* to (\S+)", message):
        enough = parse_memory(told[1])
        assert refusal(replace(inputs, request=enough)) is None
        # Rounded up to hundredths of its unit: a hundredth less is too little.
        less = replace(enough, amount=int(enough.amount * 0.99) - 11)
        assert refusal(replace(inputs, request=less)) is not None
        found.add("memory")
    if told := re.search(r"Lower --memory to (\S+) or free memory", message):
        granted = refusal(replace(inputs, request=parse_memory(told[1])))
        assert "are available" not in (granted or "")
        found.add("held by others")
    if "choose a smaller model" in message:
        everything = size_argument(inputs.memory.available_bytes, round_up=False)
        shortest = replace(inputs, request=parse_memory(everything), max_model_len=1)
        assert refusal(shortest) is not None
        found.add("smaller model")
    assert found, f"a refusal without a remedy: {message}"
    return found


@given(plan_inputs())
def test_a_plan_adds_up_or_names_exact_remedies(inputs: PlanInputs) -> None:
    message = refusal(inputs)
    if message is None:
        check_plan(inputs)
    else:
        check_remedies(inputs, message)


SWAP_REMEDIES = {"swap space", "length", "memory"}


@pytest.mark.parametrize(
    ("changes", "remedies"),
    [
        ({"request": parse_memory("15.5GiB")}, {"length", "memory"}),
        ({"request": parse_memory("15.1GiB")}, {"memory"}),
        ({"request": parse_memory("reserve:100GiB")}, {"memory"}),
        ({"max_model_len": 2_000_000}, {"length"}),
        ({"max_num_seqs": 200_000, "logits_bytes": 195 * GIB}, {"sequences"}),
        ({"max_model_len": 2_000_000, "request": parse_memory(0.1)}, {"both"}),
        ({"weights_bytes": 140 * GIB}, {"smaller model"}),
        ({"memory": HOST, "request": parse_memory("18GiB"), "swap_bytes": 2 * GIB}, SWAP_REMEDIES),
        ({"request": parse_memory(1.0)}, {"held by others"}),
        ({"request": parse_memory("90GiB")}, {"held by others"}),
    ],
)
def test_each_remedy_is_named_when_it_helps(changes: dict[str, Any], remedies: set[str]) -> None:
    inputs = replace(LLAMA, **changes)
    message = refusal(inputs)
    assert message is not None
    assert check_remedies(inputs, message) == remedies


def test_what_must_be_raised_is_never_rounded_beyond_what_is_there() -> None:
    """One byte below a round figure: rounding up would ask for more than the card has."""
    kv = LLAMA.kv_bytes_per_block * 512
    need = fixed_bytes(LLAMA) + kv
    card = replace(CARD, available_bytes=need)
    inputs = replace(LLAMA, memory=card, request=parse_memory("15.5GiB"))
    message = refusal(inputs)
    assert message is not None
    assert f"to {need}B" in message
    assert "memory" in check_remedies(inputs, message)


def test_a_message_has_the_numbers_and_both_remedies() -> None:
    tight = replace(LLAMA, request=parse_memory("15.5GiB"))
    message = refusal(tight)
    assert message is not None
    assert "weights 15.00 GiB" in message
    assert "one sequence of 8192 tokens 1.00 GiB" in message
    assert "--memory 15.50 GiB gives 15.50 GiB" in message
    # 15.5 GiB - 15 GiB - 364 MiB leave 148 MiB: 74 blocks of 2 MiB.
    assert "Lower --max-model-len to 1184" in message
    assert "raise --memory by 876.00 MiB to 16.36GiB" in message


def test_memory_held_by_others_on_a_card_is_refused_with_numbers() -> None:
    busy = replace(CARD, available_bytes=40 * GIB)
    message = refusal(replace(LLAMA, memory=busy))
    assert message is not None
    assert "--memory 0.9 asks for 72.00 GiB" in message
    assert "only 40.00 GiB of 80.00 GiB" in message
    assert "40.00 GiB are held by others" in message
    assert "Lower --memory to 0.5" in message


def test_a_fraction_is_of_the_card_but_of_what_is_left_on_a_host() -> None:
    assert plan_memory(LLAMA).budget_bytes == int(80 * GIB * 0.9)
    on_host = plan_memory(replace(LLAMA, memory=HOST))
    assert on_host.budget_bytes == int(20 * GIB * 0.9)
    unified = replace(HOST, kind=MemoryKind.UNIFIED)
    assert plan_memory(replace(LLAMA, memory=unified)).budget_bytes == int(20 * GIB * 0.9)


@pytest.mark.parametrize("memory", [CARD, HOST])
def test_a_size_and_a_reserve_mean_the_same_everywhere(memory: Memory) -> None:
    inputs = replace(LLAMA, memory=memory)
    sized = plan_memory(replace(inputs, request=parse_memory("18GiB")))
    assert sized.budget_bytes == 18 * GIB
    reserved = plan_memory(replace(inputs, request=parse_memory("reserve:2GiB")))
    assert reserved.budget_bytes == memory.available_bytes - 2 * GIB


def test_a_tiny_model_does_not_take_the_machine() -> None:
    tiny = replace(
        LLAMA,
        memory=HOST,
        weights_bytes=10 * MIB,
        kv_bytes_per_block=16 * 4096,
        max_model_len=1024,
        max_num_seqs=8,
        num_extra_blocks=1,
    )
    plan = plan_memory(tiny)
    assert plan.num_blocks == 8 * 64 + 1
    assert plan.kv_bytes == (8 * 64 + 1) * 64 * 1024
    assert plan.unused_bytes > 17 * GIB


def test_the_plan_prints_its_ledger() -> None:
    text = str(plan_memory(LLAMA))
    assert "weights        15.00 GiB" in text
    assert "of 16 tokens" in text
    assert "sequences of 8192" in text
    assert plan_memory(LLAMA).as_dict()["kv_tokens"] == plan_memory(LLAMA).kv_tokens


def test_swap_space_is_the_hosts_and_part_of_the_budget_only_there() -> None:
    on_card = replace(LLAMA, swap_bytes=parse_swap_space(4))
    plan = plan_memory(on_card)
    assert (plan.num_blocks, plan.unused_bytes) == (plan_memory(LLAMA).num_blocks, 0)
    assert (plan.swap_bytes, plan.num_swap_blocks) == (4 * GIB, 2048)
    assert "2048 more in 4.00 GiB of the host's memory" in str(plan)
    on_host = replace(on_card, memory=HOST, weights_bytes=10 * GIB, request=parse_memory("20GiB"))
    less = plan_memory(replace(on_host, swap_bytes=0)).num_blocks - plan_memory(on_host).num_blocks
    assert less == 2048
    assert "swap space      4.00 GiB" in str(plan_memory(on_host))
    with pytest.raises(MemoryPlanError, match="one has 2.00 MiB. Set it to 0 or to 2.00MiB"):
        plan_memory(replace(LLAMA, swap_bytes=MIB))
    with pytest.raises(MemoryPlanError, match="swap space 9.50 GiB and"):
        plan_memory(replace(on_host, swap_bytes=19 * GIB // 2))


def test_swap_space_is_counted_as_in_vllm_or_has_a_unit() -> None:
    found = [parse_swap_space(value) for value in (0, "0", 4, 0.5, "4", "512MiB")]
    assert found == [0, 0, 4 * GIB, GIB // 2, 4 * GIB, GIB // 2]
    for wrong in (-1, "nan", "inf", "", "4 gigs"):
        with pytest.raises(ConfigError):
            parse_swap_space(wrong)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("24GiB", 24 * GIB), ("512M", 512 * MIB), ("1.5g", 3 * GIB // 2), ("2 TB", 2048 * GIB)]
    + [("1048576B", MIB)],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "8", "1e9", "8 gigs", "0x10B", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.01, 24, "24", "nan", "inf"])
def test_what_is_no_fraction(value: str | float) -> None:
    with pytest.raises(ConfigError, match="is not a fraction"):
        parse_memory(value)


def test_memory_requests_keep_their_mode() -> None:
    assert parse_memory(0.9).mode is MemoryMode.FRACTION
    assert parse_memory("24GiB").mode is MemoryMode.SIZE
    assert parse_memory("reserve:8GiB").mode is MemoryMode.RESERVE
    assert str(parse_memory("reserve:8GiB")) == "reserve:8.00 GiB"


@given(st.integers(1024, 1 << 45))
def test_size_arguments_round_to_the_safe_side(num_bytes: int) -> None:
    assert parse_size(size_argument(num_bytes)) >= num_bytes
    assert parse_size(size_argument(num_bytes, round_up=False)) <= num_bytes
