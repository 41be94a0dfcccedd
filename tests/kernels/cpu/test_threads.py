"""Native threads stay on the CPUs they are given: real threads, as the system tells of them."""

from __future__ import annotations

import sys

import pytest
import torch
from own_process import run_alone

from hal.kernels.cpu import native
from hal.kernels.cpu.threads import ThreadPlacement

# Prints the CPUs of every thread that is not the caller's, before and after a fork, and then the
# caller's. Binding is for the rest of a process, so each test has a process of its own.
BOUND = """
import os, sys
from pathlib import Path
import torch
from hal.kernels.cpu import native

def others():
    own = os.getpid()
    threads = [p for p in Path("/proc/self/task").iterdir() if int(p.name) != own]
    return sorted(",".join(map(str, sorted(os.sched_getaffinity(int(p.name))))) for p in threads)

cpu = max(os.sched_getaffinity(0))
before = others()
assert native.load().bind_threads([[cpu]] * 3) == 0
bound = others()
for known in before:
    bound.remove(known)
assert bound == [str(cpu)] * 3, bound
memory = torch.full((3 << 20,), 7, dtype=torch.uint8)
child = os.fork()
if child == 0:
    native.load().touch_pages(memory.data_ptr(), memory.numel(), 4)
    assert others() == [str(cpu)] * 3, others()
    assert memory[:: 4096].count_nonzero() < memory.numel() // 4096 // 100
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""

ENGINES = """
import os, sys
from hal import LLM
from hal.errors import ConfigError

cpus = sorted(os.sched_getaffinity(0))[:2]
text = ",".join(map(str, cpus))
first = LLM("hal-tiny", device="cpu", cpu_affinity=text)
assert os.sched_getaffinity(0) == set(cpus)
again = LLM("hal-tiny", device="cpu")  # auto: what the first one made of the process stays
assert again.generate("Hello")
try:
    LLM("hal-tiny", device="cpu", cpu_affinity="none")
except ConfigError as error:
    assert text.split(",")[-1] in error.message, error.message
else:
    raise SystemExit("two engines want their threads in two places, and nobody says so")
"""


@pytest.fixture(autouse=True)
def _needs_native_module() -> None:
    if reason := native.unavailable():
        pytest.skip(reason)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps threads on CPUs")
def test_threads_run_where_they_are_bound_in_forks_too() -> None:
    run_alone(BOUND)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps threads on CPUs")
def test_a_second_engine_keeps_the_binding_or_is_refused() -> None:
    run_alone(ENGINES)


@pytest.mark.parametrize("num_bytes", [1, 4095, 4096, 4097, 1 << 20])
@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_every_page_is_touched_once_and_nothing_beyond(num_bytes: int, num_threads: int) -> None:
    memory = torch.ones(num_bytes + 8, dtype=torch.uint8)
    native.load().touch_pages(memory.data_ptr(), num_bytes, num_threads)
    assert memory[num_bytes:].all()
    zeros = (memory[:num_bytes] == 0).nonzero().flatten().tolist()
    starts = [num_bytes * part // num_threads for part in range(num_threads)]
    ends = [*starts[1:], num_bytes]
    expected = [i for a, b in zip(starts, ends, strict=True) for i in range(a, b, 4096)]
    assert zeros == expected


def test_pages_are_left_to_their_writers_on_one_node() -> None:
    """No page of a weight becomes resident before it is needed."""
    memory = torch.ones(1 << 16, dtype=torch.uint8)
    placement = ThreadPlacement()
    placement.prepare(memory.data_ptr(), memory.numel())
    assert memory.all()
    placement._num_nodes = 2
    placement.prepare(memory.data_ptr(), memory.numel())
    assert not memory.all()
