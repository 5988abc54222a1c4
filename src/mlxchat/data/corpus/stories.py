"""The stories of the built-in corpus, generated from plots, and short passages with questions."""

import re
from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from mlxchat.data.corpus.world import (
    ANIMALS,
    COLOURS,
    FACTS,
    NUMBERS,
    Question,
    capitalised,
    is_held_out,
    with_article,
)

GIRLS = ("Ana", "Emma", "Eva", "Ida", "Lily", "Mia", "Nora", "Rosa", "Ruby", "Zoe")
BOYS = ("Ben", "Finn", "Hugo", "Jack", "Leo", "Max", "Oscar", "Otto", "Sam", "Tom")
CHILD_NAMES = GIRLS + BOYS
THINGS = (
    *("apple", "ball", "bell", "book", "coin", "cup", "doll", "drum", "hat", "key", "kite"),
    *("lamp", "letter", "map", "orange", "pen", "ring", "shoe", "spoon", "umbrella"),
)
PLACES = (
    *("behind the clock", "behind the door", "by the river", "by the window", "in the bag"),
    *("in the boat", "in the box", "in the grass", "near the tree", "on the roof"),
    *("on the table", "on the wall", "under the bed", "under the bridge", "under the chair"),
)
HOLDERS = (
    *("bag", "basket", "bed", "boat", "box", "bucket", "coat", "drawer", "grass", "oven", "snow"),
    *("tree", "well"),
)
ROOMS = ("barn", "castle", "cave", "forest", "garden", "kitchen", "library", "market", "park")
FOODS = ("bread", "cake", "cheese", "corn", "fish", "honey", "milk", "rice", "soup", "tea")
PAINTS = tuple(sorted(set(COLOURS.values())))

# <name> is replaced by the value the story has bound to it, or else by one of its alternatives.
RULES: Mapping[str, tuple[str, ...]] = {
    "story": ("<lost>", "<wind>", "<birthday>", "<meeting>", "<lesson>", "<seed>", "<sleepless>"),
    "opening": (
        "<hero> lived in <house>.",
        "Once there was a <mood> <child> called <hero>.",
        "There was once a <child> called <hero>, who lived in <house>.",
    ),
    "house": (
        "a small house by the sea",
        "an old house near the forest",
        "a little village",
        "a quiet city by the river",
    ),
    "mood": ("happy", "quiet", "clever", "brave", "kind"),
    "time": ("morning", "evening", "rainy day", "cold day", "sunny day"),
    "lost": (
        "<opening> <He> had <a_thing> and took it everywhere. One <time> the <thing> was gone. "
        "<He> looked <place>, but it was not there. <He> looked <place2>, but <nothing>. "
        "Then <friend> found it <place3>. <thanks> <ending>",
    ),
    "nothing": ("there was only an old shoe", "there was only a sleeping cat"),
    "thanks": (
        '"Thank you, <friend>!" said <hero>.',
        '"You are a true friend," said <hero>.',
        "<hero> was so happy that <he> danced.",
    ),
    "ending": (
        "They laughed all the way home.",
        "That night <hero> slept very well.",
        "They drank tea and talked until it was dark.",
        "It was a good day after all.",
    ),
    "wind": (
        "<hero> and <friend> went <outside> with <a_paint> kite. The wind was strong, and "
        "the kite flew high. <trouble> <hero> wanted to cry. <rescue> <ending>",
    ),
    "outside": ("to the park", "down to the sea", "up the hill", "to the meadow"),
    "trouble": (
        "Then it fell into a tall tree.",
        "Then it came down on the roof of the barn.",
        "Then it flew away over the river.",
    ),
    "rescue": (
        '"Wait," said <friend>, and came back with a long ladder.',
        "But a crow took it and gave it back to <him>.",
        '"We can make a new one," said <friend>, and so they did.',
    ),
    "birthday": (
        "It was the birthday of <friend>. <hero> had no money, but <he> had a plan. "
        "<He> went to the kitchen and made <gift>. On the way <mishap>. "
        '<friend> looked at it and laughed. "<praise>," said <friend>. <ending>',
    ),
    "gift": ("a cake with honey", "a big apple cake", "some bread with cheese", "some corn soup"),
    "mishap": (
        "it began to rain, and all was wet",
        "<hero> fell into the mud",
        "a hungry dog took one half of it",
    ),
    "praise": ("It is the best gift in the world", "I like it very much", "What a good friend"),
    "meeting": (
        'One <time> <hero> met <a_animal>. "<Sound>," said the <animal>. It was far from home and '
        "very hungry. <eats> So <hero> gave it some <food>. <lives> That is where <hero> took it. "
        '"<Sound>, <sound>," said the <animal>, and <hero> knew what it meant.',
    ),
    "lesson": (
        "<elder> knew all about the world. One evening <hero> sat by the fire with <elder>. "
        '"<ask>" said <elder>. "<answer>," said <hero>. "Very good," said <elder>. "And now it is '
        'time for bed."',
    ),
    "elder": ("Grandma", "Grandpa"),
    "seed": (
        "<opening> In spring <he> put a seed in the garden. Every day <he> gave it water, but "
        'nothing came. "<patience>," said <friend>. In summer there was <a_paint> flower. '
        "It was as tall as <hero>. <ending>",
    ),
    "patience": ("Wait a little", "Good things are slow", "Tell it a story"),
    "sleepless": (
        "Once there was a small <animal> who could not sleep. <lives> It looked out at the night "
        "and counted the stars. One, two, three. At <number> it heard a <mood> voice. It was "
        "<hero>, who could not sleep. So they talked until the sun came up.",
    ),
}


