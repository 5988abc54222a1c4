"""Questions about the letters of words, in levels of difficulty: to spell, and to count.

Wording and replies are those of `mlxchat.data.chats.spelling`. The easiest words to spell are
syllables of three letters; at the harder levels two words are joined to one that no text has, or
the letters are asked for backwards. A word that is held out may still be spelled in the
conversations of that module, which holds out pairs of a word and a letter: to measure spelling, do
not train on those.
"""

from collections.abc import Sequence
from itertools import product
from random import Random
from string import ascii_lowercase
from typing import NamedTuple

from mlxchat.data.chats.spelling import (
    WORDS,
    counting_conversation,
    final_answer,
    is_pair_held_out,
    quoted,
    spelling_conversation,
    typed,
)
from mlxchat.data.questions.question import TaskQuestion, is_question_held_out, user_question
from mlxchat.tokenizer.messages import Message


class LettersLevel(NamedTuple):
    """The difficulty of a question about the letters of a word.

    Attributes:
        words: those that a word is drawn from.
        joined: how many words are joined to the one that is asked about.
        backwards: whether the letters are asked for from the last to the first.
        most: the largest count that is asked for.
    """

    words: Sequence[str]
    joined: int = 1
    backwards: bool = False
    most: int = 2


_CONSONANTS, _VOWELS = "bdflmnrsv", "aeiou"
_SYLLABLES = ["".join(letters) for letters in product(_CONSONANTS, _VOWELS, _CONSONANTS)]
_OF_5, _OF_7 = ([word for word in WORDS if len(word) <= most] for most in (5, 7))
SPELLING_LEVELS = (
    LettersLevel(_SYLLABLES),
    LettersLevel(_OF_5),
    LettersLevel(_OF_7),
    LettersLevel(WORDS),
    LettersLevel(_OF_7, joined=2),
    LettersLevel(_OF_5, backwards=True),
    LettersLevel(WORDS, backwards=True),
)
COUNTING_LEVELS = (
    LettersLevel(_OF_5),
    LettersLevel(_OF_7),
    LettersLevel(WORDS),
    LettersLevel(_OF_7, joined=2, most=3),
    LettersLevel(WORDS, joined=2, most=4),
)

_BACKWARDS = (
    "Spell {word} backwards.",
    "How do you spell {word} backwards?",
    "Please spell the word {word} from its end.",
    "Write {word} letter by letter, the last one first.",
)


def spelling_question(rng: Random, level: LettersLevel, held_out: bool) -> TaskQuestion:
    """Return a question for the letters of a word that is held out or not.

    The answer is the whole reply, such as ``cow:c,o,w``.
    """
    word = _word(rng, level)
    while is_question_held_out(f"spell {word}") != held_out:
        word = _word(rng, level)
    if level.backwards:
        asked = typed(rng, rng.choice(_BACKWARDS)).format(word=quoted(rng, word))
        answer = f"{word}:{','.join(reversed(word))}"
        return user_question(asked, answer, Message("assistant", answer), answer)
    asked_of, reply = spelling_conversation(rng, word).messages
    return user_question(asked_of.text, reply.text, reply, reply.text)


def counting_question(rng: Random, level: LettersLevel, held_out: bool) -> TaskQuestion:
    """Return a question how often a letter is in a word; the two are held out or not.

    Counts from 0 to the level's ``most`` are as frequent as each other: in words as they come most
    counts are 1, and a model that is rewarded for right answers would learn to say that.
    """
    total = rng.randrange(level.most + 1)
    pairs: list[tuple[str, str]] = []
    while not pairs:
        word = _word(rng, level)
        letters = ascii_lowercase if total == 0 else sorted(set(word))
        counted = ((word, letter) for letter in letters if word.count(letter) == total)
        pairs = [pair for pair in counted if is_pair_held_out(*pair) == held_out]
    word, letter = rng.choice(pairs)
    conversation = counting_conversation(rng, word, letter)
    asked_of, reply = conversation.messages
    return user_question(asked_of.text, final_answer(conversation), reply, f"{word} {letter}")


def _word(rng: Random, level: LettersLevel) -> str:
    return "".join(rng.choices(level.words, k=level.joined))
