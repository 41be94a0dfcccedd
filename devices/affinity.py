"""Which CPUs the threads of a CPU device run on: what this process may use, and a choice of it.

Readers take `root`, the folder that stands for `/`, as in hal.devices.host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from hal.devices.host import read_text
from hal.errors import ConfigError
from hal.share import Share

AUTO = "auto"
NONE = "none"
_ROOT = Path("/")
# CPUs that one name of a core or node may stand for; sysfs and cpu_set_t end below it.
_MOST_CPUS = 1 << 16


@dataclass(frozen=True, slots=True, order=True)
class Cpu:
    """One CPU as the system numbers it. `core`: the lowest CPU of its physical core."""

    node: int
    core: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """Where threads go. `value` and `reason` are for the report.

    num_threads: of the kernels; None leaves the number alone
    process: what the calling thread, and all that it starts, is kept to; None: as it is
    workers: of the pool's threads after the caller, first to last; empty: as the system likes
    num_nodes: memory nodes among them; above 1 it matters who touches a page first
    """

    value: str
    reason: str
    num_threads: int | None = None
    process: frozenset[int] | None = None
    workers: tuple[tuple[int, ...], ...] = ()
    num_nodes: int = 1


def parse_cpus(text: str) -> tuple[int, ...]:
    """ "0-2,8" -> 0, 1, 2, 8, in that order; raises ValueError that names the faulty part."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{part!r} is neither a CPU nor a range as in 0-7")
        low, high = int(first), int(last or first)
        if high < low or high >= _MOST_CPUS:
            raise ValueError(f"{part!r} is not a range of CPUs from low to high")
        cpus.extend(range(low, high + 1))
    twice = (
        sorted({cpu for cpu in cpus if cpus.count(cpu) > 1}) if len(set(cpus)) < len(cpus) else []
    )
    if twice:
        raise ValueError(f"it names {format_cpus(twice)} twice")
    return tuple(cpus)


