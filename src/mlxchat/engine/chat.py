"""A conversation with a model: text in, pieces of an answer out. Prints nothing.

A model trained on conversations gets nanochat's chat tokens, has the calculator and stops at
``<|assistant_end|>``. A base model continues text: ``<|bos|>``, then everything said so far in one
piece.

The tokens of the whole conversation are laid out anew for every answer, and the cache keeps the
longest beginning it shares with them. So only new tokens are processed in a conversation that goes
on, and clearing, loading, dropping turns and interrupting need no bookkeeping of their own.

An answer as a model gives it: tokens, and the parts of a message that they amount to.
"""

import codecs
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mlxchat.config.inference import Sampling
from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import generate
from mlxchat.engine.sampling import make_sampler
from mlxchat.engine.tools import ToolUse
from mlxchat.errors import ConfigError, DataError, DiskError
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import ASSISTANT_END, Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message, Part

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


_FILE = TypeAdapter(Conversation)
_FORM = (
    'Such a file holds {"messages": [{"role": "user", "content": "..."}, '
    '{"role": "assistant", "content": "..."}]}; /save writes one.'
)


@dataclass
class _Turn:
    """What the user said, and the answer as a message's content and as the tokens drawn for it."""

    user: str
    answer: str | tuple[Part, ...] = ""
    tokens: list[int] = field(default_factory=list)


