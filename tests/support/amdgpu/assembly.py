"""Assembly text of one kernel: instructions with their lines, labels, descriptor, arguments.

The format is LLVM's for `amdhsa` code objects of version 5: https://llvm.org/docs/AMDGPUUsage.html
("Code Object V5 Metadata", "amdhsa_kernel").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from amdgpu.errors import LaunchError

_INSTRUCTION = re.compile(r"^\s+([a-z][a-z0-9]*_[a-z0-9_]+)(?:\s+(.*))?$")
_LABEL = re.compile(r"^([.\w$]+):")
_DIRECTIVE = re.compile(r"^\s+\.amdhsa_(\w+)\s+(\S+)")
_TARGET = re.compile(r"\bamdhsa-unknown-(gfx\w+)|amdhsa--(gfx\w+)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """name: as written, suffix of the encoding included. operands: as written, in order.

    modifiers: `offset:16` as {"offset": "16"}, and a flag such as `offen` as {"offen": ""}
    """

    name: str
    operands: tuple[str, ...]
    modifiers: Mapping[str, str]
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Argument:
    """Of the kernarg segment, in bytes. kind: `global_buffer`, `by_value` or a hidden one."""

    offset: int
    size: int
    kind: str


@dataclass(frozen=True, slots=True)
class Assembly:
    """labels: name -> index into instructions of what follows. directives: without `amdhsa_`."""

    arch: str
    name: str
    instructions: tuple[Instruction, ...]
    labels: Mapping[str, int]
    directives: Mapping[str, int]
    arguments: tuple[Argument, ...]


def parse(text: str, kernel: str = "") -> Assembly:
    """`kernel`: its name; "" where the text has one kernel only.

    Raises LaunchError where the text has no such kernel.
    """
    lines = text.split("\n")
    names = re.findall(r"^\s*\.amdhsa_kernel\s+(\S+)", text, re.MULTILINE)
    name = kernel or (names[0] if len(names) == 1 else "")
    if name not in names:
        raise LaunchError(f"no kernel {name!r} in the text; kernels: {', '.join(names)}")
    instructions, labels = _body(lines, name)
    target = _TARGET.search(text)
    return Assembly(
        arch=next(filter(None, target.groups())) if target else "",
        name=name,
        instructions=instructions,
        labels=labels,
        directives=_directives(lines, name),
        arguments=tuple(_arguments(text, name)),
    )


def _body(lines: list[str], name: str) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    """From the kernel's label to the end of its function."""
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{name}:"))
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for number, line in enumerate(lines[start:], start + 1):
        code = _without_comment(line)
        if label := _LABEL.match(code):
            if label[1].startswith(".Lfunc_end"):
                break
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(code):
            instructions.append(_instruction(found[1], found[2] or "", number, code))
    return tuple(instructions), labels


def _without_comment(line: str) -> str:
    return line.partition(";")[0].partition("//")[0].rstrip()


def _instruction(name: str, rest: str, number: int, code: str) -> Instruction:
    operands: list[str] = []
    modifiers: dict[str, str] = {}
    parts = _split(rest, ",")
    for part in parts[:-1]:
        operands.append(part.strip())
    tokens = _split(parts[-1].strip(), " ") if parts else []
    if tokens:
        operands.append(tokens[0])
    for token in tokens[1:]:
        key, _, value = token.partition(":")
        modifiers[key] = value
    return Instruction(name, tuple(operands), modifiers, number, code.strip())


def _split(text: str, separator: str) -> list[str]:
    """At separators outside brackets; empty parts dropped."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in "[(") - (char in "])")
        if char == separator and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [part for part in (*parts, current) if part.strip()]


def _directives(lines: list[str], name: str) -> dict[str, int]:
    start = next(
        i for i, line in enumerate(lines) if re.match(rf"\s*\.amdhsa_kernel {name}$", line)
    )
    found: dict[str, int] = {}
    for line in lines[start + 1 :]:
        if ".end_amdhsa_kernel" in line:
            break
        directive = _DIRECTIVE.match(line)
        # Some are expressions of symbols; none of them concerns a launch.
        if directive and re.fullmatch(r"-?\d+|0x[0-9a-f]+", directive[2]):
            found[directive[1]] = int(directive[2], 0)
    return found


def _arguments(text: str, name: str) -> Iterator[Argument]:
    """Of the kernel whose `.name` follows its `.args` in the metadata note."""
    note = text.partition(".amdgpu_metadata")[2].partition(".end_amdgpu_metadata")[0]
    kernels = re.split(r"^  - ", note, flags=re.MULTILINE)
    block = next((b for b in kernels if re.search(rf"^\s+\.name:\s+{name}$", b, re.MULTILINE)), "")
    arguments = block.partition(".args:")[2]
    for item in re.split(r"^\s+- ", arguments, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"\.(\w+):\s+(\S+)", item))
        yield Argument(int(fields["offset"]), int(fields["size"]), fields["value_kind"])
