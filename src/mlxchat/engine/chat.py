"""A conversation with a model: text in, an answer out, whole or in pieces. Prints nothing.

A model trained on conversations gets nanochat's chat tokens, has the calculator and stops at
``<|assistant_end|>``. A base model continues text: it gets ``<|bos|>`` and the whole conversation
as one piece of text.

Each answer's prompt is the whole conversation, rendered again. The cache keeps the longest prefix
that it shares with the prompt, so only new tokens are processed when a conversation continues, and
`Chat.undo`, `Chat.regenerate`, `Chat.set`, `Chat.clear`, `Chat.load`, dropped turns and
interruptions need no bookkeeping of their own.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mlxchat.config.inference import ChatSettings
from mlxchat.config.validate import validated
from mlxchat.counts import counted
from mlxchat.device_failures import answer_error
from mlxchat.disk import read_regular, replacing
from mlxchat.engine.answer import Answer
from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import generate
from mlxchat.engine.sampling import make_sampler
from mlxchat.engine.tools import ToolUse
from mlxchat.errors import ConfigError, DataError, DiskError, reason_of
from mlxchat.json_text import as_type, parse_json
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import ASSISTANT_END, Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message, Part

_FILE = TypeAdapter(Conversation)
_MOST_BYTES = 2**26  # of a file of one conversation
_FORM = (
    'The file should contain {"messages": [{"role": "user", "content": "..."}, {"role": '
    '"assistant", "content": "..."}]}; /save writes such a file.'
)


@dataclass
class _Turn:
    """A turn: the user's text, and the answer both as message content and as sampled tokens.

    ``dropped`` is the number of earlier turns that the model did not see when it answered.
    ``stream`` is the generator that samples the answer.
    """

    user: str
    answer: str | tuple[Part, ...] = ""
    tokens: list[int] = field(default_factory=list)
    dropped: int = 0
    stream: Generator[Part, None, None] | None = field(default=None, repr=False)


class Chat:
    """A conversation in turns.

        chat = Chat(model, tokenizer, conversational=True, settings=ChatSettings(temperature=0))
        print(chat.say("What does a cow say?"))

    Args:
        model: the network.
        tokenizer: the one that the model was trained with.
        conversational: whether the model was trained on conversations.
        settings: sampling, the maximum length, the seed (the same calls with the same seed give the
            same answers) and the system message.

    Attributes:
        conversational: whether the model was trained on conversations.
        settings: the settings of the next answer; `set` changes them.
        truncated: whether the latest answer was cut off by ``max_tokens`` or the context.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, *, conversational: bool, settings: ChatSettings
    ) -> None:
        self.conversational = conversational
        self.settings = settings
        self.truncated = False
        self._model = model
        self._tokenizer = tokenizer
        self._key = mx.random.key(settings.seed)
        self._bos = tokenizer.bos
        self._end = [tokenizer.special(ASSISTANT_END)] if conversational else []
        self._tools = partial(ToolUse, tokenizer) if conversational else None
        self._turns: list[_Turn] = []
        self._cache = KVCache(model.config)
        self._held: list[int] = []  # the tokens in the cache

    def set(self, **settings: Any) -> None:
        """Change settings from the next answer on.

        The system message counts for the whole conversation, whenever it is set; None removes it.
        A seed starts the random draws anew.

        Args:
            **settings: fields of `ChatSettings`, such as ``temperature=0``.

        Raises:
            ConfigError: there is no such setting, or it cannot have such a value. No setting
                changes.
        """
        self.settings = validated(ChatSettings, {**dict(self.settings), **settings})
        if "seed" in settings:
            self._key = mx.random.key(self.settings.seed)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages of the conversation, dropped turns included."""
        self._settle()
        system = self.settings.system
        messages = [] if system is None else [Message("system", system)]
        for turn in self._turns:
            messages += [Message("user", turn.user), Message("assistant", turn.answer)]
        return tuple(messages)

    @property
    def dropped(self) -> int:
        """The number of oldest turns that no longer fit the context.

        The model does not see them; `messages` still has them.
        """
        return self._turns[-1].dropped if self._turns else 0

    def say(self, text: str) -> str:
        """Say ``text`` to the model; returns the text of its answer, without tool calls.

        `messages` has the whole answer. Raises what `reply` raises.
        """
        for _ in self.reply(text):
            pass
        return self.messages[-1].spoken

    def reply(self, text: str) -> Generator[Part, None, None]:
        """Stream the model's answer to ``text``, or its continuation: pieces of parts of a message.

        Pieces are whole characters; a character that the answer breaks off in is left out. A tool
        call and its output begin with an empty piece each.

        If the conversation and an answer would exceed the context, the oldest turns are dropped
        first. Close the generator to interrupt the answer: its tokens so far stay in the history.
        One that is left open is closed by whatever reads or changes the conversation.

        Raises:
            ConfigError: the message is empty, or too long for the context by itself. The history
                does not change. While iterating: it has changed since the call.
            DeviceError: while iterating: the device failed.
            MemoryLimitError: while iterating: there is no memory left. In either case the history
                keeps the tokens so far, and the chat can go on.
        """
        if self.conversational and not text.strip():
            raise ConfigError("The message is empty.", "Type a message.")
        self._settle()
        return self._answered(self._turns, _encodable(text))

    def regenerate(self) -> Generator[Part, None, None]:
        """Stream another answer to the latest message, in place of the one that it has.

        It differs by its random draws, and by what was `set` since. If it is interrupted before its
        first token, the earlier answer stays.

        Raises:
            ConfigError: there is no message yet.
        """
        *earlier, latest = self._some_turns()
        return self._answered(earlier, latest.user)

    def undo(self) -> str:
        """Take back the latest message and its answer; returns the message.

        Raises:
            ConfigError: there is no message yet.
        """
        *self._turns, latest = self._some_turns()
        return latest.user

    def clear(self) -> None:
        """Start a new conversation, with the same settings and system message."""
        self._settle()
        self._turns = []

    def save(self, path: Path) -> None:
        """Write the conversation as JSON, ``{"messages": [{"role": ..., "content": ...}]}``.

        Raises:
            DiskError: the file cannot be written. An existing file does not change.
        """
        said = _FILE.dump_json(Conversation(self.messages), indent=2, exclude_defaults=True)
        try:
            with replacing(path) as partial:
                partial.write_bytes(said + b"\n")
        except (OSError, ValueError) as error:  # no disk can have such a name
            raise DiskError(
                f"Cannot write {path}: {reason_of(error)}.", "Save under another name."
            ) from error

    def load(self, path: Path) -> None:
        """Replace the conversation by the one in a file that `save` wrote.

        Raises:
            DiskError: the file cannot be read.
            DataError: it holds no conversation in which user and assistant take turns. In either
                case the current conversation does not change.
        """
        try:
            stored = parse_json(read_regular(path, _MOST_BYTES))
            messages = as_type(stored, _FILE).messages
        except OSError as error:
            raise DiskError(
                f"Cannot read {path}: {reason_of(error)}.", "Check the name of the file."
            ) from error
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"])) or "the file"
            raise DataError(f"{path}: {place}: {fault['msg']}.", _FORM) from error
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: {error}.", _FORM) from error
        system = messages[0].text if messages and messages[0].role == "system" else None
        spoken = messages if system is None else messages[1:]
        _check_turns(path, spoken)
        pairs = zip(spoken[::2], spoken[1::2], strict=True)
        turns = [_Turn(user.text, answer.content, self._answer(answer)) for user, answer in pairs]
        self._settle()
        self.set(system=system)
        self._turns = turns

    def _settle(self) -> None:
        """Close the latest answer's generator; if it was left open, the answer ends there."""
        if self._turns and (stream := self._turns[-1].stream):
            stream.close()

    def _some_turns(self) -> list[_Turn]:
        self._settle()
        if not self._turns:
            raise ConfigError("There is no message yet.", "Type a message.")
        return self._turns

    def _answered(self, earlier: list[_Turn], text: str) -> Generator[Part, None, None]:
        """Stream the answer to a message that follows earlier turns, and replaces those after."""
        turn = _Turn(text)
        turn.dropped, prompt = self._fit([*earlier, turn])
        turn.stream = self._stream([*earlier, turn], prompt, self._turns)
        return turn.stream

    def _fit(self, turns: Sequence[_Turn]) -> tuple[int, list[int]]:
        """Return how many turns to drop so that an answer fits, and the prompt of the others.

        Turns that were dropped before stay so.
        """
        context = self._model.config.sequence_len
        longest = context - min(self.settings.max_tokens, context // 2)
        for dropped in range(self._least_dropped(turns, longest), len(turns)):
            prompt = self._prompt(turns[dropped:])
            if len(prompt) <= longest:
                return dropped, prompt
        if len(prompt) < context:  # the last message alone fits, with a shorter answer
            return dropped, prompt
        takes = "takes" if self.settings.system is None else "and the system message take"
        raise ConfigError(
            f"The message {takes} {counted(len(prompt), 'tokens')}; the model's context is "
            f"{context:,}.",
            f"Shorten it to fewer than {context:,} tokens.",
        )

    def _least_dropped(self, turns: Sequence[_Turn], longest: int) -> int:
        """Return how many turns to drop for a prompt of about ``longest`` tokens.

        Lengths are summed from the end, so that each turn that fits is encoded once. The system
        message is counted with the last turn, though it leads the first: its tokens may differ by
        one or two there, so that only the whole prompt tells its length.
        """
        *earlier, last = turns
        dropped, before = len(earlier), earlier[-1].dropped if earlier else 0
        length = 1 + len(self._question(last, self.settings.system))
        while dropped > before:
            turn = earlier[dropped - 1]
            length += len(self._question(turn, None)) + len(turn.tokens) + len(self._end)
            if length > longest:
                break
            dropped -= 1
        return dropped

    def _prompt(self, turns: Sequence[_Turn]) -> list[int]:
        """Return the tokens of ``turns``, up to where the last one's answer begins."""
        *earlier, last = turns
        ids, system = [self._bos], self.settings.system
        for turn in earlier:
            ids += self._question(turn, system) + turn.tokens + self._end
            system = None
        return ids + self._question(last, system)

    def _question(self, turn: _Turn, system: str | None) -> list[int]:
        """Return the tokens of a turn before its answer, preceded by a system message, if any."""
        messages = [] if system is None else [Message("system", system)]
        messages.append(Message("user", turn.user))
        if not self.conversational:
            return self._tokenizer.encode("\n\n".join(message.text for message in messages))
        _bos, *ids = self._tokenizer.render_for_completion(Conversation(tuple(messages)))
        return ids

    def _answer(self, answer: Message) -> list[int]:
        """Return the tokens of an answer that was not drawn here, without those around them."""
        if not self.conversational:
            return self._tokenizer.encode(answer.text)
        ids, _mask = self._tokenizer.render(Conversation((Message("user", ""), answer)))
        return ids[ids.index(self._tokenizer.special("<|assistant_start|>")) + 1 : -1]

    def _stream(
        self, turns: list[_Turn], prompt: list[int], before: list[_Turn]
    ) -> Generator[Part, None, None]:
        """Stream the answer of the last of ``turns``, which replace those ``before``."""
        if self._turns is not before:
            raise ConfigError("The conversation has changed since this was asked.", "Ask again.")
        answer = Answer(self._tokenizer)
        limit = min(self.settings.max_tokens, self._model.config.sequence_len - len(prompt))
        # Ctrl-C may come at any moment: nothing is held that the trimmed cache may lack.
        shared = min(_shared(self._held, prompt), self._cache.offset)
        self._held = self._held[:shared]
        self._cache.trim(shared)
        shared = self._cache.offset
        try:
            self._turns, self.truncated = turns, False
            self._key, key = mx.random.split(self._key)
            tokens = generate(
                self._model,
                prompt[shared:],
                self._cache,
                make_sampler(self.settings),
                key=key,
                stop=frozenset([self._bos, *self._end]),
                max_tokens=limit,
                repetition_penalty=self.settings.repetition_penalty,
                seen=prompt[:shared],
                tools=self._tools,
            )
            with closing(tokens):
                for token in tokens:
                    if piece := answer.take(token):
                        yield piece
        except BaseException as error:
            if not answer.tokens:  # interrupted before the first token: as if it had not been asked
                self._turns = before
            if isinstance(error, Exception):
                self._cache = KVCache(self._model.config)  # its arrays may never be computed
                if known := answer_error(error):
                    raise known from error
            raise
        finally:
            self._held = (prompt + answer.tokens)[: self._cache.offset]
            turns[-1].answer, turns[-1].tokens = answer.message()
        self.truncated = len(answer.tokens) == limit


def _check_turns(path: Path, spoken: Sequence[Message]) -> None:
    for number, message in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if message.role != expected:
            raise DataError(
                f"{path}: {message.text[:40]!r} is from the {message.role}, but it is the "
                f"{expected}'s turn.",
                _FORM,
            )
    if len(spoken) % 2:
        raise DataError(f"{path}: the last message has no answer.", _FORM)


def _shared(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Return how many tokens of ``prompt`` the cache has: a common prefix, without its last token.

    The last token is always processed, for the logits after it.
    """
    longest = min(len(held), len(prompt) - 1)
    return next((i for i in range(longest) if held[i] != prompt[i]), longest)


def _encodable(text: str) -> str:
    """Replace the lone surrogates that a terminal in another encoding lets through."""
    return text.encode("utf-8", "replace").decode("utf-8")
