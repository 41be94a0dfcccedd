"""Branches, waits, barriers and scalar loads (CDNA3 ISA, "Program Flow Control", "SOPP
Instructions", "Scalar Memory Operations")."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from amdgpu.assembly import Instruction
from amdgpu.errors import UnknownInstructionError
from amdgpu.operands import EXEC, SCALARS, SCC, VCC, parse_operand
from amdgpu.step import NONE, Step
from amdgpu.vector import registers_of
from amdgpu.wave import Access, Wave

_VCC = frozenset((SCALARS + VCC, SCALARS + VCC + 1))
_EXEC = frozenset((SCALARS + EXEC, SCALARS + EXEC + 1))
_BRANCHES: dict[str, tuple[Callable[[Wave], bool], frozenset[int]]] = {
    "s_branch": (lambda wave: True, NONE),
    "s_cbranch_scc0": (lambda wave: not wave.scc, frozenset([SCC])),
    "s_cbranch_scc1": (lambda wave: bool(wave.scc), frozenset([SCC])),
    "s_cbranch_vccz": (lambda wave: not wave.read64(VCC), _VCC),
    "s_cbranch_vccnz": (lambda wave: bool(wave.read64(VCC)), _VCC),
    "s_cbranch_execz": (lambda wave: not wave.exec, _EXEC),
    "s_cbranch_execnz": (lambda wave: bool(wave.exec), _EXEC),
}
# Of timing, priority and caches, none of which is modelled.
_NO_EFFECT = {
    *("s_nop", "s_sleep", "s_setprio", "s_icache_inv", "s_dcache_wb", "s_dcache_inv"),
    *("buffer_wbl2", "buffer_inv", "s_inst_prefetch"),
}
_STOPS = {"s_barrier": "barrier", "s_endpgm": "end"}


def decode_control(instruction: Instruction, labels: Mapping[str, int]) -> Step | None:
    """None where the mnemonic is none of these."""
    name = instruction.name
    if name in _BRANCHES:
        return _branch(instruction, labels)
    if name in _NO_EFFECT or name in _STOPS:
        return Step(instruction=instruction, execute=lambda wave: None, stops=_STOPS.get(name, ""))
    if name == "s_waitcnt":
        return _wait(instruction)
    if found := re.fullmatch(r"s_load_dword(?:x(\d+))?", name):
        return _scalar_load(instruction, int(found[1] or 1))
    return None


def _branch(instruction: Instruction, labels: Mapping[str, int]) -> Step:
    condition, reads = _BRANCHES[instruction.name]
    (label,) = instruction.operands
    if label not in labels:
        raise UnknownInstructionError(f"a branch to {label}, which the text lacks")
    target = labels[label]

    def execute(wave: Wave) -> None:
        if condition(wave):
            wave.pc = target

    return Step(instruction=instruction, execute=execute, reads=reads)


def _wait(instruction: Instruction) -> Step:
    text = instruction.text.removeprefix("s_waitcnt")
    counts = dict(re.findall(r"(vmcnt|lgkmcnt|expcnt)\((\d+)\)", text))
    if not counts and text.strip() == "0":
        counts = {"vmcnt": "0", "lgkmcnt": "0"}
    if not counts or re.sub(r"(vmcnt|lgkmcnt|expcnt)\(\d+\)|[\s&]|^\s*0$", "", text):
        raise UnknownInstructionError(f"s_waitcnt {text.strip()}")
    vm, lgkm = (int(counts[c]) if c in counts else None for c in ("vmcnt", "lgkmcnt"))
    return Step(instruction=instruction, execute=lambda wave: wave.wait(vm, lgkm))


def _scalar_load(instruction: Instruction, num_words: int) -> Step:
    target, base, offset = (parse_operand(text) for text in instruction.operands)
    if instruction.modifiers or (target.count, base.count) != (num_words, 2):
        raise UnknownInstructionError(f"operands of {instruction.name}")
    written = registers_of([target])

    def execute(wave: Wave) -> None:
        more = int(offset.value) if offset.kind == "literal" else wave.scalar[offset.index]
        words = wave.memory.read_scalar(wave.read64(base.index) + more, num_words)
        value = sum(word << 32 * n for n, word in enumerate(words))
        wave.write_scalars(target.index, num_words, value)
        wave.issue("lgkm", Access(instruction.line, written, is_scalar=True))

    return Step(
        instruction=instruction,
        execute=execute,
        reads=registers_of([base, offset]),
        writes=written,
    )
