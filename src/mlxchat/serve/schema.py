"""The requests of OpenAI's API that this server supports; `reply_schema` has the answers.

A null field counts as left out. Unknown fields, and fields of OpenAI's that this server does not
support, are refused by name unless the answer does not depend on them. ``top_k``, ``min_p`` and
``repetition_penalty`` are not OpenAI's; its clients send them as extra fields.

pydantic describes every fault it finds, and a body of a megabyte has room for 340,000. So lists are
checked up to their first fault, and oversized dictionaries are refused unread.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from mlxchat.config.validate import spell_fault
from mlxchat.json_text import as_type, is_unicode
from mlxchat.serve.errors import ApiError, invalid, unknown, unsupported

MOST_MESSAGES = 1000
MOST_CHOICES = 32
MOST_PROMPTS = 256
MOST_STOPS, LONGEST_STOP = 16, 256  # of OpenAI 4
MOST_BIASED = 1024
MOST_CHAT_LOGPROBS, MOST_LOGPROBS = 20, 5  # as OpenAI's

WITHOUT_EFFECT = {  # accepted, since no answer depends on it here
    "metadata",
    "moderation",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
}
NOT_SUPPORTED: dict[str, tuple[object, ...]] = {  # and the values that ask for nothing
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}

StopText = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


def _of_few(bias: object) -> object:
    if isinstance(bias, dict) and len(bias) > MOST_BIASED:
        raise PydanticCustomError("too_long", f"it should have at most {MOST_BIASED} tokens")
    return bias


Bias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_of_few)]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(frozen=True)

    include_usage: bool = False


class Parameters(BaseModel):
    """The parameters that chats and completions share."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    model: str | None = None
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Bias = {}
    max_tokens: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, lt=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS, fail_fast=True)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=-1)
    top_p: float | None = Field(None, gt=0, le=1)

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of `mlxchat.config.inference.Sampling` that the request has.

        For ``top_k``, 0 and -1 mean all tokens, as in other servers.
        """
        names = ("temperature", "top_p", "min_p", "repetition_penalty")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return given if self.top_k is None else {**given, "top_k": max(0, self.top_k) or None}


class TextPart(BaseModel):
    """A part of a message; only texts can be read."""

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """A message of a conversation. A name, if there is one, has no effect."""

    role: str
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class ChatRequest(Parameters):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(
        min_length=1, max_length=MOST_MESSAGES
    )
    logprobs: bool = False
    max_completion_tokens: int | None = Field(None, ge=1)
    top_logprobs: int = Field(0, ge=0, le=MOST_CHAT_LOGPROBS)


class CompletionRequest(Parameters):
    """The body of ``POST /v1/completions``."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    )
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, each a text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


Body = TypeVar("Body", bound=Parameters)
_ADAPTERS: dict[type[Parameters], TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (ChatRequest, CompletionRequest)
}


def parsed(body: object, kind: type[Body]) -> Body:
    """Return a request's body, once it is checked.

    Args:
        body: a value from JSON.
        kind: `ChatRequest` or `CompletionRequest`.

    Raises:
        ApiError: 400, naming the first parameter that is wrong, missing or not supported.
    """
    if not isinstance(body, dict):
        raise invalid("The body must be a JSON object.")
    if not all(map(is_unicode, body)):
        raise _not_unicode()
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        _check_name(name, value, kind)
    fields = {name: value for name, value in given.items() if name in kind.model_fields}
    try:
        wanted: Body = as_type(fields, _ADAPTERS[kind])
    except ValidationError as error:
        raise _fault(error, fields) from error
    if wanted.stream_options and not wanted.stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true.", "stream_options")
    return wanted


def _not_unicode() -> ApiError:
    """Return the error of half of a surrogate pair, which no answer could repeat."""
    return invalid("The body contains text that is not valid Unicode.")


def _check_name(name: str, value: object, kind: type[Parameters]) -> None:
    if name in kind.model_fields or name in WITHOUT_EFFECT:
        return
    if name not in NOT_SUPPORTED:
        raise unknown(name, [*kind.model_fields, *NOT_SUPPORTED])
    if value not in NOT_SUPPORTED[name]:
        raise unsupported(name)


def _fault(error: ValidationError, given: Mapping[str, object]) -> Exception:
    """Return what pydantic finds wrong first, with the place as in JavaScript.

    Where a value may have several types, a fault within one of them says more than that it is none
    of the others.
    """
    first, *_ = faults = error.errors(include_url=False, include_input=False)
    within = (
        each for each in faults if each["loc"][:1] == first["loc"][:1] and not _mistyped(each)
    )
    fault = next(within, first)
    if not fault["loc"]:  # half of a surrogate pair: no JSON that pydantic reads
        return _not_unicode()
    name = str(fault["loc"][0])
    if fault["type"] == "missing" and name not in given:
        return invalid(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    place = _place(fault["loc"])
    form = _FORMS.get(place.rpartition(".")[2], "") if _mistyped(fault) else ""
    said = f"it should be {form}" if form else spell_fault(fault)
    return invalid(f"Invalid value for '{place}': {said}.", place, "invalid_value")


def _mistyped(fault: ErrorDetails) -> bool:
    return fault["type"].endswith("_type")


_FORMS = {  # of what may have several types
    "content": "a text, or a list of parts",
    "prompt": "a text, a list of texts, a list of token ids, or a list of such lists",
    "stop": f"a text, or a list of at most {MOST_STOPS}",
}


def _place(loc: tuple[int | str, ...]) -> str:
    """Write a place, without the names that pydantic gives to the types of a union."""
    place = str(loc[0])
    for step in loc[1:]:
        if isinstance(step, int):
            place += f"[{step}]"
        elif step in TextPart.model_fields or step in ChatMessage.model_fields:
            place += f".{step}"
    return place[:100]
