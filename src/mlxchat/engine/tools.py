"""The calculator as a model calls it, with nanochat's special tokens.

The model writes ``<|python_start|>48/2<|python_end|>``; then the tokens of
``<|output_start|>24.0<|output_end|>`` must follow, and then it is free again.

What a model may have computed: arithmetic, and how often one text occurs in another.

The forms are those of nanochat's calculator (``nanochat/engine.py``, ``use_calculator``), which
hands them to Python's ``eval``. Here the syntax tree is walked instead, so that nothing but numbers
can come of any input, and at once.
"""

import ast
import operator
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

MAX_LENGTH = 1000  # characters of an expression
MAX_OPERATORS = 100  # signs and parentheses; they bound how deep the syntax tree is
MAX_BITS = 256  # of an integer: 77 digits

Number = int | float

_STRING = r"""'[^'\\]*'(?!')|"[^"\\]*"(?!")"""  # no escapes and no triple quotes
# Outside strings only letters of which Python makes no keyword and no prefix: what it would warn
# of, as in "1if 2else 3", is refused before it is parsed.
_ADMITTED = re.compile(rf"(?:\.count\(|{_STRING}|[0-9eE.,+\-*/%() ])*")
_OPERATOR = re.compile(r"[-+*/%(]")
_OPERATIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str | None:
    """The value of ``12*3.5``, ``(1,200 - 30) / 2`` or ``'strawberry'.count('r')`` as Python
    prints it; None for anything else.

    Commas in arithmetic are left out, as nanochat does. Unlike nanochat's it takes ``**``, ``%``,
    exponents (``1e5``), strings of any characters but backslashes, and sums of counts. Unlike
    nanochat's it answers nothing beyond the bounds of this module, and nothing that is no finite
    real number.
    """
    if len(expression) > MAX_LENGTH or not expression.isprintable():
        return None
    if not _ADMITTED.fullmatch(expression) or _operators(expression) > MAX_OPERATORS:
        return None
    if "'" not in expression and '"' not in expression:
        expression = expression.replace(",", "")
    try:
        return str(_value(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, ArithmeticError, _RefusedError):
        return None


class _RefusedError(Exception):
    """What is no number, or too large."""


def _operators(expression: str) -> int:
    return len(_OPERATOR.findall(re.sub(_STRING, "", expression)))


def _value(node: ast.expr) -> Number:
    """The number that a syntax tree stands for, all its operands within the bounds."""
    match node:
        case ast.Constant(value=value):
            result = value
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATIONS:
            result = _OPERATIONS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            result = _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            result = _OPERATIONS[type(op)](_value(left), _value(right))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(part))],
            keywords=[],
        ):
            result = text.count(part)
        case _:
            raise _RefusedError
    if type(result) is int and result.bit_length() <= MAX_BITS:
        return result
    if type(result) is float and abs(result) < float("inf"):
        return result
    raise _RefusedError


def _power(base: Number, exponent: Number) -> Any:
    """``base ** exponent``, unless it is an integer that is too large to compute; it may be
    complex.
    """
    if isinstance(base, float) or isinstance(exponent, float):
        return base**exponent
    if (base.bit_length() - 1) * exponent >= MAX_BITS:
        raise _RefusedError
    return base**exponent


class Tokenizer(Protocol):
    """Text to tokens and back: `mlxchat.tokenizer.bpe.Tokenizer` is one."""

    def special(self, name: str) -> int:
        """The id of a special token."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; none for a special token."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""


class ToolUse:
    """Follows the tokens of one answer and says which of them are not the model's to choose.

    Fulfils `mlxchat.engine.generate.Tool`. What the calculator has no result for, an empty
    expression, one with a special token in it, and an end without a beginning force nothing; a
    second beginning begins anew.

    Args:
        tokenizer: the one the model was trained with.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._python_start = tokenizer.special("<|python_start|>")
        self._python_end = tokenizer.special("<|python_end|>")
        self._expression: list[int] | None = None  # its tokens so far, while one is being written
        self._forced: deque[int] = deque()

    def __call__(self, token: int) -> int | None:
        """The token that must follow ``token``, the answer's latest; None where any may."""
        if token == self._python_start:
            self._expression = []
        elif token == self._python_end:
            self._force_result()
            self._expression = None
        elif not self._tokenizer.token_bytes(token):
            self._expression = None
        elif self._expression is not None:
            self._expression.append(token)
        return self._forced.popleft() if self._forced else None

    def _force_result(self) -> None:
        result = calculate(self._tokenizer.decode(self._expression or []))
        if result is not None:
            self._forced.append(self._tokenizer.special("<|output_start|>"))
            self._forced.extend(self._tokenizer.encode(result))
            self._forced.append(self._tokenizer.special("<|output_end|>"))
