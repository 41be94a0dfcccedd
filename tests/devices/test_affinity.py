"""Where threads may go and where they do: written-down machines under a temporary root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hal.devices.affinity import (
    Cpu,
    allowed_cpus,
    choose_affinity,
    describe_nodes,
    format_cpus,
    parse_cpus,
    rank_affinity,
)
from hal.errors import ConfigError
from hal.share import Share


def write_machine(root: Path, nodes: Sequence[Sequence[str]]) -> None:
    """A node for each item, a core for each of its items, written as the list of its CPUs."""
    for node, cores in enumerate(nodes):
        folder = root / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(",".join(cores) + "\n")
        for core in cores:
            for cpu in parse_cpus(core):
                topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
                topology.mkdir(parents=True)
                (topology / "core_cpus_list").write_text(f"{core}\n")


# Two nodes of four cores with two threads each, numbered as Linux does.
CORES = (tuple(f"{c},{c + 8}" for c in range(4)), tuple(f"{c},{c + 8}" for c in range(4, 8)))
ALL = range(16)


@pytest.fixture
def two_nodes(tmp_path: Path) -> tuple[Cpu, ...]:
    write_machine(tmp_path, CORES)
    return allowed_cpus(tmp_path, ALL)


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", (0,)), ("0-2,8", (0, 1, 2, 8)), (" 9 , 4-5\n", (9, 4, 5))]
)
def test_a_list_keeps_its_order(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(text) == cpus
    assert parse_cpus(format_cpus(cpus)) == tuple(sorted(cpus))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "''"),
        ("0-", "'0-'"),
        ("-3", "'-3'"),
        ("a", "'a'"),
        ("0,,1", "''"),
        ("3-1", "'3-1'"),
        ("0-99999999999", "'0-99999999999'"),
        ("0-2,1", "1 twice"),
        ("²", "'²'"),
    ],
)
def test_a_malformed_list_is_refused_with_what_is_allowed(text: str, named: str) -> None:
    cpus = [Cpu(0, n, n) for n in (0, 1, 2, 5)]
    with pytest.raises(ConfigError) as error:
        choose_affinity(text, None, 4, cpus)
    assert named in error.value.message
    assert "0-2,5" in error.value.message


def test_cpus_outside_the_mask_are_refused_with_what_is_allowed(two_nodes: tuple[Cpu, ...]) -> None:
    with pytest.raises(ConfigError, match=r"names 16,20-21.*allowed are 0-15"):
        choose_affinity("0,16,20-21", None, 4, two_nodes)


def test_more_threads_than_cpus_are_refused(two_nodes: tuple[Cpu, ...]) -> None:
    with pytest.raises(ConfigError, match=r"threads 3 on the 2 CPUs.*lower threads to 2"):
        choose_affinity("4,5", 3, 4, two_nodes)


def test_a_system_without_masks_refuses_a_list_and_leaves_the_rest_alone() -> None:
    with pytest.raises(ConfigError, match="allowed are none that the system tells of"):
        choose_affinity("0", None, 4, ())
    assert choose_affinity("auto", None, 4, ()).workers == ()


def test_a_list_gives_each_thread_a_cpu_and_keeps_the_caller_to_all(
    two_nodes: tuple[Cpu, ...],
) -> None:
    """The caller's own children and torch's threads would else all share one CPU."""
    chosen = choose_affinity("6,1,9", None, 4, two_nodes)
    assert chosen.num_threads == 3
    assert chosen.workers == ((1,), (9,))
    assert chosen.process == frozenset({1, 6, 9})
    assert chosen.num_nodes == 2
    assert "3 threads on 2 cores of 2 memory nodes" in chosen.reason


def test_fewer_threads_than_listed_cpus_take_the_first(two_nodes: tuple[Cpu, ...]) -> None:
    chosen = choose_affinity("2,3,4,5", 2, 16, two_nodes)
    assert (chosen.num_threads, chosen.workers, chosen.num_nodes) == (2, ((3,),), 1)


def test_siblings_and_nodes_are_read(two_nodes: tuple[Cpu, ...]) -> None:
    assert two_nodes[:3] == (Cpu(0, 0, 0), Cpu(0, 0, 8), Cpu(0, 1, 1))
    assert describe_nodes(two_nodes) == (
        "node 0: CPUs 0-3,8-11, 4 cores",
        "node 1: CPUs 4-7,12-15, 4 cores",
    )


def test_the_older_name_of_siblings_is_read(tmp_path: Path) -> None:
    topology = tmp_path / "sys/devices/system/cpu/cpu5/topology"
    topology.mkdir(parents=True)
    (topology / "thread_siblings_list").write_text("1,5\n")
    assert allowed_cpus(tmp_path, [5]) == (Cpu(0, 1, 5),)


@pytest.mark.parametrize("wanted", ["auto", "none"])
def test_nothing_is_bound_on_one_node(tmp_path: Path, wanted: str) -> None:
    """Two engines side by side would else wait for the same CPUs while others are free."""
    write_machine(tmp_path, CORES[:1])
    chosen = choose_affinity(wanted, None, 4, allowed_cpus(tmp_path, range(4)))
    assert (chosen.workers, chosen.process, chosen.num_threads) == ((), None, None)
    assert chosen.value == "none"


def test_a_process_that_was_given_one_node_of_two_is_left_alone(tmp_path: Path) -> None:
    """As numactl does, or a cpuset."""
    write_machine(tmp_path, CORES)
    cpus = allowed_cpus(tmp_path, [4, 5, 12, 13])
    assert choose_affinity("auto", None, 4, cpus).workers == ()
    assert describe_nodes(cpus) == ()


@pytest.mark.parametrize(("num_threads", "first"), [(2, 1), (4, 2), (5, 3), (8, 4), (16, 8)])
def test_auto_spreads_threads_over_nodes_and_binds_none_to_a_cpu(
    two_nodes: tuple[Cpu, ...], num_threads: int, first: int
) -> None:
    chosen = choose_affinity("auto", num_threads, 16, two_nodes)
    homes = [min(cpus) // 4 for cpus in chosen.workers]
    assert homes == [0] * (first - 1) + [1] * (num_threads - first)
    assert set(chosen.workers) <= {(0, 8, 1, 9, 2, 10, 3, 11), (4, 12, 5, 13, 6, 14, 7, 15)}
    assert chosen.process is None
    assert f"{first} on node 0, {num_threads - first} on node 1" in chosen.reason


def test_auto_weighs_nodes_by_the_cores_that_are_allowed(tmp_path: Path) -> None:
    write_machine(tmp_path, CORES)
    cpus = allowed_cpus(tmp_path, [0, 1, 2, 8, 9, 10, 4, 12])  # three cores and one
    chosen = choose_affinity("auto", None, 8, cpus)
    assert [cpus == (4, 12) for cpus in chosen.workers] == [False] * 5 + [True] * 2


def test_ranks_keep_to_a_memory_node_each(two_nodes: tuple[Cpu, ...]) -> None:
    first, second = (rank_affinity(Share(rank, 2), 4, two_nodes) for rank in range(2))
    assert first.process is None, "the caller of rank 0 is the user's"
    assert first.workers == ((0, 8, 1, 9, 2, 10, 3, 11),) * 3
    assert second.process == frozenset({4, 12, 5, 13, 6, 14, 7, 15})
    assert (second.num_nodes, len(second.workers)) == (1, 3)
    assert "CPUs 4-7,12-15, memory node 1" in second.reason


def test_ranks_of_one_node_go_where_the_system_puts_them(tmp_path: Path) -> None:
    write_machine(tmp_path, CORES[:1])
    cpus = allowed_cpus(tmp_path, range(12))
    assert rank_affinity(Share(1, 2), 2, cpus).workers == ()
