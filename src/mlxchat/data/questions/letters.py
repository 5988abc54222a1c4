"""Questions about the letters of words, in levels of difficulty: to spell, and to count.

Wording and replies are those of `mlxchat.data.chats.spelling`; at the harder levels two words are
joined to one that no text has, or the letters are asked for backwards. A word that is held out may
still be spelled in the conversations of that module, which knows pairs of a word and a letter only:
to measure spelling, do not train on those.
"""

from functools import cache
from random import Random
from typing import NamedTuple

from mlxchat.data.chats.spelling import (
    WORDS,
    counting_conversation,
    drawn_letter,
    final_answer,
    is_pair_held_out,
    quoted,
    spelling_conversation,
    typed,
)
from mlxchat.data.questions.question import TaskQuestion, is_question_held_out, user_question
from mlxchat.tokenizer.messages import Conversation, Message


class LettersLevel(NamedTuple):
    """The difficulty of a question about the letters of a word.

    Attributes:
        longest: the most letters of a word that is drawn.
        joined: how many words are joined to the one that is asked about.
        backwards: whether the letters are asked for from the last to the first.
    """

    longest: int
    joined: int = 1
    backwards: bool = False


_LONGEST_WORD = max(map(len, WORDS))
SPELLING_LEVELS = (
    LettersLevel(5),
    LettersLevel(7),
    LettersLevel(_LONGEST_WORD),
    LettersLevel(7, joined=2),
    LettersLevel(5, backwards=True),
    LettersLevel(_LONGEST_WORD, backwards=True),
)
COUNTING_LEVELS = (
    LettersLevel(5),
    LettersLevel(7),
    LettersLevel(_LONGEST_WORD),
    LettersLevel(7, joined=2),
    LettersLevel(_LONGEST_WORD, joined=2),
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
        return user_question(asked, answer, Message("assistant", answer))
    asked_of, reply = spelling_conversation(rng, word).messages
    return TaskQuestion(Conversation((asked_of,)), reply.text, reply)


def counting_question(rng: Random, level: LettersLevel, held_out: bool) -> TaskQuestion:
    """Return a question how often a letter is in a word; the two are held out or not."""
    while True:
        word = _word(rng, level)
        letter = drawn_letter(rng, word)
        if is_pair_held_out(word, letter) == held_out:
            break
    conversation = counting_conversation(rng, word, letter)
    asked_of, reply = conversation.messages
    return TaskQuestion(Conversation((asked_of,)), final_answer(conversation), reply)


def _word(rng: Random, level: LettersLevel) -> str:
    return "".join(rng.choices(_words(level.longest), k=level.joined))


@cache
def _words(longest: int) -> tuple[str, ...]:
    return tuple(word for word in WORDS if len(word) <= longest)
