"""A question with its right answer, and the sequences of them that a task consists of.

A task has questions to train on and others that are held out. Which are held out depends on what
they ask alone (`is_question_held_out`), not on their wording, the seed or their place, so that what
was held out of one run is not trained on by another.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, overload

from mlxchat.tokenizer.messages import Conversation, Message

ANSWER = "#### "  # stands before the final answer, as in GSM8K
QUESTIONS_PER_HELD_OUT = 5  # how many different questions there are for each that is held out
_NUMBER = re.compile(re.escape(ANSWER) + r"(-?[0-9.,]+)")

AnswerCheck = Literal[
    "number", "exact"
]  # how a completion is compared with the answer: see is_right


@dataclass(frozen=True)
class TaskQuestion:
    """A question, and what a right completion is.

    Attributes:
        conversation: ends with the user's message.
        answer: what `is_right` compares a completion with.
        reply: a right completion, worked out, to learn from.
        asked: identifies what is asked: questions of a task that ask the same in other words have
            the same one.
    """

    conversation: Conversation
    answer: str
    reply: Message
    asked: str

    @property
    def prompt(self) -> str:
        """The user's message."""
        return self.conversation.messages[-1].text

    @property
    def solved(self) -> Conversation:
        """The conversation with the reply, for fine-tuning."""
        return Conversation((*self.conversation.messages, self.reply))


@dataclass(frozen=True)
class QuestionSource:
    """The questions of a task. No question to train on is held out.

    Attributes:
        name: the task, in words for a note.
        train: the questions to train on, in the order of their use.
        held_out: other questions, to measure on.
        check: how an answer is checked.
    """

    name: str
    train: Sequence[TaskQuestion]
    held_out: Sequence[TaskQuestion]
    check: AnswerCheck

    def is_right(self, question: TaskQuestion, completion: str) -> bool:
        """Return whether a completion answers a question of this task."""
        return is_right(self.check, completion, question.answer)


def user_question(text: str, answer: str, reply: Message, asked: str | None = None) -> TaskQuestion:
    """Return a question that is the only message before its reply.

    Args:
        text: the question.
        answer: what a completion is compared with.
        reply: a right completion.
        asked: identifies what is asked; None if it is not known to be asked in other words.
    """
    conversation = Conversation((Message("user", text),))
    return TaskQuestion(conversation, answer, reply, text if asked is None else asked)


def final_number(text: str) -> str | None:
    """Return the number after the first ``#### ``, without commas, or None (GSM8K's rule).

    It is a string: 18.0 and 18 are different answers.

    >>> final_number("6 * 3 = 18, so #### 1,018")
    '1018'
    """
    found = _NUMBER.search(text)
    return found[1].replace(",", "") if found else None


def is_right(check: AnswerCheck, completion: str, answer: str) -> bool:
    """Return whether a completion gives the answer.

    Args:
        check: "number" compares the `final_number`, as nanochat does for GSM8K; "exact" all of the
            completion, apart from blanks around it.
        completion: what the model wrote, without the token that ends it.
        answer: the answer of the question.
    """
    if check == "number":
        return final_number(completion) == answer
    return completion.strip() == answer


def is_question_held_out(asked: str, one_in: int = QUESTIONS_PER_HELD_OUT) -> bool:
    """Return whether what is asked is held out of training: so is one question in ``one_in``.

    Args:
        asked: identifies what is asked, whatever its wording.
        one_in: how many different questions there are for each that is held out.
    """
    digest = hashlib.sha256(asked.encode()).digest()
    return int.from_bytes(digest[:8], "big") % one_in == 0


Item = TypeVar("Item")


class LazySequence(Sequence[Item], Generic[Item]):
    """A sequence whose items are made when they are used, the same ones each time.

    Args:
        count: the number of items.
        make: returns the item of an index, from 0 to ``count - 1``.

    >>> squares = LazySequence(1000, lambda index: index**2)
    >>> squares[30], squares[-1], list(squares[2:4])
    (900, 998001, [4, 9])
    """

    def __init__(self, count: int, make: Callable[[int], Item]) -> None:
        self._indices, self._make = range(count), make

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self._make(number) for number in self._indices[index]]
        return self._make(self._indices[index])
