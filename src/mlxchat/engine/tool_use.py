"""The calculator as a model calls it, with nanochat's special tokens.

The model writes ``<|python_start|>48/2<|python_end|>``; then the tokens of
``<|output_start|>24.0<|output_end|>`` must follow, and then it is free again.
"""

from collections import deque
from typing import Protocol

from mlxchat.engine.calculator import calculate


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
