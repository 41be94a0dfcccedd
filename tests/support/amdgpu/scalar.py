"""Scalar instructions on Python's integers: one table, each row with the guide's section."""

from __future__ import annotations

from collections.abc import Callable

from amdgpu.assembly import Instruction
from amdgpu.errors import UnknownInstructionError
from amdgpu.operands import EXEC, SCC, Operand, literal_bits, parse_operand
from amdgpu.semantics import Function, Operation, table
from amdgpu.step import Step
from amdgpu.vector import moves, registers_of
from amdgpu.wave import Wave

Read = Callable[[Wave], int]


def _signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> width - 1 & 1 else value


def _bfe(value: int, field: int) -> int:
    """Offset in bits 5:0 (4:0 of 32-bit forms), width in bits 22:16."""
    return value >> (field & 0x1F) & ((1 << (field >> 16 & 0x7F)) - 1)


def _bfe_signed(value: int, field: int) -> int:
    width = field >> 16 & 0x7F
    return _signed(_bfe(value, field), width) if width else 0


def _overflow(value: int) -> tuple[int, int]:
    return value, int(not -(1 << 31) <= value < 1 << 31)


def _reversed(value: int) -> int:
    return int(f"{value:032b}"[::-1], 2)


def _first_bit_from_top(value: int) -> int:
    return 32 - value.bit_length() if value else -1


def _first_bit_from_bottom(value: int) -> int:
    return (value & -value).bit_length() - 1


# A type with "!" sets SCC to whether the result is not zero; of two results the second is SCC.
def _logic(name: str, function: Function) -> list[tuple[str, str, Function]]:
    return [(f"s_{name}_b{w}", f"u{w}! <- u{w} u{w}", function) for w in (32, 64)]


SOP2: dict[str, Operation] = dict(
    table(
        "SOP2 Instructions",
        ("s_add_u32", "u32 scc <- u32 u32", lambda a, b: (a + b, (a + b) >> 32)),
        ("s_sub_u32", "u32 scc <- u32 u32", lambda a, b: (a - b, int(a < b))),
        ("s_addc_u32", "u32 scc <- u32 u32 scc", lambda a, b, c: (a + b + c, (a + b + c) >> 32)),
        ("s_subb_u32", "u32 scc <- u32 u32 scc", lambda a, b, c: (a - b - c, int(a < b + c))),
        ("s_add_i32", "u32 scc <- i32 i32", lambda a, b: _overflow(a + b)),
        ("s_sub_i32", "u32 scc <- i32 i32", lambda a, b: _overflow(a - b)),
        ("s_min_i32", "u32 scc <- i32 i32", lambda a, b: (min(a, b), int(a < b))),
        ("s_max_i32", "u32 scc <- i32 i32", lambda a, b: (max(a, b), int(a > b))),
        ("s_min_u32", "u32 scc <- u32 u32", lambda a, b: (min(a, b), int(a < b))),
        ("s_max_u32", "u32 scc <- u32 u32", lambda a, b: (max(a, b), int(a > b))),
        ("s_cselect_b32", "u32 <- u32 u32 scc", lambda a, b, c: a if c else b),
        ("s_cselect_b64", "u64 <- u64 u64 scc", lambda a, b, c: a if c else b),
        *_logic("and", lambda a, b: a & b),
        *_logic("or", lambda a, b: a | b),
        *_logic("xor", lambda a, b: a ^ b),
        *_logic("andn2", lambda a, b: a & ~b),
        *_logic("orn2", lambda a, b: a | ~b),
        *_logic("nand", lambda a, b: ~(a & b)),
        *_logic("nor", lambda a, b: ~(a | b)),
        *_logic("xnor", lambda a, b: ~(a ^ b)),
        ("s_lshl_b32", "u32! <- u32 u32", lambda a, b: a << (b & 31)),
        ("s_lshl_b64", "u64! <- u64 u32", lambda a, b: a << (b & 63)),
        ("s_lshr_b32", "u32! <- u32 u32", lambda a, b: a >> (b & 31)),
        ("s_lshr_b64", "u64! <- u64 u32", lambda a, b: a >> (b & 63)),
        ("s_ashr_i32", "u32! <- i32 u32", lambda a, b: a >> (b & 31)),
        ("s_ashr_i64", "u64! <- i64 u32", lambda a, b: a >> (b & 63)),
        ("s_bfm_b32", "u32 <- u32 u32", lambda a, b: ((1 << (a & 31)) - 1) << (b & 31)),
        ("s_mul_i32", "u32 <- i32 i32", lambda a, b: a * b),
        ("s_mul_hi_u32", "u32 <- u32 u32", lambda a, b: a * b >> 32),
        ("s_mul_hi_i32", "u32 <- i32 i32", lambda a, b: a * b >> 32),
        ("s_bfe_u32", "u32! <- u32 u32", _bfe),
        ("s_bfe_i32", "u32! <- u32 u32", _bfe_signed),
        ("s_absdiff_i32", "u32! <- i32 i32", lambda a, b: abs(a - b)),
        *(
            (
                f"s_lshl{n}_add_u32",
                "u32 scc <- u32 u32",
                lambda a, b, n=n: ((a << n) + b, int((a << n) + b >= 1 << 32)),
            )
            for n in (1, 2, 3, 4)
        ),
        ("s_pack_ll_b32_b16", "u32 <- u32 u32", lambda a, b: a & 0xFFFF | (b & 0xFFFF) << 16),
        ("s_pack_lh_b32_b16", "u32 <- u32 u32", lambda a, b: a & 0xFFFF | b & 0xFFFF0000),
        ("s_pack_hh_b32_b16", "u32 <- u32 u32", lambda a, b: a >> 16 | b & 0xFFFF0000),
    )
)

