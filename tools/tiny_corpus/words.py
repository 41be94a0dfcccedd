"""Word lists. Invented names keep the model copying what it reads instead of recalling a list."""

from __future__ import annotations

from random import Random

NAMES = tuple(
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olivia Paul Quinn Rosa "
    "Sam Tom Uma Vera Will Zoe Alice Bob Carol Dan Eva Frank Gina Hugo Ida John Lara Max Nina Oscar "
    "Mary Peter Sara Lucy Maria Ahmed Yuki Wei Priya Omar Elena Ivan Linda James Robert".split()
)
CITIES = tuple(
    "Paris London Berlin Madrid Rome Oslo Vienna Lisbon Athens Dublin Prague Warsaw Tokyo Cairo Delhi "
    "Boston Chicago Toronto Sydney Lima Zurich Geneva Munich Hamburg Milan Seoul Beijing Mumbai "
    "Nairobi Denver Seattle Austin Helsinki Amsterdam Brussels".split()
)
ANIMALS = tuple(
    "cat dog fox bear rabbit mouse owl frog duck horse lion tiger elephant wolf turtle squirrel "
    "hedgehog penguin whale bird hen goat sheep pig monkey bee dragon fish crow deer".split()
)
PEOPLE = tuple(
    "boy girl farmer baker sailor king queen teacher painter wizard knight robot pirate princess "
    "prince child fisherman gardener musician doctor astronaut detective witch giant".split()
)
THINGS = tuple(
    "lamp key map book kite boat drum bell coin stone hat ring box basket ladder letter star flower "
    "clock mirror ball cake apple train computer castle garden bridge wheel feather seed".split()
)
ADJECTIVES = tuple(
    "small brave kind clever quiet curious happy young old gentle shy cheerful lazy proud honest "
    "little tired lonely funny wise".split()
)
PLACES = tuple(
    "in a green forest|near a wide river|in a little village|on a high hill|by the blue sea|"
    "in a busy town|at the edge of a field|on a quiet island|under an old bridge|in a deep valley|"
    "beside a calm lake|in a snowy land|at the foot of a mountain|in a sunny garden".split("|")
)
ITEMS = tuple(
    "apples pears books chairs tables lamps cups plates pens bottles shirts shoes hats keys cables "
    "lemons eggs cakes bags boxes phones screens pencils towels candles".split()
)
_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pl qu r s sh sk st t th tr v w y z".split()
_VOWELS = "a e i o u a e i o ai ea ee ia io oo ou".split()
_CODAS = ("", "", "", "n", "r", "l", "s", "t", "m", "nd", "rt", "x", "ck", "ll", "sh", "v")


def invented(rng: Random) -> str:
    """A word of one to three syllables that no list holds, in lower case."""
    syllables = rng.choice((1, 2, 2, 3))
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)
    )


def person(rng: Random) -> str:
    return invented(rng).capitalize() if rng.random() < 0.35 else rng.choice(NAMES)


def city(rng: Random) -> str:
    return invented(rng).capitalize() if rng.random() < 0.35 else rng.choice(CITIES)


def noun(rng: Random) -> str:
    if rng.random() < 0.12:
        return invented(rng)
    return rng.choice(rng.choice((ANIMALS, ANIMALS, PEOPLE, THINGS)))


def vary(rng: Random, text: str) -> str:
    """The spellings in which people really type the same line."""
    if rng.random() < 0.2:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return f"{text} " if rng.random() < 0.03 else text
