"""What a task asks, and when an answer is right.

The forms and rules are nanochat's (commit 92d63d4, tasks/), so that its models see what they know
and scores can be compared.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from mlxchat.evaluate.execution import runs_through
from mlxchat.tokenizer.messages import Conversation, Message

_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
_FENCED = re.compile(r"```(?:python)?[ \t]*\n(.*?)\n```", re.DOTALL)


@dataclass(frozen=True)
class Choice:
    """A question with answers to choose among.

    Attributes:
        prompt: ends with the user.
        letters: of the answers.
        answer: the right one's letter.
    """

    prompt: Conversation
    letters: tuple[str, ...]
    answer: str

    @property
    def random(self) -> float:
        """What guessing gets right."""
        return 1 / len(self.letters)


@dataclass(frozen=True)
class Exercise:
    """A question whose answer is written.

    Attributes:
        prompt: ends with the user.
        is_right: whether that answer is.
    """

    prompt: Conversation
    is_right: Callable[[str], bool]

    @property
    def random(self) -> float:
        """What guessing gets right: nothing."""
        return 0.0


Problem = Choice | Exercise


def asked(text: str) -> Conversation:
    """A conversation in which a user has said this and nothing else was said."""
    return Conversation((Message("user", text),))


def final_number(text: str) -> str | None:
    """The number after the first ``#### ``, without commas, as it is written (GSM8K's rule).

    So 18.0 is another answer than 18. None where there is no such number.
    """
    found = _NUMBER.search(text)
    return found[1].replace(",", "") if found else None


def program(prompt: str, answer: str, test: str, entry_point: str) -> str:
    """What is run to judge an answer to a HumanEval prompt.

    The imports that the prompt begins with, the answer's first fenced block of code, or all of it
    where there is none, then the task's test.
    """
    imports = []
    for line in map(str.strip, prompt.splitlines()):
        if line.startswith(("import ", "from ")):
            imports.append(line)
        elif line and not line.startswith("#"):
            break
    fenced = _FENCED.search(answer)
    code = (fenced[1] if fenced else answer).strip()
    return "\n\n".join(["\n".join(imports), code, test, f"check({entry_point})"])


def gives_number(expected: str) -> Callable[[str], bool]:
    """Judges an answer by its `final_number`."""
    return lambda answer: final_number(answer) == expected


def solves(prompt: str, test: str, entry_point: str) -> Callable[[str], bool]:
    """Judges an answer by running it: see `mlxchat.evaluate.execution`."""
    return lambda answer: runs_through(program(prompt, answer, test, entry_point))
