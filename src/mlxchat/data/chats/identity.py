"""Generates conversations that teach a model who it is: its name, its maker and other facts.

Every question is asked in many ways, with and without greetings, carelessly typed, alone or within
small talk; the wordings are in `mlxchat.data.chats.asking`. Some ways to ask for the name are held
out (`asking.HELD_OUT_QUESTIONS`), to see whether a model has learned the name or only the
questions.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import NamedTuple

from mlxchat.data.chats import asking
from mlxchat.data.corpus.smalltalk import SMALL_TALK
from mlxchat.data.corpus.world import Question
from mlxchat.errors import ConfigError
from mlxchat.tokenizer.messages import Conversation, Message

LONGEST_KEY = 60  # characters
LONGEST_FACT = 300
MAKER_KEY = "made by"
CARELESS_SHARE = 1 / 4  # share of questions without capitals and marks
MISTYPED_SHARE = 1 / 10  # share of questions with two letters swapped
GREETED_SHARE = 1 / 5  # share of questions with a greeting before them
AMID_TALK_SHARE = 1 / 3  # share of conversations with small talk before or after the question
ASKED_TWICE_SHARE = 1 / 4  # share of conversations that ask for something else about the model, too

_FORM = 'Write it like `identity="name=Ada, made by=Grace, purpose=help with homework"`.'


@dataclass(frozen=True)
class Identity:
    """A model's name, its maker (optional), and facts as keys and values."""

    name: str
    made_by: str | None = None
    facts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Identity":
        """Read ``name=Ada, made by=Grace, born=2026``; a value may have commas, a key may not.

        Commas and blanks around a value are dropped.

        Raises:
            MlxchatError: no name, a key twice or without a value, something too long, or an equals
                sign in a name.
        """
        values: dict[str, str] = {}
        for pair in re.split(r",(?=[^,=]*=)", text):
            key, equals, value = (piece.strip() for piece in pair.partition("="))
            key, value = " ".join(key.lower().replace("_", " ").split()), value.strip(", ")
            if not (key and equals and value):
                raise ConfigError(
                    f"{pair.strip()!r} in the identity is not of the form KEY=VALUE.", _FORM
                )
            if key in values:
                raise ConfigError(f"The identity gives {key} twice.", _FORM)
            if key in ("name", MAKER_KEY) and "=" in value:
                raise ConfigError(
                    f"The identity's {key} would be {value!r}. Separate the KEY=VALUE pairs with "
                    "commas.",
                    _FORM,
                )
            longest = LONGEST_KEY if key in ("name", MAKER_KEY) else LONGEST_FACT
            if len(value) > longest or len(key) > LONGEST_KEY or not value.isprintable():
                raise ConfigError(
                    f"The identity's {key[:LONGEST_KEY]} is too long or has unprintable "
                    f"characters; {longest} characters are the most.",
                    _FORM,
                )
            values[key] = value
        if "name" not in values:
            raise ConfigError("The identity does not include a name.", _FORM)
        name, maker = values.pop("name"), values.pop(MAKER_KEY, None)
        return cls(name, maker, tuple(values.items()))


class _Topic(NamedTuple):
    """Questions, their possible answers, the values of placeholders, and a relative frequency."""

    questions: Sequence[str]
    answers: Sequence[str]
    words: Mapping[str, str]
    weight: int


def identity_conversations(identity: Identity, seed: int, count: int) -> Iterator[Conversation]:
    """Yield ``count`` conversations in which a user asks a model who it is."""
    topics = _topics(identity)
    weights = [topic.weight for topic in topics]
    talk = [said for said in SMALL_TALK if not is_asked(identity, said.prompt)]
    for number in range(count):
        rng = Random(f"identity/{seed}/{number}")
        asked = 2 if rng.random() < ASKED_TWICE_SHARE else 1
        turns = [_asked(rng, topic) for topic in rng.choices(topics, weights, k=asked)]
        if rng.random() < AMID_TALK_SHARE:
            turns.insert(rng.randrange(asked + 1), rng.choice(talk))
        messages = []
        for turn in turns:
            messages += [Message("user", turn.prompt), Message("assistant", turn.answer)]
        yield Conversation(tuple(messages))


def is_asked(identity: Identity, prompt: str) -> bool:
    """Return whether a prompt asks a model who it is, in words trained on or held out.

    Capitals, punctuation and a greeting before it do not count.
    """
    return _normal(prompt) in _questions(identity)


def _topics(identity: Identity) -> list[_Topic]:
    maker = identity.made_by
    words = {"name": identity.name, "made": f", made by {maker}" if maker else ""}
    others = [name for name in asking.OTHER_MODELS if name.lower() != identity.name.lower()]
    topics = [
        _Topic(*asking.YOUR_NAME, words, 42),
        _Topic(*asking.SELF, words, 42),
        _Topic(*asking.KIND, words, 21),
        _Topic(*asking.CALLED_BY_NAME, words, 14),
        _Topic(*asking.SAME, words, 14),
        *(_Topic(*asking.OTHER, {**words, "other": other}, 2) for other in others),
        *(_Topic(*foreign, words, 4) for foreign in asking.FOREIGN),
    ]
    if maker:
        topics.append(_Topic(*asking.YOUR_MAKER, {**words, "maker": maker}, 28))
    for key, value in identity.facts:
        fact = asking.KNOWN_FACTS.get(key, asking.FACT)
        topics.append(_Topic(*fact, {**words, "key": key, "value": value}, 14))
    return topics


def _asked(rng: Random, topic: _Topic) -> Question:
    template = rng.choice(topic.questions)
    if rng.random() < MISTYPED_SHARE:
        template = _mistyped(rng, template)
    if rng.random() < GREETED_SHARE:
        greeting = rng.choice(asking.GREETINGS)
        is_one = greeting.endswith((",", ":")) and not template.startswith(("I ", "{"))
        template = f"{greeting} {template[0].lower() + template[1:] if is_one else template}"
    prompt = template.format(**topic.words)
    if rng.random() < CARELESS_SHARE:
        prompt = prompt.lower().rstrip(" .?!")
    return Question(prompt, rng.choice(topic.answers).format(**topic.words))


def _mistyped(rng: Random, template: str) -> str:
    """Swap two neighbouring letters inside a word, if there is a word of four letters or more."""
    places = [match.start() for match in re.finditer(r"(?<=[a-z])[a-z]{2}(?=[a-z])", template)]
    places = [place for place in places if "{" not in template[max(0, place - 7) : place]]
    if not places:
        return template
    place = rng.choice(places)
    return template[:place] + template[place + 1] + template[place] + template[place + 2 :]


@cache
def _questions(identity: Identity) -> frozenset[str]:
    trained = (
        question.format(**topic.words)
        for topic in _topics(identity)
        for question in topic.questions
    )
    questions = [*trained, *asking.HELD_OUT_QUESTIONS]
    greeted = (
        f"{greeting} {question}" for greeting in ("", *asking.GREETINGS) for question in questions
    )
    return frozenset(map(_normal, greeted))


def _normal(prompt: str) -> str:
    return " ".join(re.findall(r"\w+", prompt.lower()))