class Chat:
    """A conversation in turns.

    Args:
        model: the network.
        tokenizer: the one it was trained with.
        conversational: whether it was trained on conversations.
        sampling: how tokens are chosen.
        seed: of the random draws; the same seed and messages give the same answers.
        max_tokens: the most tokens in one answer.

    Attributes:
        conversational: as given.
        dropped: turns from the beginning that no longer fit the context. The model doesn't see
            them; `messages` still has them.
        truncated: whether the latest answer ended for want of tokens, by ``max_tokens`` or the
            context, and not because the model was done.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        conversational: bool,
        sampling: Sampling,
        seed: int,
        max_tokens: int,
    ) -> None:
        self.conversational = conversational
        self.dropped = 0
        self.truncated = False
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._key = mx.random.key(seed)
        self._max_tokens = max_tokens
        self._bos = tokenizer.bos
        self._end = [tokenizer.special(ASSISTANT_END)] if conversational else []
        self._tools = partial(ToolUse, tokenizer) if conversational else None
        self._system: str | None = None
        self._turns: list[_Turn] = []
        self._cache = KVCache(model.config)
        self._held: list[int] = []  # the tokens in the cache

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that was said, dropped turns included."""
        messages = [] if self._system is None else [Message("system", self._system)]
        for turn in self._turns:
            messages += [Message("user", turn.user), Message("assistant", turn.answer)]
        return tuple(messages)

    def reply(self, text: str) -> Generator[Part, None, None]:
        """Answer ``text``, or continue it: pieces of the answer's parts as they come.

        The pieces are whole characters; a character that the answer breaks off in is left out.
        A tool call and its output begin with an empty piece each.
        Where the conversation and an answer would pass the context, the oldest turns are dropped
        first. Close the generator to interrupt the answer: what was said stays in the history.

        Raises:
            MlxchatError: the message is empty, or too long for the context by itself. The history
                is then as it was.
        """
        if self.conversational and not text.strip():
            raise ConfigError("The message is empty.", "Say something to the model.")
        turn = _Turn(_encodable(text))
        self.dropped, prompt = self._fit([*self._turns, turn])
        return self._stream(turn, prompt)

    def clear(self) -> None:
        """Begin a new conversation."""
        self._system, self._turns, self.dropped = None, [], 0

    def save(self, path: Path) -> None:
        """Write the conversation as JSON, ``{"messages": [{"role": ..., "content": ...}]}``.

        Raises:
            MlxchatError: the file cannot be written. One that was there is as it was.
        """
        partial = path.parent / f".{path.name}.partial"
        try:
            partial.write_bytes(_FILE.dump_json(Conversation(self.messages), indent=2) + b"\n")
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise DiskError(
                f"Cannot write {path}: {error.strerror}.", "Save under another name."
            ) from error

    def load(self, path: Path) -> None:
        """Go on with the conversation in a file that `save` wrote, in place of the present one.

        Raises:
            MlxchatError: the file cannot be read or is no conversation in which user and assistant
                take turns. The present conversation is then as it was.
        """
        try:
            messages = _FILE.validate_json(path.read_bytes()).messages
        except OSError as error:
            raise DiskError(
                f"Cannot read {path}: {error.strerror}.", "Check the name of the file."
            ) from error
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"])) or "the file"
            raise DataError(f"{path}: {place}: {fault['msg']}.", _FORM) from error
        system = messages[0].text if messages and messages[0].role == "system" else None
        spoken = messages if system is None else messages[1:]
        _check_turns(path, spoken)
        pairs = zip(spoken[::2], spoken[1::2], strict=True)
        self._turns = [
            _Turn(user.text, answer.content, self._answered(answer)) for user, answer in pairs
        ]
        self._system, self.dropped = system, 0

    def _fit(self, turns: Sequence[_Turn]) -> tuple[int, list[int]]:
        """How many of ``turns`` are dropped so that an answer fits, and the prompt of the rest."""
        context = self._model.config.sequence_len
        room = min(self._max_tokens, context // 2)
        for dropped in range(self.dropped, len(turns)):
            prompt = self._prompt(turns[dropped:])
            if len(prompt) + room <= context:
                return dropped, prompt
        if len(prompt) < context:  # the last message alone, and a shorter answer
            return dropped, prompt
        raise ConfigError(
            f"The message takes {len(prompt)} tokens; the model's context is {context}.",
            f"Shorten it to fewer than {context} tokens.",
        )

    def _prompt(self, turns: Sequence[_Turn]) -> list[int]:
        """The tokens of ``turns``, up to where the last one's answer begins."""
        *earlier, last = turns
        ids, system = [self._bos], self._system
        for turn in earlier:
            ids += self._asked(turn, system) + turn.tokens + self._end
            system = None
        return ids + self._asked(last, system)

    def _asked(self, turn: _Turn, system: str | None) -> list[int]:
        """The tokens of a turn before its answer, led by the system message where there is one."""
        messages = [] if system is None else [Message("system", system)]
        messages.append(Message("user", turn.user))
        if not self.conversational:
            return self._tokenizer.encode("\n\n".join(message.text for message in messages))
        _bos, *ids = self._tokenizer.render_for_completion(Conversation(tuple(messages)))
        return ids

    def _answered(self, answer: Message) -> list[int]:
        """The tokens of an answer that was not drawn here, without what encloses them."""
        if not self.conversational:
            return self._tokenizer.encode(answer.text)
        ids, _mask = self._tokenizer.render(Conversation((Message("user", ""), answer)))
        return ids[ids.index(self._tokenizer.special("<|assistant_start|>")) + 1 : -1]

    def _stream(self, turn: _Turn, prompt: list[int]) -> Generator[Part, None, None]:
        self._turns.append(turn)
        shared = _shared(self._held, prompt)
        limit = min(self._max_tokens, self._model.config.sequence_len - len(prompt))
        answer = Answer(self._tokenizer)
        self._key, key = mx.random.split(self._key)
        self.truncated = False
        try:
            self._cache.trim(shared)
            shared = self._cache.offset
            tokens = generate(
                self._model,
                prompt[shared:],
                self._cache,
                make_sampler(self._sampling, key),
                stop=frozenset([self._bos, *self._end]),
                max_tokens=limit,
                repetition_penalty=self._sampling.repetition_penalty,
                seen=prompt[:shared],
                tools=self._tools,
            )
            with closing(tokens):
                for token in tokens:
                    if piece := answer.take(token):
                        yield piece
        except BaseException:
            if not answer.tokens:  # interrupted before a word: as if it had not been asked
                self._turns.pop()
            raise
        finally:
            self._held = (prompt + answer.tokens)[: self._cache.offset]
            turn.answer, turn.tokens = answer.message()
        self.truncated = len(answer.tokens) == limit


def _check_turns(path: Path, spoken: Sequence[Message]) -> None:
    for number, message in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if message.role != expected:
            raise DataError(
                f"{path}: {message.text[:40]!r} is from the {message.role} where the turn is "
                f"the {expected}'s.",
                _FORM,
            )
    if len(spoken) % 2:
        raise DataError(f"{path}: the last message has no answer.", _FORM)


def _shared(held: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens of ``prompt`` need no processing: all that agree with ``held`` but its last.

    The last is processed in any case, for the logits after it.
    """
    longest = min(len(held), len(prompt) - 1)
    return next((i for i in range(longest) if held[i] != prompt[i]), longest)


def _encodable(text: str) -> str:
    """``text`` without the lone surrogates that a terminal in another encoding lets through."""
    return text.encode("utf-8", "replace").decode("utf-8")