def _expand(symbol: str, bound: Mapping[str, str], rng: Random) -> str:
    """Expand ``symbol`` to a random text of the grammar, with the bound values put in."""

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        return bound[name] if name in bound else _expand(name, bound, rng)

    return re.sub(r"<(\w+)>", replace, rng.choice(RULES[symbol]))


def story(rng: Random, hero: str) -> str:
    """Return a story of four to nine sentences about ``hero``, one of `CHILD_NAMES`."""
    friend = rng.choice([name for name in CHILD_NAMES if name != hero])
    thing = rng.choice(THINGS)
    paint = rng.choice([paint for paint in PAINTS if paint != thing])  # no orange orange
    animal = rng.choice([animal for animal in ANIMALS if animal.sound])
    place, place2, place3 = rng.sample(PLACES, 3)
    question, answer = _quotable(rng)
    he, him, child = ("she", "her", "girl") if hero in GIRLS else ("he", "him", "boy")
    bound = {
        "hero": hero,
        "friend": friend,
        "he": he,
        "He": capitalised(he),
        "him": him,
        "child": child,
        "elder": rng.choice(RULES["elder"]),
        "thing": thing,
        "a_thing": with_article(f"{paint} {thing}"),
        "a_paint": with_article(paint),
        "place": place,
        "place2": place2,
        "place3": place3,
        "animal": animal.name,
        "a_animal": with_article(animal.name),
        "sound": animal.sound,
        "Sound": capitalised(animal.sound),
        "eats": f"{capitalised(with_article(animal.name))} eats {animal.food}.",
        "food": animal.food,
        "lives": f"{capitalised(with_article(animal.name))} lives {animal.home}.",
        "number": rng.choice(NUMBERS[3:]),
        "ask": question,
        "answer": answer.rstrip("."),
    }
    return _expand("story", bound, rng)


def _quotable(rng: Random) -> tuple[str, str]:
    """Return a training question that ends in a question mark, and its answer."""
    while True:
        fact = rng.choice(FACTS)
        question = rng.choice(fact.questions)
        if question.endswith("?") and not is_held_out(question):
            return question, fact.statement


class _Cast(NamedTuple):
    """The people and things that a sentence of a passage can name; sentences share none of them."""

    name: str
    other: str
    thing: str
    holder: str
    room: str
    food: str
    animal: str
    age: str
    verb: str


def _pronoun(name: str) -> str:
    return "She" if name in GIRLS else "He"


