"""Operands of an instruction: registers, constants and the modifiers written around them."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

# Numbers of registers in one space, for hazards: vector registers, accumulators, scalars, SCC.
ACCUMULATORS = 256
SCALARS = 512
NUM_SCALARS = 128
SCC = SCALARS + NUM_SCALARS

# CDNA3 ISA, "Scalar Operands": encodings of the named scalar registers.
VCC, M0, EXEC = 106, 124, 126
_NAMED = {
    "flat_scratch": (102, 2),
    "flat_scratch_lo": (102, 1),
    "flat_scratch_hi": (103, 1),
    "xnack_mask": (104, 2),
    "vcc": (VCC, 2),
    "vcc_lo": (VCC, 1),
    "vcc_hi": (VCC + 1, 1),
    "m0": (M0, 1),
    "exec": (EXEC, 2),
    "exec_lo": (EXEC, 1),
    "exec_hi": (EXEC + 1, 1),
}
_REGISTER = re.compile(r"(ttmp|s|v|a)(?:(\d+)|\[(\d+)(?::(\d+))?\])")
_FIRST = {"s": 0, "ttmp": 108, "v": 0, "a": ACCUMULATORS}
_FLOAT = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Operand:
    """kind: "s", "v" (accumulators from ACCUMULATORS on), "literal" or "name".

    index, count: of its registers. value: of a literal. text: of a name, such as `off`.
    """

    kind: str
    index: int = 0
    count: int = 1
    value: int | float = 0
    text: str = ""
    is_negative: bool = False
    is_absolute: bool = False
    is_sign_extended: bool = False

    @property
    def registers(self) -> range:
        """In the one space of all registers."""
        first = self.index + (SCALARS if self.kind == "s" else 0)
        return range(first, first + self.count) if self.kind in ("s", "v") else range(0)


def parse_operand(text: str) -> Operand:
    """What is no register and no constant comes back as a name."""
    if text.startswith("-") and not re.fullmatch(r"-(0x[0-9a-fA-F]+|[\d.]+(e[+-]?\d+)?)", text):
        return replace(parse_operand(text[1:]), is_negative=True)
    if inner := re.fullmatch(r"\|(.+)\|", text):
        return replace(parse_operand(inner[1]), is_absolute=True)
    if inner := re.fullmatch(r"(neg|abs|sext)\((.+)\)", text):
        return replace(
            parse_operand(inner[2]),
            is_negative=inner[1] == "neg",
            is_absolute=inner[1] == "abs",
            is_sign_extended=inner[1] == "sext",
        )
    if text in _NAMED:
        index, count = _NAMED[text]
        return Operand("s", index, count)
    if found := _REGISTER.fullmatch(text):
        file, one, first, last = found.groups()
        start = int(one or first)
        count = int(last or start) - start + 1
        return Operand("s" if file in ("s", "ttmp") else "v", _FIRST[file] + start, count)
    if re.fullmatch(r"-?(\d+|0x[0-9a-fA-F]+)", text):
        return Operand("literal", value=int(text, 0))
    if _FLOAT.fullmatch(text):
        return Operand("literal", value=float(text))
    return Operand("name", text=text)


def literal_bits(value: int | float, type_name: str) -> int:
    """Bits of a constant read as `type_name` ("f32", "u64", …): CDNA3 ISA, "Literal Constants".

    A float constant has the operand's own width. An integer is sign-extended, but for 64-bit
    floats a written-out literal is the high half: small integers are inline constants, as they are.
    """
    width = int(type_name[1:])
    if isinstance(value, float):
        return _float_bits(value, width)
    if type_name == "f64" and not -16 <= value <= 64:
        return (value & 0xFFFFFFFF) << 32
    return value & ((1 << width) - 1)


def _float_bits(value: float, width: int) -> int:
    # The assembler writes 1/(2 pi) with the digits of the width at hand.
    form, bits_form = {16: ("<e", "<H"), 32: ("<f", "<I"), 64: ("<d", "<Q")}[width]
    (bits,) = struct.unpack(bits_form, struct.pack(form, value))
    return int(bits)
