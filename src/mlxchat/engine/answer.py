"""The answer of an assistant, decoded from its tokens as they come."""

import codecs

from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Part

PART_AFTER = {  # special tokens, and the part of a message that begins after each
    "<|python_start|>": Part("python", ""),
    "<|python_end|>": Part("text", ""),
    "<|output_start|>": Part("python_output", ""),
    "<|output_end|>": Part("text", ""),
}


class Answer:
    """Decodes an assistant's message, token by token, into the parts of a message.

    Special tokens other than those of tool calls are ignored. A character whose bytes are not
    complete at the end of a part is left out.

    Attributes:
        tokens: all tokens taken so far.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens: list[int] = []
        self._tokenizer = tokenizer
        self._part_after = {tokenizer.special(name): part for name, part in PART_AFTER.items()}
        self._parts = [Part("text", "")]
        self._part_start = 0  # tokens before the current part
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, token: int) -> Part | None:
        """Add a token; returns the new piece of a part, of whole characters, or None.

        A tool call and its output begin with an empty piece each.
        """
        self.tokens.append(token)
        if token in self._part_after:
            return self._begin(self._part_after[token])
        text = self._decoder.decode(self._tokenizer.token_bytes(token))
        if not text:
            return None
        part = self._parts[-1]
        self._parts[-1] = Part(part.type, part.text + text)
        return Part(part.type, text)

    def _begin(self, part: Part) -> Part | None:
        if part.type == "text" and self._parts[-1].type == "text":
            return None  # the end of a call that had not begun
        self._decoder.reset()
        self._parts.append(part)
        self._part_start = len(self.tokens) - 1
        return None if part.type == "text" else part

    def message(self) -> tuple[str | tuple[Part, ...], list[int]]:
        """Return the message's content and its tokens, both well-formed wherever it broke off.

        An unfinished call is ended. An unfinished output is left out, since half of a number is
        another number.
        """
        parts, tokens = self._parts, self.tokens
        if parts[-1].type == "python":
            tokens = [*tokens, self._tokenizer.special("<|python_end|>")]
        elif parts[-1].type == "python_output":
            parts, tokens = parts[:-1], tokens[: self._part_start]
        content = tuple(part for part in parts if part.text or part.type != "text")
        if all(part.type == "text" for part in content):
            return "".join(part.text for part in content), tokens
        return content, tokens
