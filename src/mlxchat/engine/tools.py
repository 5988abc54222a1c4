"""The calculator, and how a model calls it with nanochat's special tokens.

The model writes ``<|python_start|>48/2<|python_end|>``; `ToolUse` then forces the tokens of
``<|output_start|>24.0<|output_end|>``, after which the model chooses tokens again.

`calculate` accepts what nanochat's calculator accepts (``nanochat/engine.py``, ``use_calculator``):
arithmetic, and how often one text occurs in another. nanochat passes it to Python's ``eval``; here
the syntax tree is evaluated, so that every input gives a number or None, and quickly.
"""

import ast
import operator
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol


class TokenConverter(Protocol):
    """Converts between text and tokens: `mlxchat.tokenizer.bpe.Tokenizer` is one."""

    def special(self, name: str) -> int:
        """Return the id of a special token."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; none for a special token."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids."""


class ToolUse:
    """Follows the tokens of one answer and forces the result of each call of the calculator.

    A `mlxchat.engine.generate.Tool`. Nothing is forced after an expression without a value, an
    empty one, one that contains a special token, or an end without a start. A second start discards
    the expression before it.

    Args:
        tokenizer: the one the model was trained with.
    """

    def __init__(self, tokenizer: TokenConverter) -> None:
        self._tokenizer = tokenizer
        self._python_start = tokenizer.special("<|python_start|>")
        self._python_end = tokenizer.special("<|python_end|>")
        self._expression: list[int] | None = None  # its tokens so far, inside a call
        self._forced: deque[int] = deque()

    def __call__(self, token: int) -> int | None:
        """Return the token that must follow ``token``, the latest one; None if any may."""
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


MAX_LENGTH = 1000  # characters of an expression
MAX_OPERATORS = 100  # signs and parentheses; bounds the depth of the syntax tree
MAX_BITS = 256  # of an integer: 77 digits

Number = int | float

_STRING = r"""'[^'\\]*'(?!')|"[^"\\]*"(?!")"""  # no escapes and no triple quotes
# Outside strings only letters that cannot form a keyword or a prefix: what Python would warn about,
# such as "1if 2else 3", is rejected before it is parsed.
_ACCEPTED = re.compile(rf"(?:\.count\(|{_STRING}|[0-9eE.,+\-*/%() ])*")
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
    """Return the value of an expression as Python prints it, or None if there is none.

    An expression is arithmetic, such as ``12*3.5`` or ``(1,200 - 30) / 2``, or a count, such as
    ``'strawberry'.count('r')``. Commas in arithmetic are ignored, as in nanochat. Unlike nanochat's
    calculator, this one accepts ``**``, ``%``, exponents (``1e5``), strings of any characters but
    backslashes, and sums of counts, and rejects expressions beyond the limits of this module and
    values that are not finite real numbers.
    """
    if len(expression) > MAX_LENGTH or not expression.isprintable():
        return None
    if not _ACCEPTED.fullmatch(expression) or _operators(expression) > MAX_OPERATORS:
        return None
    if "'" not in expression and '"' not in expression:
        expression = expression.replace(",", "")
    try:
        return str(_value(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, ArithmeticError, _RejectedError):
        return None


class _RejectedError(Exception):
    """The expression has no value, or one that is too large."""


def _operators(expression: str) -> int:
    return len(_OPERATOR.findall(re.sub(_STRING, "", expression)))


def _value(node: ast.expr) -> Number:
    """Evaluate a syntax tree; every intermediate value must be within the limits."""
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
            raise _RejectedError
    if type(result) is int and result.bit_length() <= MAX_BITS:
        return result
    if type(result) is float and abs(result) < float("inf"):
        return result
    raise _RejectedError


def _power(base: Number, exponent: Number) -> Any:
    """Return ``base ** exponent``, which may be complex; reject integers too large to compute."""
    if isinstance(base, float) or isinstance(exponent, float):
        return base**exponent
    if (base.bit_length() - 1) * exponent >= MAX_BITS:
        raise _RejectedError
    return base**exponent
