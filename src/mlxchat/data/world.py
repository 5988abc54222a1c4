"""The small world of the built-in corpus: what there is in it, and which questions are held out."""

import hashlib
import re
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Question:
    """A user's message that stands alone, and its one right answer, letter by letter."""

    prompt: str
    answer: str


class Animal(NamedTuple):
    """What there is to know about an animal; empty where the world has no word for it."""

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


ONE_IN = 10  # how many questions there are for each that is held out
# Chosen so that three wordings or more of every fact, and what people say first, are trained on.
SALT = "83 "


def is_held_out(prompt: str) -> bool:
    """Whether a question is kept from training: one in ten, by a hash of its words.

    Capitals and punctuation do not count, so no careless spelling of a question lets it in.
    """
    words = " ".join(re.findall(r"[a-z0-9]+", prompt.lower()))
    return int.from_bytes(hashlib.sha256((SALT + words).encode()).digest()[:8], "big") % ONE_IN == 0


def with_article(noun: str) -> str:
    """The noun, or adjective and noun, with ``a`` or ``an`` before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capitalised(sentence: str) -> str:
    """The sentence with a capital first letter and the rest as it is."""
    return sentence[0].upper() + sentence[1:]
