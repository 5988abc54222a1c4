"""The answers of the server in OpenAI's form, as pydantic models."""

from typing import Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length"]


class Calculation(BaseModel):
    """A use of the calculator. The result is None for an expression that has none."""

    expression: str
    result: str | None = None


class PromptDetails(BaseModel):
    """The number of the prompt's tokens that were in the prompt cache."""

    cached_tokens: int = 0


class TokenUsage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptDetails = PromptDetails()


class TopLogprob(BaseModel):
    """An alternative token. ``bytes`` is None for a special token."""

    token: str
    bytes: list[int] | None
    logprob: float


class TokenLogprob(TopLogprob):
    """A generated token, and the most likely tokens in its place."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(BaseModel):
    """The tokens of an answer, or of a piece of it."""

    content: list[TokenLogprob]


class CompletionLogprobs(BaseModel):
    """The tokens of a completion, or of a piece of it, and where in its text they begin."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class ReplyMessage(BaseModel):
    """An answer. ``calculations`` are not OpenAI's; they are in the text too: ``[48/2 = 24.0]``."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    calculations: list[Calculation] | None = Field(None, exclude_if=lambda value: value is None)


class Delta(BaseModel):
    """A piece of an answer."""

    role: Literal["assistant"] | None = Field(None, exclude_if=lambda value: value is None)
    content: str | None = Field(None, exclude_if=lambda value: value is None)
    calculations: list[Calculation] | None = Field(None, exclude_if=lambda value: value is None)


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChunkChoice(BaseModel):
    """A piece of one of the answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionChoice(BaseModel):
    """One of the completions, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class _Reply(BaseModel):
    """The fields of all answers and pieces of answers."""

    id: str
    created: int
    model: str


class ChatCompletion(_Reply):
    """The answer to a `ChatRequest`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: TokenUsage


class ChatChunk(_Reply):
    """A piece of the answer to a `ChatRequest`; the usage is null but in the last one."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: TokenUsage | None = None


class Completion(_Reply):
    """The answer to a `CompletionRequest`, or a piece of it."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: TokenUsage | None = None


class ModelCard(BaseModel):
    """The model. What follows ``owned_by`` is not OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mlxchat"
    context_length: int  # in tokens
    chat: bool  # whether it answers; a base model only continues text


class ModelList(BaseModel):
    """The models that the server has."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
