"""Small arithmetic and lists of small numbers. Pairs are held out whichever way round they come."""

from __future__ import annotations

from random import Random

from . import words
from .document import Example, RawText, Turn, exchange, is_held_out

_SUM_ASKS = (
    "What is {a} + {b}?",
    "What is {a} + {b}?",
    "what is {a}+{b}",
    "What's {a} + {b}?",
    "What is {a} plus {b}?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "Calculate {a} + {b}.",
    "Compute {a}+{b}",
    "{a} + {b}",
    "{a} + {b} = ?",
    "{a} + {b} =",
    "{a}+{b}",
    "{a}+{b}=",
    "{a}+{b}=?",
    "{a} plus {b}",
    "What is the sum of {a} and {b}?",
    "Please add {a} and {b}.",
    "Can you add {a} and {b}?",
    "Can you tell me what {a} + {b} is?",
    "If I have {a} apples and get {b} more, how many do I have?",
    "I had {a} coins and found {b} more. How many coins do I have now?",
    "{n} has {a} {item} and buys {b} more. How many {item} does {n} have?",
)
_DIFFERENCE_ASKS = (
    "What is {a} - {b}?",
    "what is {a}-{b}",
    "What is {a} minus {b}?",
    "How much is {a} - {b}?",
    "Subtract {b} from {a}.",
    "Calculate {a} - {b}.",
    "{a} - {b}",
    "{a} - {b} =",
    "{a}-{b}",
    "{a}-{b}=",
    "{n} has {a} {item} and gives away {b}. How many are left?",
)
_LEADS = (
    "Hi, ",
    "Hello! ",
    "Please: ",
    "Quick question: ",
    "Tell me, ",
    "Hey, ",
    "OK, ",
    "Now ",
    "Q: ",
)
_BARE = (" Answer with the number only.", " Only the number.", " Reply with just the number.")


def pair_key(a: int, b: int) -> str:
    low, high = sorted((a, b))
    return f"{low},{high}"


def _ask(rng: Random, forms: tuple[str, ...], a: int, b: int) -> str:
    lead = rng.choice(_LEADS) if rng.random() < 0.12 else ""
    form = rng.choice(forms)
    return lead + form.format(a=a, b=b, n=words.person(rng), item=rng.choice(words.ITEMS))


def _problem(rng: Random, task: str, user: str, formula: str, result: int, key: str) -> Example:
    if rng.random() < 0.15:
        answer = Turn("assistant", str(result), written_out=f"{formula} = {result}")
        return Example(task, key, (Turn("user", user + rng.choice(_BARE)), answer))
    return exchange(task, user, f"{formula} = {result}", key)


def sum_of(rng: Random, a: int, b: int) -> Example:
    user = _ask(rng, _SUM_ASKS, a, b)
    return _problem(rng, "addition", user, f"{a} + {b}", a + b, pair_key(a, b))


def addition(rng: Random) -> Example:
    """Two two-digit numbers."""
    return sum_of(rng, rng.randint(10, 99), rng.randint(10, 99))


def small_addition(rng: Random) -> Example:
    """At least one operand of one digit."""
    a, b = rng.randint(0, 99), rng.randint(0, 9)
    return sum_of(rng, a, b) if rng.random() < 0.5 else sum_of(rng, b, a)


def subtraction(rng: Random) -> Example:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    if a < b and rng.random() < 0.85:
        a, b = b, a
    user = _ask(rng, _DIFFERENCE_ASKS, a, b)
    return _problem(rng, "subtraction", user, f"{a} - {b}", a - b, f"{a},{b}")


def too_hard(rng: Random) -> Example:
    """Problems that this model would get wrong, and says so."""
    big = [rng.randint(100, 9999), rng.randint(100, 9999)]
    forms = ("What is {x} {op} {y}?", "{x} {op} {y}", "{x}{op}{y}", "Calculate {x} {op} {y}.")
    op = rng.choice("+-*x/")
    if op not in "+-":
        big = [rng.randint(2, 999), rng.randint(2, 99)]
    user = rng.choice(forms).format(x=big[0], y=big[1], op=op)
    if op in "*x/" and rng.random() < 0.4:
        phrase = rng.choice(("times", "divided by", "multiplied by"))
        user = f"What is {big[0]} {phrase} {big[1]}?"
    answer = "That is too hard for me. I can only add and subtract numbers below 100."
    return exchange("too hard", user, answer)


_SORT_ASKS = (
    "Sort {x}",
    "Sort {x}.",
    "sort {x}",
    "Sort these numbers: {x}",
    "Sort the numbers {x}.",
    "Sort the list {x}",
    "Please sort {x}.",
    "Put these numbers in order: {x}",
    "Sort from smallest to largest: {x}",
    "Sort in ascending order: {x}",
    "Order these numbers: {x}",
)
_REVERSE_SORT_ASKS = (
    "Sort from largest to smallest: {x}",
    "Sort in descending order: {x}",
    "Sort {x} from largest to smallest.",
)
_PICK_ASKS = (
    "What is the {which} of {x}?",
    "Which number is the {which}: {x}?",
    "Find the {which}: {x}",
)


def _numbers(rng: Random) -> list[int]:
    top = rng.choice((9, 20, 99, 99))
    return [rng.randint(0, top) for _ in range(rng.randint(3, 7))]


def _listed(rng: Random, numbers: list[int]) -> str:
    text = rng.choice((" ", ", ", ", ", ",")).join(map(str, numbers))
    return f"[{text}]" if rng.random() < 0.15 else text


def sorting(rng: Random) -> Example:
    numbers = _numbers(rng)
    down = rng.random() < 0.2
    forms = _REVERSE_SORT_ASKS if down else _SORT_ASKS
    user = rng.choice(forms).format(x=_listed(rng, numbers))
    answer = ", ".join(map(str, sorted(numbers, reverse=down)))
    return exchange("sorting", user, answer, key=" ".join(map(str, numbers)))


def picking(rng: Random) -> Example:
    numbers = _numbers(rng)
    which = rng.choice(("largest", "smallest", "biggest", "maximum", "minimum"))
    user = rng.choice(_PICK_ASKS).format(which=which, x=_listed(rng, numbers))
    best = min(numbers) if which in ("smallest", "minimum") else max(numbers)
    return exchange("picking", user, str(best), key=" ".join(map(str, numbers)))


def counting(rng: Random) -> Example:
    start = rng.choice((1, 1, 1, rng.randint(0, 80)))
    stop = start + rng.randint(2, 19)
    forms: tuple[str, ...] = (
        "Count from {a} to {b}.",
        "Count from {a} to {b}",
        "Please count from {a} to {b}.",
    )
    if start == 1:
        forms += ("Count to {b}.", "Count up to {b}.", "Can you count to {b}?")
    user = words.vary(rng, rng.choice(forms).format(a=start, b=stop))
    return exchange("counting", user, ", ".join(map(str, range(start, stop + 1))))


def sums_text(rng: Random) -> RawText:
    """Lines of finished sums: what `12+30=` gets when it is completed without a chat."""
    lines: list[str] = []
    gap = rng.choice((" ", ""))
    while len(lines) < 8:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if not is_held_out("addition", pair_key(a, b)):
            lines.append(f"{a}{gap}+{gap}{b}{gap}={gap}{a + b}")
    return RawText("\n".join(lines))
