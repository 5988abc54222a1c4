"""The small world of the built-in corpus: its things and facts, and held-out questions.

A fact is one sentence. Every question about it, however worded, has that sentence as its answer, so
that an answer can be checked letter by letter, and a held-out wording can be answered from the
others.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Question:
    """A user's message that stands alone, and its only right answer, exact to the letter."""

    prompt: str
    answer: str


class Animal(NamedTuple):
    """An animal and its attributes; an empty one is unknown in this world."""

    name: str
    plural: str
    legs: str
    home: str
    food: str
    sound: str = ""
    young: str = ""


ANIMALS = (
    Animal("ant", "ants", "six", "in a hill", "crumbs"),
    Animal("bear", "bears", "four", "in a cave", "honey", "growl", "cub"),
    Animal("bee", "bees", "six", "in a hive", "nectar", "buzz"),
    Animal("cat", "cats", "four", "in a house", "fish", "meow", "kitten"),
    Animal("cow", "cows", "four", "in a barn", "grass", "moo", "calf"),
    Animal("crow", "crows", "two", "in a nest", "seeds", "caw"),
    Animal("dog", "dogs", "four", "in a kennel", "bones", "woof", "puppy"),
    Animal("duck", "ducks", "two", "on a pond", "bread", "quack", "duckling"),
    Animal("elephant", "elephants", "four", "in the jungle", "leaves", "", "calf"),
    Animal("frog", "frogs", "four", "in a swamp", "flies", "croak", "tadpole"),
    Animal("goose", "geese", "two", "by a lake", "grass", "honk", "gosling"),
    Animal("hen", "hens", "two", "in a coop", "corn", "cluck", "chick"),
    Animal("horse", "horses", "four", "in a stable", "hay", "neigh", "foal"),
    Animal("lion", "lions", "four", "on the plain", "meat", "roar", "cub"),
    Animal("mouse", "mice", "four", "in a hole", "cheese", "squeak"),
    Animal("owl", "owls", "two", "in a tree", "mice", "hoot", "owlet"),
    Animal("pig", "pigs", "four", "in a sty", "apples", "oink", "piglet"),
    Animal("sheep", "sheep", "four", "in a meadow", "clover", "baa", "lamb"),
    Animal("snake", "snakes", "no", "in the sand", "eggs", "hiss"),
    Animal("spider", "spiders", "eight", "in a web", "flies"),
    Animal("wolf", "wolves", "four", "in a den", "meat", "howl"),
)

COLOURS = {
    "snow": "white",
    "milk": "white",
    "grass": "green",
    "a leaf": "green",
    "a frog": "green",
    "the sky": "blue",
    "the sea": "blue",
    "the sun": "yellow",
    "a lemon": "yellow",
    "a banana": "yellow",
    "a tomato": "red",
    "a strawberry": "red",
    "a carrot": "orange",
    "an orange": "orange",
    "coal": "black",
    "the night": "black",
    "wood": "brown",
    "a bear": "brown",
}

USES = {
    "a boat": "cross a river",
    "a broom": "sweep the floor",
    "a brush": "paint a picture",
    "a bucket": "carry water",
    "a clock": "tell the time",
    "a coat": "stay warm",
    "a cup": "drink tea",
    "a key": "open a door",
    "a knife": "cut bread",
    "a ladder": "climb a roof",
    "a lamp": "read at night",
    "a map": "find the way",
    "a needle": "sew a coat",
    "an oven": "bake a cake",
    "a pen": "write a letter",
    "a spoon": "eat soup",
    "soap": "wash your hands",
    "an umbrella": "stay dry in the rain",
}

OPPOSITES = (
    ("big", "small"),
    ("hot", "cold"),
    ("fast", "slow"),
    ("old", "young"),
    ("long", "short"),
    ("happy", "sad"),
    ("wet", "dry"),
    ("full", "empty"),
    ("strong", "weak"),
    ("open", "closed"),
    ("early", "late"),
    ("hard", "soft"),
    ("loud", "quiet"),
    ("rich", "poor"),
    ("clean", "dirty"),
    ("day", "night"),
)

PLURALS = {
    "apple": "apples",
    "box": "boxes",
    "child": "children",
    "city": "cities",
    "foot": "feet",
    "knife": "knives",
    "leaf": "leaves",
    "man": "men",
    "story": "stories",
    "tooth": "teeth",
    "woman": "women",
    **{animal.name: animal.plural for animal in ANIMALS},
}

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

NUMBERS = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen", "twenty"),
)


ONE_IN = 10  # one question in this many is held out
# Chosen so that three wordings or more of every fact, and what people say first, are trained on.
SALT = "83 "


def is_held_out(prompt: str) -> bool:
    """Return whether a question is held out of training: one in ten, by a hash of its words.

    Capitals and punctuation do not count, so no careless spelling of a question lets it in.
    """
    words = " ".join(re.findall(r"[a-z0-9]+", prompt.lower()))
    return int.from_bytes(hashlib.sha256((SALT + words).encode()).digest()[:8], "big") % ONE_IN == 0


def with_article(noun: str) -> str:
    """Return a noun, or adjective and noun, with ``a`` or ``an`` before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capitalised(sentence: str) -> str:
    """Return the sentence with a capital first letter."""
    return sentence[0].upper() + sentence[1:]


@dataclass(frozen=True)
class Fact:
    """A fact: its kind, its subject, the sentence, and the questions that it answers."""

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