def format_cpus(cpus: Iterable[int]) -> str:
    """The numbers in order, runs as "0-7"."""
    numbered = enumerate(sorted(set(cpus)))
    runs = [[cpu for _, cpu in run] for _, run in groupby(numbered, lambda pair: pair[1] - pair[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def allowed_cpus(root: Path = _ROOT, allowed: Iterable[int] | None = None) -> tuple[Cpu, ...]:
    """The CPUs this process may use, by node and core; none where the system does not say.

    Linux keeps a process's mask within its cgroup's cpuset, so the mask is the whole answer. A
    machine without nodes, or a CPU without topology, is node 0, or a core of its own.
    """
    if allowed is None:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    nodes = _node_of_cpus(root)
    return tuple(sorted(Cpu(nodes.get(n, 0), _core_of(root, n), n) for n in allowed))


def _node_of_cpus(root: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        for cpu in _listed(folder / "cpulist"):
            found[cpu] = int(folder.name.removeprefix("node"))
    return found


def _core_of(root: Path, cpu: int) -> int:
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    siblings = _listed(topology / "core_cpus_list") or _listed(topology / "thread_siblings_list")
    return min(siblings, default=cpu)


def _listed(path: Path) -> tuple[int, ...]:
    """What the file lists; nothing where it is absent, empty, or no list."""
    try:
        return parse_cpus(read_text(path))
    except ValueError:
        return ()


def describe_nodes(cpus: Sequence[Cpu]) -> tuple[str, ...]:
    """A line for each memory node where there are several."""
    nodes = {node: list(group) for node, group in groupby(cpus, lambda cpu: cpu.node)}
    if len(nodes) < 2:
        return ()
    return tuple(
        f"node {node}: CPUs {format_cpus(cpu.number for cpu in group)}, "
        f"{len({cpu.core for cpu in group})} cores"
        for node, group in nodes.items()
    )


def choose_affinity(
    wanted: str, num_threads: int | None, default: int, cpus: Sequence[Cpu]
) -> Affinity:
    """What `--cpu-affinity` means among the allowed `cpus`; raises ConfigError.

    num_threads: what the user asked for, if anything; default: what runs otherwise
    """
    if wanted == NONE:
        return Affinity(value=NONE, reason="set by the user: threads go where the system puts them")
    if wanted != AUTO:
        return _listed_by_the_user(wanted, num_threads, cpus)
    nodes = sorted({cpu.node for cpu in cpus})
    if len(nodes) < 2:
        return Affinity(
            value=NONE,
            reason="one memory node: a thread that stays on a CPU gains nothing here, and waits "
            "for it while another process has it",
        )
    return _spread_over_nodes(num_threads or default, cpus)


def rank_affinity(share: Share, num_threads: int, cpus: Sequence[Cpu]) -> Affinity:
    """`auto` for one of several ranks: where there are several memory nodes, each rank keeps to its
    run of the CPUs, node after node, so that its weights lie where it runs.

    Rank 0's calling thread is the user's and is left alone.
    """
    if len({cpu.node for cpu in cpus}) < 2:
        return choose_affinity(AUTO, num_threads, num_threads, cpus)
    run = share.of(len(cpus))
    own = cpus[run.start : run.stop] or cpus
    numbers = tuple(cpu.number for cpu in own)
    nodes = sorted({cpu.node for cpu in own})
    return Affinity(
        value=AUTO,
        reason=f"rank {share.rank} of {share.size}: threads keep to CPUs {format_cpus(numbers)}, "
        f"memory node {format_cpus(nodes)}, and weights lie where they are read",
        process=None if share.rank == 0 else frozenset(numbers),
        workers=(numbers,) * (num_threads - 1),
        num_nodes=len(nodes),
    )


def _spread_over_nodes(num_threads: int, cpus: Sequence[Cpu]) -> Affinity:
    """Each thread within a node, as many in each as its share of the cores.

    Bound to a node and not to a CPU: the system then moves a thread off a CPU that another process
    took, so that two engines side by side share a machine as they would without this.
    """
    cores = sorted({(cpu.node, cpu.core) for cpu in cpus})
    of_node = {
        node: tuple(cpu.number for cpu in group)
        for node, group in groupby(cpus, lambda cpu: cpu.node)
    }
    home = [cores[index * len(cores) // num_threads][0] for index in range(num_threads)]
    counts = ", ".join(f"{home.count(node)} on node {node}" for node in of_node)
    return Affinity(
        value=AUTO,
        reason=f"{len(of_node)} memory nodes: threads stay on one each ({counts}) and weights lie "
        "where they are read; the calling thread is left alone",
        workers=tuple(of_node[node] for node in home[1:]),
        num_nodes=len(set(home)),
    )


def _listed_by_the_user(wanted: str, num_threads: int | None, cpus: Sequence[Cpu]) -> Affinity:
    allowed = format_cpus(cpu.number for cpu in cpus) or "none that the system tells of"
    try:
        listed = parse_cpus(wanted)
    except ValueError as error:
        raise ConfigError(
            f"cpu_affinity {wanted!r}: {error}; give {AUTO}, {NONE}, or CPUs among {allowed}"
        ) from error
    known = {cpu.number: cpu for cpu in cpus}
    if outside := [cpu for cpu in listed if cpu not in known]:
        raise ConfigError(
            f"cpu_affinity {wanted!r} names {format_cpus(outside)}, which this process may not "
            f"use; allowed are {allowed}"
        )
    count = num_threads or len(listed)
    if count > len(listed):
        raise ConfigError(
            f"threads {count} on the {len(listed)} CPUs of cpu_affinity {wanted!r} would wait for "
            f"each other; lower threads to {len(listed)} or name more CPUs, allowed are {allowed}"
        )
    used = [known[cpu] for cpu in listed[:count]]
    num_cores, num_nodes = len({c.core for c in used}), len({c.node for c in used})
    return Affinity(
        value=wanted,
        reason=f"set by the user: {count} threads on {num_cores} cores of {num_nodes} memory "
        "nodes; the calling thread keeps to the list, each other one to its own CPU",
        num_threads=count,
        process=frozenset(listed),
        workers=tuple((cpu.number,) for cpu in used[1:]),
        num_nodes=num_nodes,
    )
