"""An answer as a model gives it: tokens, and the parts of a message that they amount to."""

import codecs

from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Part

BEGINNINGS = {
    "<|python_start|>": Part("python", ""),
    "<|python_end|>": Part("text", ""),
    "<|output_start|>": Part("python_output", ""),
    "<|output_end|>": Part("text", ""),
}
"""Special tokens, and the part that begins after each of them."""


class Answer:
    """Takes the tokens of an assistant's message, one after another.

    Other special tokens than those of tool calls say nothing, and a letter of which a part has not
    all bytes is left out.

    Attributes:
        tokens: all that were taken.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens: list[int] = []
        self._tokenizer = tokenizer
        self._beginnings = {tokenizer.special(name): part for name, part in BEGINNINGS.items()}
        self._parts = [Part("text", "")]
        self._begun = 0  # tokens before the present part
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, token: int) -> Part | None:
        """Add a token; returns what there is to read of it, if anything.

        That is a piece of a part, of whole letters. A call and its output begin with an empty one.
        """
        self.tokens.append(token)
        if token in self._beginnings:
            return self._begin(self._beginnings[token])
        text = self._decoder.decode(self._tokenizer.token_bytes(token))
        if not text:
            return None
        part = self._parts[-1]
        self._parts[-1] = Part(part.type, part.text + text)
        return Part(part.type, text)

    def _begin(self, part: Part) -> Part | None:
        if part.type == "text" and self._parts[-1].type == "text":
            return None  # the end of what had not begun
        self._decoder.reset()
        self._parts.append(part)
        self._begun = len(self.tokens) - 1
        return None if part.type == "text" else part

    def message(self) -> tuple[str | tuple[Part, ...], list[int]]:
        """Content and tokens of an assistant's message that says this, wherever it broke off.

        A call is then taken to end there. Of an output that has no end nothing stays: half a number
        is another one.
        """
        parts, tokens = self._parts, self.tokens
        if parts[-1].type == "python":
            tokens = [*tokens, self._tokenizer.special("<|python_end|>")]
        elif parts[-1].type == "python_output":
            parts, tokens = parts[:-1], tokens[: self._begun]
        said = tuple(part for part in parts if part.text or part.type != "text")
        if all(part.type == "text" for part in said):
            return "".join(part.text for part in said), tokens
        return said, tokens
