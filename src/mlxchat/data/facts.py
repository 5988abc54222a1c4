"""What is true in the small world of the built-in corpus, and how one may ask about it.

A fact is one sentence. Every question about it, in whatever words, has that sentence as its answer,
so that an answer is right or wrong letter by letter, and a wording kept from training can be
answered from the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlxchat.data.world import (
    ANIMALS,
    COLOURS,
    DAYS,
    MONTHS,
    NUMBERS,
    OPPOSITES,
    PLURALS,
    USES,
    Animal,
    capitalised,
    with_article,
)


@dataclass(frozen=True)
class Fact:
    """Something true: its kind, whom it is about, the sentence, and the questions it answers."""

    kind: str
    subject: str
    statement: str
    questions: tuple[str, ...]


def _fact(kind: str, subject: str, statement: str, *questions: str) -> Fact:
    return Fact(kind, subject, capitalised(statement), questions)


def _animal_facts(animal: Animal) -> Iterator[Fact]:
    a = with_article(animal.name)
    yield _fact(
        "home",
        a,
        f"{a} lives {animal.home}.",
        f"Where does {a} live?",
        f"Where is the home of {a}?",
        f"Where can I find {a}?",
        f"Where does {a} sleep?",
        f"Do you know where {a} lives?",
        f"Which animal lives {animal.home}?",
        f"Who lives {animal.home}?",
        f"What lives {animal.home}?",
    )
    yield _fact(
        "food",
        a,
        f"{a} eats {animal.food}.",
        f"What does {a} eat?",
        f"What does {a} like to eat?",
        f"What is the food of {a}?",
        f"What do you feed {a}?",
        f"What do I give a hungry {animal.name}?",
        f"Do you know what {a} eats?",
    )
    yield _fact(
        "legs",
        a,
        f"{a} has {animal.legs} legs.",
        f"How many legs does {a} have?",
        f"How many legs has {a}?",
        f"Count the legs of {a}.",
        f"On how many legs does {a} walk?",
        f"Do you know how many legs {a} has?",
    )
    if animal.sound:
        yield _fact(
            "sound",
            a,
            f"{a} says {animal.sound}.",
            f"What does {a} say?",
            f"What sound does {a} make?",
            f"What noise does {a} make?",
            f"Do you know what {a} says?",
            f"Which animal says {animal.sound}?",
            f"Who says {animal.sound}?",
        )
    if animal.young:
        yield _fact(
            "young",
            a,
            f"a baby {animal.name} is called {with_article(animal.young)}.",
            f"What is a baby {animal.name} called?",
            f"What do you call a baby {animal.name}?",
            f"What is the name of a baby {animal.name}?",
            f"What is a young {animal.name} called?",
            f"What is the child of {a} called?",
        )


def _thing_facts() -> Iterator[Fact]:
    for thing, colour in COLOURS.items():
        yield _fact(
            "colour",
            thing,
            f"{thing} is {colour}.",
            f"What colour is {thing}?",
            f"What is the colour of {thing}?",
            f"Which colour does {thing} have?",
            f"Do you know the colour of {thing}?",
            f"Tell me the colour of {thing}.",
        )
    for thing, purpose in USES.items():
        yield _fact(
            "use",
            thing,
            f"you {purpose} with {thing}.",
            f"What is {thing} for?",
            f"What do you do with {thing}?",
            f"What is {thing} used for?",
            f"What can I do with {thing}?",
            f"What do I need to {purpose}?",
            f"How can I {purpose}?",
            f"What helps me {purpose}?",
        )


def _word_facts() -> Iterator[Fact]:
    for word, opposite in [*OPPOSITES, *((b, a) for a, b in OPPOSITES)]:
        yield _fact(
            "opposite",
            word,
            f"the opposite of {word} is {opposite}.",
            f"What is the opposite of {word}?",
            f"Which word is the opposite of {word}?",
            f"Tell me the opposite of {word}.",
            f"Do you know the opposite of {word}?",
            f"If it is not {word}, what is it?",
        )
    for one, many in PLURALS.items():
        yield _fact(
            "plural",
            one,
            f"one {one}, two {many}.",
            f"What is the plural of {one}?",
            f"Tell me the plural of {one}.",
            f"Do you know the plural of {one}?",
            f"What do you call more than one {one}?",
            f"One {one}, two what?",
        )


def _order_facts(kind: str, words: Sequence[str], is_circle: bool) -> Iterator[Fact]:
    followers = [*words[1:], words[0]] if is_circle else words[1:]
    for first, second in zip(words, followers, strict=False):
        for word, order, neighbour in ((first, "after", second), (second, "before", first)):
            yield _fact(
                kind,
                word,
                f"{order} {word} comes {neighbour}.",
                f"What comes {order} {word}?",
                f"What {kind} comes {order} {word}?",
                f"Which {kind} comes {order} {word}?",
                f"What is the {kind} {order} {word}?",
                f"Do you know the {kind} {order} {word}?",
                f"Tell me the {kind} {order} {word}.",
            )


def _sum_facts() -> Iterator[Fact]:
    for i, a in enumerate(NUMBERS[:9], 1):
        for j, b in enumerate(NUMBERS[:9], 1):
            yield _fact(
                "sum",
                a,
                f"{a} plus {b} is {NUMBERS[i + j - 1]}.",
                f"What is {a} plus {b}?",
                f"How much is {a} plus {b}?",
                f"What is the sum of {a} and {b}?",
                f"What do {a} and {b} make?",
                f"Can you add {a} and {b}?",
                f"Add {a} and {b}.",
            )


FACTS: tuple[Fact, ...] = (
    *(fact for animal in ANIMALS for fact in _animal_facts(animal)),
    *_thing_facts(),
    *_word_facts(),
    *_order_facts("day", DAYS, is_circle=True),
    *_order_facts("month", MONTHS, is_circle=True),
    *_order_facts("number", NUMBERS, is_circle=False),
    *_sum_facts(),
)