# The constant of 16 bits is sign-extended, but for unsigned comparisons.
SOPK: dict[str, Operation] = dict(
    table(
        "SOPK Instructions",
        ("s_movk_i32", "u32 <- k16", lambda k: k),
        ("s_addk_i32", "u32 scc <- k16 dst", lambda k, d: _overflow(_signed(d, 32) + k)),
        ("s_mulk_i32", "u32 <- k16 dst", lambda k, d: _signed(d, 32) * k),
        ("s_cmovk_i32", "u32 <- k16 dst scc", lambda k, d, c: k if c else d),
    )
)

SOP1: dict[str, Operation] = dict(
    table(
        "SOP1 Instructions",
        ("s_mov_b32", "u32 <- u32", lambda a: a),
        ("s_mov_b64", "u64 <- u64", lambda a: a),
        ("s_not_b32", "u32! <- u32", lambda a: ~a),
        ("s_not_b64", "u64! <- u64", lambda a: ~a),
        ("s_brev_b32", "u32 <- u32", _reversed),
        ("s_bcnt0_i32_b32", "u32! <- u32", lambda a: 32 - a.bit_count()),
        ("s_bcnt1_i32_b32", "u32! <- u32", lambda a: a.bit_count()),
        ("s_bcnt1_i32_b64", "u32! <- u64", lambda a: a.bit_count()),
        ("s_ff1_i32_b32", "u32 <- u32", _first_bit_from_bottom),
        ("s_ff1_i32_b64", "u32 <- u64", _first_bit_from_bottom),
        ("s_flbit_i32_b32", "u32 <- u32", _first_bit_from_top),
        ("s_sext_i32_i8", "u32 <- u32", lambda a: _signed(a & 0xFF, 8)),
        ("s_sext_i32_i16", "u32 <- u32", lambda a: _signed(a & 0xFFFF, 16)),
        ("s_abs_i32", "u32! <- i32", abs),
        ("s_bitset0_b32", "u32 <- u32 dst", lambda a, d: d & ~(1 << (a & 31))),
        ("s_bitset1_b32", "u32 <- u32 dst", lambda a, d: d | 1 << (a & 31)),
        ("s_and_saveexec_b64", "u64 exec! <- u64 exec", lambda a, e: (e, a & e)),
        ("s_or_saveexec_b64", "u64 exec! <- u64 exec", lambda a, e: (e, a | e)),
        ("s_xor_saveexec_b64", "u64 exec! <- u64 exec", lambda a, e: (e, a ^ e)),
        ("s_andn2_saveexec_b64", "u64 exec! <- u64 exec", lambda a, e: (e, a & ~e)),
    )
)

_CONDITIONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "lg": lambda a, b: a != b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
}

SOPC: dict[str, Operation] = dict(
    table(
        "SOPC Instructions",
        *(
            (f"s_cmp_{name}_{t}32", f"scc <- {t}32 {t}32", lambda a, b, f=f: int(f(a, b)))
            for t in "iu"
            for name, f in _CONDITIONS.items()
        ),
        ("s_cmp_eq_u64", "scc <- u64 u64", lambda a, b: int(a == b)),
        ("s_cmp_lg_u64", "scc <- u64 u64", lambda a, b: int(a != b)),
        ("s_bitcmp0_b32", "scc <- u32 u32", lambda a, b: 1 - (a >> (b & 31) & 1)),
        ("s_bitcmp1_b32", "scc <- u32 u32", lambda a, b: a >> (b & 31) & 1),
        *(
            (f"s_cmpk_{name}_i32", "scc <- i32 k16", lambda a, b, f=f: int(f(a, b)))
            for name, f in _CONDITIONS.items()
        ),
        *(
            (f"s_cmpk_{name}_u32", "scc <- u32 u32", lambda a, b, f=f: int(f(a, b)))
            for name, f in _CONDITIONS.items()
        ),
    )
)