# Each function returns a sentence and the questions it answers, with their answers. The sentences
# of a passage are all of different kinds, so the kind of question identifies the sentence, and a
# two-layer network learns in a minute or two to find the answer and copy it. Telling two sentences
# of the same kind apart by their names took more training than quickstart has time for.


def _put(c: _Cast) -> tuple[str, dict[str, str]]:
    where = f"The {c.thing} is in the {c.holder}."
    return f"{c.name} {c.verb} the {c.thing} in the {c.holder}.", {
        f"Where is the {c.thing}?": where,
        f"Where is the {c.thing} now?": where,
        f"Where can I find the {c.thing}?": where,
        f"Do you know where the {c.thing} is?": where,
    }


def _gave(c: _Cast) -> tuple[str, dict[str, str]]:
    owner = f"It is {c.other}."
    return f"{c.name} gave the {c.thing} to {c.other}.", {
        f"Who has the {c.thing}?": owner,
        f"Who has the {c.thing} now?": owner,
    }


def _has(c: _Cast) -> tuple[str, dict[str, str]]:
    kept = f"{_pronoun(c.name)} has {with_article(c.thing)}."
    return f"{c.name} has {with_article(c.thing)}.", {
        f"What does {c.name} have?": kept,
        f"What does {c.name} have now?": kept,
    }


def _went(c: _Cast) -> tuple[str, dict[str, str]]:
    where = f"{_pronoun(c.name)} went to the {c.room}."
    return f"{c.name} went to the {c.room}.", {
        f"Where is {c.name}?": where,
        f"Where is {c.name} now?": where,
        f"Where did {c.name} go?": where,
        f"Do you know where {c.name} is?": where,
    }


def _likes(c: _Cast) -> tuple[str, dict[str, str]]:
    likes = f"{_pronoun(c.name)} likes {c.food}."
    return f"{c.name} likes {c.food}.", {
        f"What does {c.name} like?": likes,
        f"What does {c.name} like best?": likes,
    }


def _met(c: _Cast) -> tuple[str, dict[str, str]]:
    met = f"{_pronoun(c.name)} met {with_article(c.animal)}."
    return f"{c.name} met {with_article(c.animal)}.", {
        f"Who did {c.name} meet?": met,
        f"What animal did {c.name} meet?": met,
    }


def _aged(c: _Cast) -> tuple[str, dict[str, str]]:
    age = f"{_pronoun(c.name)} is {c.age} years old."
    return f"{c.name} is {c.age} years old.", {
        f"How old is {c.name}?": age,
        f"How old is {c.name} now?": age,
        f"Do you know how old {c.name} is?": age,
    }


_TELLINGS = (_put, _gave, _has, _went, _likes, _met, _aged)


def passage(rng: Random) -> list[Question]:
    """Return two or three sentences with a question about one, then questions about the others.

    Only the first question stands alone: the later ones need the sentences in its prompt.
    """
    names = rng.sample(CHILD_NAMES, 6)
    casts = [
        _Cast(*of_one)
        for of_one in zip(
            names[:3],
            names[3:],
            rng.sample(THINGS, 3),
            rng.sample(HOLDERS, 3),
            rng.sample(ROOMS, 3),
            rng.sample(FOODS, 3),
            rng.sample([animal.name for animal in ANIMALS], 3),
            rng.sample(NUMBERS[2:], 3),
            rng.sample(("put", "left", "hid"), 3),
            strict=True,
        )
    ]
    kinds = rng.sample(_TELLINGS, rng.choice((2, 2, 3)))
    told = [tell(cast) for tell, cast in zip(kinds, casts, strict=False)]
    asked = [Question(*rng.choice(list(answers.items()))) for _, answers in told]
    rng.shuffle(asked)
    first, *others = asked[: rng.randrange(1, len(asked) + 1)]
    opening = rng.choice(("Here is a story.", "Listen to this.", "Read this.", ""))
    prompt = " ".join([opening, *(sentence for sentence, _ in told), first.prompt]).lstrip()
    return [Question(prompt, first.answer), *others]
