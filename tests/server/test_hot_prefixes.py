"""What recent prompts have in common."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hal.server.hot_prefixes import RecentPrompts


def hot(*prompts: tuple[str, list[int]], least: int = 2) -> list[tuple[str, list[int]]]:
    recent = RecentPrompts()
    for tenant, prompt in prompts:
        recent.note(tenant, prompt)
    return [(found.tenant, found.token_ids) for found in recent.hot_prefixes(least)]


def test_what_two_prompts_share() -> None:
    assert hot(("", [1, 2, 3, 4]), ("", [1, 2, 3, 5]), ("", [7, 8])) == [("", [1, 2, 3])]
    assert hot(("", [1, 2, 3]), ("", [1, 2, 3])) == [("", [1, 2, 3])]
    assert hot(("", [1, 2, 3]), ("", [1, 9, 9])) == []  # below the least length


def test_tenants_share_nothing() -> None:
    assert hot(("a", [1, 2, 3]), ("b", [1, 2, 3])) == []
    prompts = [(tenant, [1, 2, last]) for tenant in "ab" for last in (3, 4)]
    assert hot(*prompts) == [("a", [1, 2]), ("b", [1, 2])]


def test_the_start_of_another_is_read_with_it() -> None:
    long, short = [1, 2, 3, 4, 5], [1, 2, 9]
    assert hot(("", long), ("", long), ("", short)) == [("", long)]


def test_memory_is_bounded() -> None:
    recent = RecentPrompts()
    recent.note("", range(10**6))
    assert recent.hot_prefixes(1) == []
    for i in range(300):
        recent.note("", [i, *range(1000)])
    for i in (0, 299):
        recent.note("", [i, *range(1000)])
    assert [found.token_ids[0] for found in recent.hot_prefixes(2)] == [299]


@given(st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=30), st.integers(1, 4))
def test_each_is_the_start_of_two_prompts(prompts: list[list[int]], least: int) -> None:
    found = [prefix for _, prefix in hot(*(("", prompt) for prompt in prompts), least=least)]
    for prefix in found:
        assert len(prefix) >= least
        assert sum(prompt[: len(prefix)] == prefix for prompt in prompts) >= 2
    longest = max((num_common(a, b) for i, a in enumerate(prompts) for b in prompts[:i]), default=0)
    assert max(map(len, found), default=0) == (longest if longest >= least else 0)


def num_common(one: list[int], two: list[int]) -> int:
    length = 0
    while length < min(len(one), len(two)) and one[length] == two[length]:
        length += 1
    return length