SCALAR = {**SOP2, **SOPK, **SOP1, **SOPC}

_IMPLIED = {"scc": Operand("name", text="scc"), "exec": Operand("s", EXEC, 2)}


def decode_scalar(instruction: Instruction, operation: Operation) -> Step:
    """Raises UnknownInstructionError for operands that the row does not have."""
    if instruction.modifiers:
        raise UnknownInstructionError(f"modifiers of {instruction.name}")
    operands = [parse_operand(text) for text in instruction.operands]
    implied = {**_IMPLIED, "dst": operands[0]}
    results, rest = _matched(operation.results, operands, implied)
    sources, rest = _matched(operation.sources, rest, implied)
    if rest:
        raise UnknownInstructionError(f"{len(operands)} operands of {instruction.name}")
    reads = [_reader(operand, t) for operand, t in sources]
    writes = [_writer(operand, t) for operand, t in results]
    sets_scc = any(t == "scc" or t.endswith("!") for _, t in results)
    reads_scc = any(t == "scc" for _, t in sources)
    passes: dict[int, int] = {}
    if operation.name in ("s_mov_b32", "s_mov_b64") and operands[0].index != EXEC:
        passes = moves(operands[0], operands[1])
    read = registers_of([o for o, _ in sources]) | frozenset([SCC] if reads_scc else [])
    return Step(
        instruction=instruction,
        execute=_execute(operation.function, reads, writes),
        reads=read.difference(passes.values()),
        passes=passes,
        writes=registers_of([o for o, _ in results]) | frozenset([SCC] if sets_scc else []),
    )


Typed = tuple[Operand, str]


def _matched(
    types: tuple[str, ...], operands: list[Operand], implied: dict[str, Operand]
) -> tuple[list[Typed], list[Operand]]:
    """Operands with their types, and those left over."""
    found: list[Typed] = []
    left = list(operands)
    for name in types:
        key = name.removesuffix("!")
        if key not in implied and not left:
            raise UnknownInstructionError("an operand is missing")
        found.append((implied[key] if key in implied else left.pop(0), name))
    return found, left


def _reader(operand: Operand, type_name: str) -> Read:
    if type_name == "scc":
        return lambda wave: wave.scc
    if operand.kind == "literal":
        value = _constant(operand, type_name)
        return lambda wave: value
    is_wide = type_name in ("u64", "i64", "exec")
    if operand.kind != "s" or operand.count != 1 + is_wide or operand.is_negative:
        raise UnknownInstructionError(f"an operand that is no {type_name}")
    index = operand.index
    if is_wide:
        if type_name == "i64":
            return lambda wave: _signed(wave.read64(index), 64)
        return lambda wave: wave.read64(index)
    if type_name == "i32":
        return lambda wave: _signed(wave.scalar[index], 32)
    return lambda wave: wave.scalar[index]


def _constant(operand: Operand, type_name: str) -> int:
    if type_name == "k16":
        return _signed(int(operand.value) & 0xFFFF, 16)
    bits = literal_bits(operand.value, type_name)
    return _signed(bits, int(type_name[1:])) if type_name[0] == "i" else bits


def _writer(operand: Operand, type_name: str) -> Callable[[Wave, int], None]:
    if type_name == "scc":
        return _write_scc
    count = 2 if type_name.startswith(("u64", "exec")) else 1
    if operand.kind != "s" or operand.count != count:
        raise UnknownInstructionError(f"a result that is no {type_name}")
    index, mask = operand.index, (1 << 32 * count) - 1

    def write(wave: Wave, value: int) -> None:
        wave.write_scalars(index, count, value)

    def write_and_test(wave: Wave, value: int) -> None:
        wave.write_scalars(index, count, value)
        wave.scc = int(value & mask != 0)

    return write_and_test if type_name.endswith("!") else write


def _write_scc(wave: Wave, value: int) -> None:
    wave.scc = value


def _execute(
    function: Function, reads: list[Read], writes: list[Callable[[Wave, int], None]]
) -> Callable[[Wave], None]:
    if len(writes) == 1:
        (write,) = writes
        return lambda wave: write(wave, function(*(read(wave) for read in reads)))

    def execute(wave: Wave) -> None:
        for write, value in zip(writes, function(*(read(wave) for read in reads)), strict=True):
            write(wave, value)

    return execute
