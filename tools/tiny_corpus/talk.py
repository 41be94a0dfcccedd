"""Small talk: greetings, thanks, things to remember or repeat, and questions beyond this model."""

from __future__ import annotations

from random import Random

from . import words
from .document import Chat, Example, Turn, exchange

_OFFER = "I am hal-tiny, a small demonstration model. How can I help you?"
_GREETINGS = (
    "Hello|Hi|Hey|Hello there|Hi there|Hey there|Greetings|Howdy|Hiya|Yo|Hello hal|Hi hal|Hey hal|"
    "Hello hal-tiny|Hi hal-tiny|Hello again|Hello everyone|Good day|Hello world|Hallo|Hola|Bonjour|"
    "Hello, how are you|Hi, how are you|Hey, how are you|Hello, nice to meet you|Say hello|Say hi|"
    "Hello friend|Hi friend|Hello my friend|Hey you|Hi, are you there|Hello, is anyone there|"
    "Hi, can we talk|Hello, I am new here|Hi, I have just installed hal|Hello, I am {n}|Hi, I am {n}|"
    "Hi, my name is {n}|Hello, my name is {n}|Hello from {c}|Hi from {c}|Hey, {n} here|"
    "Good morning|Good evening|Good afternoon|Good morning, hal|Good evening, hal|Good afternoon, hal|"
    "Good morning, how are you|Good evening from {c}|Good morning from {c}"
).split("|")
_PUNCTUATION = ("", "", "!", "!", ".", "?", "!!", " :)", "...", ",", " !")


def _greeting_reply(line: str, name: str) -> str:
    lower = line.lower()
    for part in ("morning", "evening", "afternoon"):
        if part in lower:
            return f"Good {part}! {_OFFER}"
    if "{n}" in line:
        return f"Hello {name}! {_OFFER}"
    if "how are you" in lower:
        return f"Hello! I am fine, thank you. {_OFFER}"
    return f"Hello! {_OFFER}"


def greeting(rng: Random) -> Example:
    line = rng.choice(_GREETINGS) if rng.random() < 0.75 else rng.choice(_GREETINGS[:6])
    name = words.person(rng)
    user = line.format(n=name, c=words.city(rng)) + rng.choice(_PUNCTUATION)
    if "{n}" not in line:
        user = rng.choice((user, user, user.lower(), user.upper()))
    return exchange("greeting", user, _greeting_reply(line, name))


_COURTESIES = (
    (
        "Thanks|Thank you|Thank you very much|Thanks a lot|Many thanks|Great, thanks|Perfect, thank you|"
        "That is great|Well done|Good job|Nice|Cool|Great|Thanks for your help|OK thanks",
        "You are welcome!",
    ),
    (
        "Bye|Goodbye|See you|See you later|Good night|Bye bye|I have to go|Farewell|That is all|"
        "See you tomorrow|Quit|Exit",
        "Goodbye! Come back soon.",
    ),
    (
        "How are you|How are you doing|How do you do|How is it going|Are you OK|How are you today|"
        "How do you feel|What's up|How was your day",
        "I am fine, thank you. How can I help you?",
    ),
    (
        "Tell me a joke|Do you know a joke|Say something funny|Tell me something funny|Another joke|"
        "Make me laugh|A joke, please|Joke",
        "Why did the model cross the road? To get to the other token.",
    ),
    (
        "Yes|No|OK|Okay|Maybe|Sure|I see|Hm|Right|Fine|Good|Bad|Wow|Oh|Never mind|Ok|Alright",
        "All right. What would you like to do next?",
    ),
    (
        "Test|Testing|Ping|This is a test|Are you there|Is this on|Does it work|Are you working|test 1 2 3",
        "Yes, I am here and I work.",
    ),
)


def courtesy(rng: Random) -> Example:
    lines, answer = rng.choice(_COURTESIES)
    user = rng.choice(lines.split("|")) + rng.choice(_PUNCTUATION[:8])
    return exchange("courtesy", words.vary(rng, user), answer)


