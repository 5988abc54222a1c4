"""Turns requests into token ids that fit into the model's context."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mlxchat.config.inference import Sampling
from mlxchat.engine.tools import calculate
from mlxchat.serve.errors import ApiError, invalid, unsupported
from mlxchat.serve.schema import ChatMessage
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message, Part, Role

ROLES: dict[str, Role] = {  # how the model hears them: as nanochat, it has no system messages
    "system": "user",
    "developer": "user",
    "user": "user",
    "assistant": "assistant",
}
SYSTEM_ROLES = {"system", "developer"}

_CALCULATION = re.compile(r"\[([^\[\]]{1,1000}) = ([^\[\] ]{1,100})\]")  # as `Brackets` writes it


@dataclass(frozen=True)
class ServedModel:
    """The facts about a model that requests need; the network itself belongs to another thread.

    Attributes:
        name: what clients call it.
        tokenizer: the one it was trained with.
        context: the largest number of tokens of a prompt and its answer.
        conversational: whether it was trained on conversations; if not, it only continues text.
        sampling: the default sampling for requests that set none.
        system: the system message of conversations without one; None for none.
        adapter: the scheduler's name for its adapter; None for a model that has none of its own.
        created: when the server started, in seconds since the epoch.
    """

    name: str
    tokenizer: Tokenizer
    context: int
    conversational: bool
    sampling: Sampling
    system: str | None = None
    adapter: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def longest_text(self) -> int:
        """A number of characters that a prompt which fits cannot have more of.

        A calculation takes five, beside its own, for four special tokens.
        """
        longest = max(2, *map(len, self.tokenizer.ranks))
        return self.context * longest

    def chat_prompt(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Return the ids of a conversation, up to where the assistant begins to speak.

        Messages of one role in a row are joined by blank lines, and those of the system belong to
        the user's that follow, as in training. A calculation in an earlier answer's text, as this
        server writes it, is read as the model wrote it.

        Raises:
            ApiError: 400, if a message cannot be read, or all of them are too long.
        """
        if not self.conversational:
            raise invalid(
                f"{self.name} is a base model: it continues text and does not answer. Use "
                "/v1/completions, or fine-tune it on conversations (mlxchat sft).",
                "model",
                "base_model",
            )
        turns: list[tuple[Role, list[str]]] = []
        if self.system is not None and not any(
            message.role in SYSTEM_ROLES for message in messages
        ):
            turns.append(("user", [self.system]))
        for number, message in enumerate(messages):
            role, text = _read(message, f"messages[{number}]")
            if not turns or turns[-1][0] != role:
                turns.append((role, []))
            turns[-1][1].append(text)
        for place, end in (("first", turns[0]), ("last", turns[-1])):
            if end[0] != "user":
                raise invalid(
                    f"The {place} message must be the user's, not the assistant's.", "messages"
                )
        joined = [(role, "\n\n".join(texts)) for role, texts in turns]
        self._check_length(sum(len(text) for _, text in joined), "messages")
        said = [
            Message(role, text if role == "user" else _with_calculations(text))
            for role, text in joined
        ]
        ids = self.tokenizer.render_for_completion(Conversation(tuple(said)))
        return self._fitting(ids, "messages")

    def text_prompt(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Return the ids of a text, which follows ``<|bos|>``, or ids as they are.

        Raises:
            ApiError: 400, if it is too long, or ids are not the model's.
        """
        if isinstance(prompt, str):
            self._check_length(len(prompt), "prompt")
            ids = [self.tokenizer.bos, *self.tokenizer.encode(prompt)]
        else:
            ids = list(prompt)
            if unknown := [token for token in ids if token >= self.tokenizer.vocab_size]:
                raise invalid(
                    f"{unknown[0]} is not a token of the model, which has "
                    f"{self.tokenizer.vocab_size}.",
                    "prompt",
                    "invalid_value",
                )
        return self._fitting(ids, "prompt")

    def bias(self, given: Mapping[str, float]) -> dict[int, float]:
        """Return what is added to the logits of tokens, by their ids.

        Raises:
            ApiError: 400, if a key is no token of the model.
        """
        for token in given:
            if not (token.isascii() and token.isdigit() and len(token) < 10) or (
                int(token) >= self.tokenizer.vocab_size
            ):
                raise invalid(
                    f"Invalid key in 'logit_bias': {token[:50]!r} is not a token of the model, "
                    f"which has {self.tokenizer.vocab_size}.",
                    "logit_bias",
                    "invalid_value",
                )
        return {int(token): value for token, value in given.items()}

    def _check_length(self, characters: int, param: str) -> None:
        """Refuse what is too long by far before its calculations are done and it is encoded."""
        if characters > self.longest_text:
            raise self._too_long(f"{characters} characters", param)

    def _fitting(self, ids: Sequence[int], param: str) -> tuple[int, ...]:
        if len(ids) >= self.context:
            raise self._too_long(f"{len(ids)} tokens", param)
        return tuple(ids)

    def _too_long(self, length: str, param: str) -> ApiError:
        return invalid(
            f"This model's maximum context length is {self.context} tokens. However, your {param} "
            f"resulted in {length}. Please reduce the length of the {param}.",
            param,
            "context_length_exceeded",
        )


def _with_calculations(answer: str) -> str | tuple[Part, ...]:
    """Return an answer's text in parts, where it has calculations in brackets that are right."""
    parts, end = [], 0
    for written in _CALCULATION.finditer(answer):
        expression, result = written.groups()
        if calculate(expression) == result:
            parts += [Part("text", answer[end : written.start()])] if written.start() > end else []
            parts += [Part("python", expression), Part("python_output", result)]
            end = written.end()
    if not parts:
        return answer
    return (*parts, Part("text", answer[end:])) if end < len(answer) else tuple(parts)


def _read(message: ChatMessage, place: str) -> tuple[Role, str]:
    """Return a message's role, as the model hears it, and its text."""
    role = ROLES.get(message.role)
    if role is None:
        raise invalid(
            f"Invalid value for '{place}.role': {message.role[:50]!r}. Supported roles: "
            f"{', '.join(ROLES)}.",
            f"{place}.role",
            "invalid_value",
        )
    for name in ("tool_calls", "function_call"):
        if getattr(message, name):
            raise unsupported(f"{place}.{name}")
    if isinstance(message.content, str):
        return role, message.content
    if message.content is None:
        raise invalid(
            f"Missing required parameter: '{place}.content'.",
            f"{place}.content",
            "missing_required_parameter",
        )
    texts = []
    for number, part in enumerate(message.content):
        where = f"{place}.content[{number}]"
        if part.type != "text":
            raise unsupported(f"{where}.type", "it only reads text")
        if part.text is None:
            raise invalid(
                f"Missing required parameter: '{where}.text'.",
                f"{where}.text",
                "missing_required_parameter",
            )
        texts.append(part.text)
    return role, "\n\n".join(texts)
