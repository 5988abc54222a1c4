"""Turns an answer's tokens into what a client gets: text, calculations and log probabilities.

Text is delivered in complete characters. It is held back while it may be the beginning of a stop
string, which can span several tokens; nothing from a stop string on is delivered. A calculation's
result is held back until it is complete, and left out if the answer ends before that, since part of
a number is a different number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mlxchat.engine.answer import PART_AFTER, Answer
from mlxchat.serve.reply_schema import Calculation, CompletionLogprobs, TokenLogprob, TopLogprob
from mlxchat.serve.requests import Token
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Brackets, Part

LEAST_LOGPROB = -9999.0  # JSON has no minus infinity; OpenAI's number for it


class StopStrings:
    """Finds the first of several strings in a text that arrives in pieces.

    >>> stops = StopStrings(["\\n\\n"])
    >>> stops.take("moo\\n"), stops.take("\\nThe"), stops.found
    ('moo', '', True)

    Attributes:
        found: whether one of them has occurred.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.found = False
        self._strings = strings
        self._held = ""

    def take(self, text: str) -> str:
        """Add a piece; returns the text that is certain to come before any of the strings."""
        text = self._held + text
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        kept = self._possible(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def end(self) -> str:
        """Return what was held back, when the text is over."""
        held, self._held = self._held, ""
        return held

    def _possible(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins one of the strings."""
        longest = max((len(string) - 1 for string in self._strings), default=0)
        lengths = range(min(longest, len(text)), 0, -1)
        return next((k for k in lengths if any(s.startswith(text[-k:]) for s in self._strings)), 0)


@dataclass(frozen=True)
class Scored:
    """A token with its log probability, and where in the answer its text begins, in characters."""

    offset: int
    logprob: TokenLogprob


@dataclass
class Increment:
    """The part of an answer that a token completes; any of it may be empty."""

    text: str = ""
    scored: list[Scored] = field(default_factory=list)
    calculations: list[Calculation] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.text or self.scored or self.calculations)


class _Taken(NamedTuple):
    """A token: the text that it completes, and its log probability, if requested."""

    part: Part | None
    score: TokenLogprob | None


class Transcript:
    """Follows the tokens of one answer.

    Args:
        tokenizer: the model's.
        stops: strings that end the answer.
        calculator: whether the model has it; its uses are written in brackets.

    Attributes:
        tokens: the number of tokens taken.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, calculator: bool) -> None:
        self.tokens = 0
        self._tokenizer = tokenizer
        self._answer = Answer(tokenizer)
        self._brackets = Brackets() if calculator else None
        self._calculations = _Calculations() if calculator else None
        self._boundaries = {tokenizer.special(name) for name in PART_AFTER}  # between parts
        self._in_result = False
        self._result: list[_Taken] = []  # of a calculation, that is not whole yet
        self._stops = StopStrings(stops)
        self._written = 0  # characters, delivered or held back
        self._delivered = 0
        self._scored: list[Scored] = []  # of text that is not delivered yet

    @property
    def stopped(self) -> bool:
        """Whether the answer has come to a stop string, and is over."""
        return self._stops.found

    def take(self, token: Token) -> Increment:
        """Add a token; returns what can be delivered now."""
        self.tokens += 1
        part = self._answer.take(token.id)
        score = None if token.logprob is None else self._scored_token(token)
        whole: list[_Taken] = []
        if token.id in self._boundaries:
            whole, self._result = self._result, []
            self._in_result = part is not None and part.type == "python_output"
        held = self._result if self._in_result and self._brackets else whole
        held.append(_Taken(part, score))
        return self._passed_on(whole)

    def end(self) -> Increment:
        """Return what was held back, when no more tokens come."""
        if self.stopped:
            return Increment()
        self._scored += [
            Scored(self._written, taken.score) for taken in self._result if taken.score is not None
        ]
        bracket = self._brackets.end() if self._brackets else ""
        done = self._calculations.end() if self._calculations else []
        text = self._stops.take(bracket)
        if not self.stopped:
            text += self._stops.end()
        piece = self._released(text, done)
        if not self.stopped:
            piece.scored += self._scored
        return piece

    def _passed_on(self, taken: Sequence[_Taken]) -> Increment:
        """Return what can be delivered of some tokens, none of them of half a result."""
        shown, done = "", []
        for part, score in taken:
            if score is not None:
                self._scored.append(Scored(self._written, score))
            if part is None:
                continue
            text = self._shown(part)
            done += self._calculations.take(part) if self._calculations else []
            shown += text
            self._written += len(text)
        return self._released(self._stops.take(shown), done)

    def _shown(self, part: Part) -> str:
        if self._brackets is None:
            return part.text
        return "".join(text for text, _ in self._brackets.take(part.type, part.text))

    def _released(self, text: str, done: list[Calculation]) -> Increment:
        """Return a piece with the tokens whose text begins in it or before."""
        self._delivered += len(text)
        waiting = [scored for scored in self._scored if scored.offset >= self._delivered]
        ready = self._scored[: len(self._scored) - len(waiting)]
        self._scored = waiting
        return Increment(text, ready, done)

    def _scored_token(self, token: Token) -> TokenLogprob:
        top = [self._named(other, logprob) for other, logprob in token.top]
        own = self._named(token.id, token.logprob or 0.0)
        return TokenLogprob(**dict(own), top_logprobs=top)

    def _named(self, token: int, logprob: float) -> TopLogprob:
        """Return a token's name, its bytes and its log probability.

        The name is its text; bytes that are no characters are written as ``\\xf0``, as OpenAI does.
        """
        content = self._tokenizer.token_bytes(token)
        if content:
            name = content.decode("utf-8", "backslashreplace")
        else:
            name = self._tokenizer.decode([token], keep_special=True)
        logprob = max(logprob, LEAST_LOGPROB)
        return TopLogprob(token=name, bytes=list(content) or None, logprob=logprob)


class _Calculations:
    """Collects the calculator's uses from the pieces of an answer."""

    def __init__(self) -> None:
        self._open: Calculation | None = None

    def take(self, part: Part) -> list[Calculation]:
        """Add a piece; returns the calculation that ended before it, if one did."""
        done: list[Calculation] = []
        if part.type == "text" or (part.type == "python" and not part.text):
            done = self.end()
        if part.type == "python":
            before = self._open.expression if self._open else ""
            self._open = Calculation(expression=before + part.text)
        elif part.type == "python_output" and self._open:
            self._open.result = (self._open.result or "") + part.text
        return done

    def end(self) -> list[Calculation]:
        """Return the calculation that was not known to be over."""
        done, self._open = [self._open] if self._open else [], None
        return done


def completion_logprobs(scored: Sequence[Scored], alternatives: bool) -> CompletionLogprobs:
    """Return log probabilities in the form of completions.

    Args:
        scored: the tokens.
        alternatives: whether the likeliest tokens were asked for.
    """
    tokens = [each.logprob for each in scored]
    tops = [{top.token: top.logprob for top in token.top_logprobs} for token in tokens]
    return CompletionLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=tops if alternatives else None,
        text_offset=[each.offset for each in scored],
    )
