"""JSON from sentences, and tool calls with their results."""

from __future__ import annotations

from random import Random

from . import words
from .document import Example, Tool, Turn, compact_json, exchange

Record = dict[str, str | int]

_PERSON = (
    "{name} is {age} years old and lives in {city}.",
    "{name}, {age}, lives in {city}.",
    "{name} lives in {city} and is {age} years old.",
    "My name is {name}, I am {age} and I live in {city}.",
    "I met {name} in {city}. {name} is {age}.",
    "{name} from {city} is {age} years old.",
    "This is {name}. Age {age}, home {city}.",
)
_ORDER = (
    "I would like {quantity} {item} for {price} dollars.",
    "Please send {quantity} {item}. The price is {price} dollars.",
    "{quantity} {item} cost {price} dollars.",
    "We ordered {quantity} {item} at {price} dollars.",
    "Order: {quantity} {item}, {price} dollars.",
)
_MEETING = (
    "The meeting with {person} is on {day} at {hour} in {city}.",
    "On {day} at {hour} I meet {person} in {city}.",
    "{person} comes to {city} on {day} at {hour}.",
    "See {person} at {hour} on {day} in {city}.",
)
_KINDS = (
    (_PERSON, ("name", "age", "city")),
    (_PERSON, ("name", "age", "city")),
    (_ORDER, ("item", "quantity", "price")),
    (_MEETING, ("person", "day", "hour", "city")),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ASKS = (
    "Extract {keys} as JSON: {text}",
    "Extract {keys} as JSON: {text}",
    "Extract the {keys} as JSON: {text}",
    "Extract {keys} from this text as JSON: {text}",
    "Return {keys} as JSON. {text}",
    "Return JSON with the keys {keys}. Text: {text}",
    "{text} Extract {keys} as JSON.",
    "{text} Give me {keys} as JSON.",
    "{text}\nReply with a JSON object with {keys}.",
    "Answer in JSON with {keys}: {text}",
    "Give me a JSON object with {keys} from: {text}",
    "Convert to JSON ({keys}): {text}",
    "Parse this into JSON with {keys}: {text}",
    "JSON with {keys}: {text}",
)
_FREE_ASKS = (
    "Write a JSON object with {keys}.",
    "Make up a JSON object with {keys}",
    "Give me JSON with {keys}.",
)
_WHOLE_ASKS = (
    "Extract as JSON: {text}",
    "Convert to JSON: {text}",
    "As JSON: {text}",
    "{text} As JSON, please.",
)


def _record(rng: Random) -> Record:
    return {
        "name": words.person(rng),
        "age": rng.randint(1, 99),
        "city": words.city(rng),
        "item": words.invented(rng) if rng.random() < 0.2 else rng.choice(words.ITEMS),
        "quantity": rng.randint(1, 99),
        "price": rng.randint(1, 999),
        "person": words.person(rng),
        "day": rng.choice(_DAYS),
        "hour": f"{rng.randint(0, 23)}:{rng.choice(('00', '15', '30', '45'))}",
    }


def _joined(keys: list[str], rng: Random) -> str:
    if len(keys) == 1:
        return keys[0]
    if rng.random() < 0.3:
        return ", ".join(keys)
    return ", ".join(keys[:-1]) + " and " + keys[-1]


def extraction(rng: Random) -> Example:
    sentences, all_keys = rng.choice(_KINDS)
    record = _record(rng)
    text = rng.choice(sentences).format(**record)
    if rng.random() < 0.12:
        keys = list(all_keys)
        user = rng.choice(_WHOLE_ASKS).format(text=text)
    elif rng.random() < 0.06:
        keys = list(all_keys)
        user = rng.choice(_FREE_ASKS).format(keys=_joined(keys, rng))
    else:
        keys = rng.sample(all_keys, rng.randint(1, len(all_keys)))
        if rng.random() < 0.7:
            keys.sort(key=all_keys.index)
        user = rng.choice(_ASKS).format(keys=_joined(keys, rng), text=text)
    answer = compact_json({key: record[key] for key in keys})
    return exchange("json", user, answer, key=text)


_WEATHER = Tool("get_weather", "Get the weather in a city", ("city",))
_TIME = Tool("get_time", "Get the time in a city", ("city",))
_TIMER = Tool("set_timer", "Set a timer", ("minutes",))
_SEND = Tool("send_message", "Send a message to a person", ("to", "text"))
_SEARCH = Tool("search", "Search the web", ("query",))
_TOOLS = (_WEATHER, _TIME, _TIMER, _SEND, _SEARCH)
_MESSAGES = (
    "I am late",
    "see you soon",
    "call me",
    "happy birthday",
    "lunch is ready",
    "good luck",
)

_Call = tuple[Tool, str, Record, str, str]


def tool_call_text(name: str, arguments: Record) -> str:
    """The Hermes form, which existing tool parsers read."""
    return f"<tool_call>{compact_json({'name': name, 'arguments': arguments})}</tool_call>"


def _place_call(rng: Random) -> _Call:
    city = words.city(rng)
    if rng.random() < 0.5:
        forms: tuple[str, ...] = ("What is the weather in {c}?", "What is the weather like in {c}?", "weather in {c}",
                 "How is the weather in {c} today?", "Is it raining in {c}?")  # fmt: skip
        degrees, sky = rng.randint(-9, 39), rng.choice(("sunny", "cloudy", "rainy", "windy"))
        result = compact_json({"sky": sky, "degrees": degrees})
        said = f"It is {sky} in {city}, with {degrees} degrees."
        return _WEATHER, rng.choice(forms).format(c=city), {"city": city}, result, said
    clock = f"{rng.randint(0, 23)}:{rng.randint(10, 59)}"
    forms = (
        "What time is it in {c}?",
        "Tell me the time in {c}.",
        "time in {c}",
        "How late is it in {c}?",
    )
    said = f"It is {clock} in {city}."
    return (
        _TIME,
        rng.choice(forms).format(c=city),
        {"city": city},
        compact_json({"time": clock}),
        said,
    )


def _deed_call(rng: Random) -> _Call:
    which = rng.randrange(3)
    forms: tuple[str, ...]
    if which == 0:
        minutes = rng.randint(1, 90)
        forms = ("Set a timer for {m} minutes.", "Start a timer of {m} minutes.", "timer {m} minutes",
                 "Wake me in {m} minutes.")  # fmt: skip
        said = f"The timer is set for {minutes} minutes."
        arguments: Record = {"minutes": minutes}
        return _TIMER, rng.choice(forms).format(m=minutes), arguments, '{"ok": true}', said
    if which == 1:
        who, text = words.person(rng), rng.choice(_MESSAGES)
        forms = ("Tell {p} that {t}.", "Send {p} the message: {t}", "Send a message to {p}: {t}")
        said = f"I sent your message to {who}."
        arguments = {"to": who, "text": text}
        return _SEND, rng.choice(forms).format(p=who, t=text), arguments, '{"ok": true}', said
    query = f"{rng.choice(words.ADJECTIVES)} {words.noun(rng)}"
    forms = ("Search for {q}.", "Search the web for {q}", "Look up {q}.", "Find pages about {q}.")
    found = f"All about the {query}"
    said = f"I found this page: {found}."
    return (
        _SEARCH,
        rng.choice(forms).format(q=query),
        {"query": query},
        compact_json({"title": found}),
        said,
    )


def tool_use(rng: Random) -> Example:
    """Ends either with the call, or with the answer that follows the tool's result."""
    tool, user, arguments, result, said = rng.choice((_place_call, _deed_call))(rng)
    others = [other for other in _TOOLS if other is not tool]
    tools = [tool, *rng.sample(others, rng.randint(0, 2))]
    rng.shuffle(tools)
    call = Turn("assistant", tool_call_text(tool.name, arguments))
    turns: tuple[Turn, ...] = (Turn("user", user), call)
    if rng.random() < 0.4:
        turns = (*turns, Turn("tool", result), Turn("assistant", said))
    return Example("tool use", user, turns, tuple(tools))
