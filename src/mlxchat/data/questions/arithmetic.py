"""Questions of arithmetic in levels of difficulty, worked out in the head or by the calculator.

A level bounds the digits of the numbers, the operations, and how many numbers there are. In the
head, a reply does one operation after the other; the calculator gets the whole expression::

    12+7*3=12+21=33                   12+7*3=<|python_start|>12+7*3<|python_end|>33
    #### 33                           #### 33

A question says which of the two it asks for, so that one model can learn both.
"""

from random import Random
from typing import NamedTuple

from mlxchat.data.questions.question import (
    ANSWER,
    TaskQuestion,
    is_question_held_out,
    user_question,
)
from mlxchat.tokenizer.messages import Message, Part


class ArithmeticLevel(NamedTuple):
    """The difficulty of a question.

    Attributes:
        digits: the most digits of a number.
        operations: the signs that may stand between two numbers.
        numbers: how many numbers there are.
    """

    digits: int
    operations: str
    numbers: int


ARITHMETIC_LEVELS = (
    ArithmeticLevel(1, "+-", 2),
    ArithmeticLevel(1, "+-*", 2),
    ArithmeticLevel(1, "+-*", 3),
    ArithmeticLevel(2, "+-", 2),
    ArithmeticLevel(2, "+-", 3),
    ArithmeticLevel(3, "+-", 2),
    ArithmeticLevel(2, "+-*", 2),
    ArithmeticLevel(2, "+-*", 3),
    ArithmeticLevel(3, "+-*", 3),
)

WITH_CALCULATOR = " Use the calculator."
_ASKED = ("What is {}?", "How much is {}?", "Compute {}.", "Please work out {}.")
_SIGNS = (
    {"+": "+", "-": "-", "*": "*"},
    {"+": " + ", "-": " - ", "*": " * "},
    {"+": " plus ", "-": " minus ", "*": " times "},
)


class Expression(NamedTuple):
    """Numbers and the signs between them; products come first.

    >>> expression = Expression((12, 7, 3), "+*")
    >>> str(expression), [str(step) for step in expression.steps()]
    ('12+7*3', ['12+7*3', '12+21', '33'])
    """

    numbers: tuple[int, ...]
    signs: str

    def __str__(self) -> str:
        return self.written({sign: sign for sign in "+-*"})

    def written(self, signs: dict[str, str]) -> str:
        """Return the expression with other texts for its signs."""
        first, *others = self.numbers
        pairs = zip(self.signs, others, strict=True)
        return f"{first}" + "".join(f"{signs[sign]}{number}" for sign, number in pairs)

    def steps(self) -> list["Expression"]:
        """Return the expression, then what is left after each operation, down to a number."""
        if not self.signs:
            return [self]
        place = max(self.signs.find("*"), 0)
        left, right = self.numbers[place : place + 2]
        match self.signs[place]:
            case "*":
                result = left * right
            case "+":
                result = left + right
            case _:
                result = left - right
        numbers = (*self.numbers[:place], result, *self.numbers[place + 2 :])
        simpler = Expression(numbers, self.signs[:place] + self.signs[place + 1 :])
        return [self, *simpler.steps()]

    @property
    def asked(self) -> str:
        """The expression, written the same in whatever order its terms and factors stand.

        >>> Expression((3, 5, 2), "-*").asked == Expression((3, 2, 5), "-*").asked
        True
        """
        signs, products = "+", [[self.numbers[0]]]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            if sign == "*":
                products[-1].append(number)
            else:
                signs += sign
                products.append([number])
        terms = zip(signs, products, strict=True)
        return " ".join(sorted(f"{sign}{'*'.join(map(str, sorted(of)))}" for sign, of in terms))


def arithmetic_question(
    rng: Random, level: ArithmeticLevel, held_out: bool, calculator: bool
) -> TaskQuestion:
    """Return a question that is held out or not.

    No step of working out a question to train on is a question that is held out.
    """
    while True:
        expression = _drawn(rng, level)
        steps = expression.steps()
        to_check = steps[:1] if held_out else steps[:-1]
        if any(is_question_held_out(step.asked) for step in to_check) == held_out:
            break
    asked = rng.choice(_ASKED).format(expression.written(rng.choice(_SIGNS)))
    answer = str(steps[-1])
    end = f"\n{ANSWER}{answer}"
    if not calculator:
        reply = Message("assistant", "=".join(map(str, steps)) + end)
        return user_question(asked, answer, reply, expression.asked)
    parts = (
        Part("text", f"{expression}="),
        Part("python", str(expression)),
        Part("python_output", answer),
        Part("text", end),
    )
    reply = Message("assistant", parts)
    return user_question(asked + WITH_CALCULATOR, answer, reply, expression.asked)


def _drawn(rng: Random, level: ArithmeticLevel) -> Expression:
    numbers = tuple(rng.randrange(10**level.digits) for _ in range(level.numbers))
    return Expression(numbers, "".join(rng.choices(level.operations, k=level.numbers - 1)))