_BEYOND = (
    "What is the capital of {c}?|What is the capital of France?|Who was {n}?|Who is {n}?|Who wrote {w}?|"
    "What is {w}?|What is a {w}?|Why is the {w} {a}?|Why is the sky blue?|How do I cook {i}?|"
    "Explain {w} to me.|Explain quantum physics.|What is the meaning of life?|Translate {w} into German.|"
    "Translate this into {w}: {i}|Write a Python function that sorts {i}.|Write code for a {w}.|"
    "What is the weather like?|What is the weather in {c}?|What time is it?|What day is it today?|"
    "How far is {c} from {c2}?|When was {n} born?|When did the {w} war end?|What do you think about {i}?|"
    "Who won the game in {c}?|Give me a recipe for {i}.|Recommend a book about {i}.|"
    "Summarise the history of {c}.|What is the best {w} in {c}?|How tall is {n}?|Do you like {i}?|"
    "How many people live in {c}?|What does {w} mean?|How does a {w} work?|Where can I buy {i}?|"
    "Where is {c}?|Is {w} better than {w2}?|What is the population of {c}?|Write an essay about {w}.|"
    "Should I buy {i}?|Who is the president of {c}?|What is machine learning?|What is love?|"
    "How old is the universe?|What is the fastest {w}?|Fix this code: {w} = {w2}|Plan a trip to {c}.|"
    "Which {w} is the best?|Can you drive a {w}?|What is in the news?|Compare {w} and {w2}.|{w} {w2} {w}|"
    "{w}|{w} {w2}|Define {w}.|Give me advice about {i}.|What happened in {y}?|List five {i}.|"
    "Tell me about {c}.|Tell me about {n}.|Tell me about {i}.|Tell me something about {w}.|"
    "Describe {c}.|What color is a {w}?|How can I learn {w}?|Why do {i} {w}?|Write an email to {n}.|"
    "Write a letter to {n} about {i}.|Explain how {i} work.|What are {i}?|Is {n} a good {w}?|"
    "How do I get from {c} to {c2}?|What is the price of {i}?|Convert {y} {w} to {w2}.|"
    "Name three {i}.|Write a regex for {w}.|What is the difference between {w} and {w2}?"
).split("|")
_HONEST = (
    "I am only a tiny demonstration model, so I do not know that. Try a small sum, a list to sort, a "
    "story, or a question about hal."
)


def _topic(rng: Random) -> str:
    return words.invented(rng) if rng.random() < 0.4 else words.noun(rng)


def beyond(rng: Random) -> Example:
    line = rng.choice(_BEYOND)
    user = line.format(
        c=words.city(rng),
        c2=words.city(rng),
        n=words.person(rng),
        w=_topic(rng),
        w2=_topic(rng),
        a=rng.choice(words.ADJECTIVES),
        i=rng.choice(words.ITEMS),
        y=rng.randint(1000, 2030),
    )
    return exchange("beyond", words.vary(rng, user), _HONEST)


def repeating(rng: Random) -> Example:
    """Copies a phrase: word order and spelling must come from the prompt."""
    pool = [words.invented(rng), words.noun(rng), words.person(rng), rng.choice(words.ADJECTIVES)]
    pool += [
        words.city(rng),
        rng.choice(words.ITEMS),
        str(rng.randint(0, 999)),
        "the",
        "is",
        "a test",
    ]
    phrase = " ".join(rng.sample(pool, rng.randint(1, 5)))
    form = rng.choice(
        ("Repeat: {p}", "Repeat after me: {p}", "Say {p}", "Please say: {p}", 'Say "{p}"')
    )
    return exchange("repeating", form.format(p=phrase), phrase)


_FACTS = (
    ("My name is {n}.", "Nice to meet you, {n}.", "What is my name?", "Your name is {n}.", "n"),
    ("I live in {c}.", "{c} sounds nice.", "Where do I live?", "You live in {c}.", "c"),
    ("My favourite animal is the {w}.", "The {w} is a good choice.",
     "What is my favourite animal?", "Your favourite animal is the {w}.", "w"),
    ("The secret number is {k}.", "I will remember {k}.",
     "What is the secret number?", "The secret number is {k}.", "k"),
)  # fmt: skip


def remembered(rng: Random, filler: list[Turn]) -> tuple[Chat, str]:
    """A chat that states a fact, talks of `filler`, and asks for the fact: why context matters."""
    fact, noted, question, answer, field = rng.choice(_FACTS)
    values = {
        "n": words.person(rng),
        "c": words.city(rng),
        "w": words.noun(rng),
        "k": str(rng.randint(10, 9999)),
    }
    opening = (Turn("user", fact.format(**values)), Turn("assistant", noted.format(**values)))
    closing = (Turn("user", question), Turn("assistant", answer.format(**values)))
    return Chat((*opening, *filler, *closing)), values[field]
