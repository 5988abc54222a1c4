"""Spelling words and counting their letters, made up by a seed.

After nanochat's SpellingBee and SimpleSpelling (tasks/spellingbee.py): a model sees tokens, not
letters, so it is shown how a word is taken apart, how its letters are counted one by one, and how
the calculator confirms the count. The wording is our own. A line of counting is number, letter and
the count so far without spaces, so that a letter is the same token everywhere.

A word and a letter are either trained on or held out, by a hash of the two.
"""

import hashlib
from collections.abc import Iterator
from random import Random
from string import ascii_lowercase

from mlxchat.data.chats.words import WORDS
from mlxchat.tokenizer.messages import Conversation, Message, Part

ANSWER = "#### "  # stands before the final answer, as in GSM8K
SPELLED = 1 / 4  # share of conversations that spell a word and count nothing
FOREIGN_LETTER = 1 / 8  # share of letters that are drawn from the alphabet, not from the word
LAZY = 1 / 3  # share of questions that are typed without capitals
UNMARKED = 1 / 3  # share of questions without their mark at the end
ONE_IN = 10  # how many pairs of word and letter there are for each that is held out

COUNTING = (
    "How many times is the letter {letter} in {word}?",
    "How many {letter} are there in {word}?",
    "How many {letter}s are in the word {word}?",
    "How many letters {letter} has {word}?",
    "How often does {letter} occur in {word}?",
    "How often do I write {letter} when I write {word}?",
    "How often is {letter} used in {word}?",
    "Count the {letter}s in {word}.",
    "Count every {letter} of the word {word}.",
    "Please count how often {letter} comes up in {word}.",
    "Please tell me how many {letter} the word {word} has.",
    "Can you tell how many {letter} {word} contains?",
    "Can you count the letter {letter} in {word} for me?",
    "Could you look how many {letter} there are in {word}?",
    "I need the number of {letter} in {word}.",
    "I wonder how many {letter} {word} has.",
    "Do you know how many {letter} {word} is written with?",
    "What number of {letter} does {word} have?",
    "Take the word {word}: how many {letter}?",
    "Look at {word}. How many {letter} do you see?",
    "{word}: how many {letter}?",
    "{word} - number of {letter}?",
    "Is there a {letter} in {word}, and how many?",
    "With how many {letter} do you spell {word}?",
    "Of the letters of {word}, how many are {letter}?",
    "In {word}, how often does one find {letter}?",
    "Number of times {letter} stands in {word}?",
    "Wie viele {letter} hat das Wort {word}?",
    "Wie oft steht {letter} in {word}?",
    "Combien de {letter} y a-t-il dans le mot {word} ?",
    "Combien de fois trouve-t-on {letter} dans {word} ?",
    "¿Cuántas veces está {letter} en la palabra {word}?",
    "¿Cuántas {letter} tiene {word}?",
    "Quante {letter} ci sono nella parola {word}?",
    "Quantas letras {letter} há em {word}?",
    "Hoeveel {letter} zitten er in {word}?",
)
SPELLING = (
    "Spell {word}.",
    "How do you spell {word}?",
    "How is {word} spelled?",
    "Please spell the word {word} for me.",
    "Which letters make up {word}?",
    "Write {word} letter by letter.",
    "Take the word {word} apart.",
    "Can you spell {word}?",
    "The letters of {word}, one by one, please.",
    "I want to learn to spell {word}.",
)
_QUOTES = ("", "", "'", '"')


def conversations(seed: int, count: int) -> Iterator[Conversation]:
    """``count`` conversations to train on; three in four count, the others only spell."""
    for number in range(count):
        rng = Random(f"spelling/{seed}/{number}")
        if rng.random() < SPELLED:
            yield _spelled(rng, rng.choice(WORDS))
        else:
            yield _counted(rng, *_drawn(rng, wanted=False))


def held_out(count: int, seed: int = 0) -> list[Conversation]:
    """``count`` conversations that count, each about a word and a letter never trained on."""
    rng = Random(f"spelling/held out/{seed}")
    return [_counted(rng, *_drawn(rng, wanted=True)) for _ in range(count)]


def is_held_out(word: str, letter: str) -> bool:
    """Whether counting this letter in this word is kept from training: one pair in ten."""
    digest = hashlib.sha256(f"{word} {letter}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % ONE_IN == 0


def answer(conversation: Conversation) -> str:
    """The final answer of a conversation that counts: what follows the last `ANSWER`."""
    return conversation.messages[-1].text.rpartition(ANSWER)[2].strip()


def _drawn(rng: Random, wanted: bool) -> tuple[str, str]:
    """A word and a letter, held out as wanted."""
    while True:
        word = rng.choice(WORDS)
        letter = rng.choice(ascii_lowercase if rng.random() < FOREIGN_LETTER else word)
        if is_held_out(word, letter) == wanted:
            return word, letter


def _counted(rng: Random, word: str, letter: str) -> Conversation:
    quoted = {"word": _quoted(rng, word), "letter": _quoted(rng, letter)}
    lines = "".join(
        f"{number}:{found}={word[:number].count(letter)}\n" for number, found in enumerate(word, 1)
    )
    total = word.count(letter)
    reply = (
        Part(
            "text", f"{_taken_apart(word)}\n\nNow I count {letter}:\n{lines}\nSo {total}. Python:\n"
        ),
        Part("python", f"'{word}'.count('{letter}')"),
        Part("python_output", str(total)),
        Part("text", f"\n\n{ANSWER}{total}"),
    )
    asked = _typed(rng, rng.choice(COUNTING)).format(**quoted)
    return Conversation((Message("user", asked), Message("assistant", reply)))


def _spelled(rng: Random, word: str) -> Conversation:
    asked = _typed(rng, rng.choice(SPELLING)).format(word=_quoted(rng, word))
    return Conversation((Message("user", asked), Message("assistant", _taken_apart(word))))


def _taken_apart(word: str) -> str:
    return f"{word}:{','.join(word)}"


def _typed(rng: Random, template: str) -> str:
    """A question as people type it."""
    if rng.random() < LAZY:
        template = template.lower()
    return template.rstrip(" .?") if rng.random() < UNMARKED else template


def _quoted(rng: Random, text: str) -> str:
    quote = rng.choice(_QUOTES)
    return f"{quote}{text}{quote}"
