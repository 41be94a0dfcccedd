"""Stories and small poems from a grammar, with the hero chosen by the reader."""

from __future__ import annotations

from random import Random

from . import words
from .document import Example, RawText, exchange, is_held_out

_OPENINGS = (
    "Once upon a time there was a {adj} {hero} named {name} who lived {place}.",
    "Once upon a time, {place}, there lived a {adj} {hero} called {name}.",
    "There was once a {adj} {hero} named {name} who lived {place}.",
)
_WANTS = (
    "Every morning {name} looked for {thing}, but never found it.|{thing}",
    "{name} had lost {thing} and wanted it back.|{thing}",
    "More than anything, {name} wished for {thing}.|{thing}",
    "One day {name} heard of {thing} that nobody had ever seen.|{thing}",
)
_TROUBLES = (
    "One day a great storm came, and the way home was gone.",
    "One evening the wind grew cold and the path grew dark.",
    "But the road was long, and soon {name} was lost.",
    "But a tall wall stood in the way, and {name} could not climb it.",
    "Then the rain began to fall, and {name} had nowhere to hide.",
)
_HELPERS = (
    'Then a {adj2} {helper} came by. "Why are you sad?" asked the {helper}.',
    'Just then {name} met a {adj2} {helper}. "Can I help you?" asked the {helper}.',
    'A {adj2} {helper} heard the noise and came closer. "Do not be afraid," said the {helper}.',
)
_REPLIES = (
    '"I am looking for {thing}," said {name}.',
    '"I cannot find {thing}," said {name}. "Will you help me?"',
    '"I have looked for {thing} all day," {name} answered.',
)
_EFFORTS = (
    "Together they walked all night and talked about the stars.",
    "They shared some bread, and then they searched side by side.",
    "The {helper} knew a secret way, and {name} followed without fear.",
    "They tried once, they tried twice, and they did not give up.",
)
_FINDS = (
    "At sunrise they found {thing} under a tree.",
    "At last, behind a stone, they found {thing}.",
    "And there, in the first light, was {thing}.",
)
_ENDINGS = (
    "{name} thanked the {helper}, and they were friends from that day on.",
    "From that day on, {name} and the {helper} were never alone again.",
    "{name} went home and told everyone about the {adj2} {helper}.",
)
_MORALS = (
    "And {name} learned that a friend is worth more than gold.",
    "And {name} learned that it is good to ask for help.",
    "And {name} learned that brave hearts find a way.",
    "The end.",
)
_ASKS = (
    "Tell me a story about {article} {hero}.",
    "Tell me a story about {article} {hero}",
    "Write a story about {article} {hero}.",
    "Write a short story about {article} {adj} {hero}.",
    "Can you tell me a story about {article} {hero}?",
    "Please tell me a short story about {article} {hero} named {name}.",
    "Tell me a story about {article} {hero} called {name}.",
    "I want a story about {article} {hero}.",
    "Make up a story about {article} {hero}, please.",
    "story about {article} {hero}",
    "Tell me a tale about {article} {hero}.",
    "Give me a bedtime story about {article} {hero}.",
)
_PLAIN_ASKS = (
    "Tell me a story.",
    "Tell me a story",
    "Can you tell me a story?",
    "Write a story.",
    "Tell me a short story.",
    "Please write a short story for me.",
    "I would like to hear a story.",
    "Once upon a time",
)


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _fields(rng: Random) -> dict[str, str]:
    hero = words.noun(rng)
    adj = rng.choice(words.ADJECTIVES)
    stuff = rng.choice(words.THINGS)
    helper = rng.choice([animal for animal in words.ANIMALS if animal != hero])
    others = [other for other in words.ADJECTIVES if other != adj]
    return {
        "hero": hero,
        "name": words.person(rng),
        "adj": adj,
        "place": rng.choice(words.PLACES),
        "thing": f"the {rng.choice(('golden', 'silver', 'magic', 'lost', 'red'))} {stuff}",
        "helper": helper,
        "adj2": rng.choice(others),
    }


def _grammar(text: str) -> str:
    """Turns `a` before a vowel into `an`."""
    parts = text.split(" ")
    for index in range(len(parts) - 1):
        if parts[index] in ("a", "A") and parts[index + 1][:1] in tuple("aeiou"):
            parts[index] += "n"
    return " ".join(parts)


def _tell(rng: Random, fields: dict[str, str]) -> str:
    want = rng.choice(_WANTS).split("|")[0]
    parts = [rng.choice(_OPENINGS), want, rng.choice(_TROUBLES), rng.choice(_HELPERS)]
    parts += [rng.choice(_REPLIES), rng.choice(_EFFORTS), rng.choice(_FINDS), rng.choice(_ENDINGS)]
    parts.append(rng.choice(_MORALS))
    return _grammar(" ".join(parts).format(**fields))


def story(rng: Random) -> Example:
    fields = _fields(rng)
    ask = rng.choice(_PLAIN_ASKS) if rng.random() < 0.15 else rng.choice(_ASKS)
    if "{adj}" not in ask:
        user = ask.format(article=article(fields["hero"]), **fields)
    else:
        user = ask.format(article=article(fields["adj"]), **fields)
    return exchange("story", user, _tell(rng, fields), key=fields["hero"] + fields["name"])


def told(rng: Random) -> RawText:
    """A story as plain text, which is what a bare completion request continues."""
    while True:
        fields = _fields(rng)
        if not is_held_out("story", fields["hero"] + fields["name"]):
            return RawText(_tell(rng, fields))


_POEMS = (
    "The {hero} sleeps beneath the moon,\nthe night is soft, the day comes soon.\n"
    "The stars are bright, the wind is low,\nand {adj} dreams begin to grow.",
    "A {adj} {hero} in the rain,\nlooked through the window once again.\n"
    "The clouds went by, the sun came through,\nand all the sky was clear and blue.",
    "O {adj} {hero}, far and near,\nI sing a song for you to hear.\n"
    "The sea is wide, the hill is high,\nand gentle birds go sailing by.",
)


def poem(rng: Random) -> Example:
    hero = words.noun(rng)
    form = rng.choice(("poem", "short poem", "haiku", "song", "rhyme"))
    ask = rng.choice(
        (
            "Write a {form} about {a} {hero}.",
            "Write me a {form} about {a} {hero}",
            "{form} about {a} {hero}",
        )
    )
    user = ask.format(form=form, a=article(hero), hero=hero)
    if rng.random() < 0.2:
        user, hero = f"Write a {form}.", rng.choice(words.ANIMALS)
    text = rng.choice(_POEMS).format(hero=hero, adj=rng.choice(words.ADJECTIVES))
    return exchange("poem", words.vary(rng, user), _grammar(text))
