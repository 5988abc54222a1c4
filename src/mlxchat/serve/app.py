"""The routes of the server: OpenAI's chats, completions and models, health, metrics, the page.

This is a Starlette application. FastAPI would add validation of bodies, which
`mlxchat.serve.schema` does with OpenAI's error format, and documentation pages that load scripts
from elsewhere.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from importlib import resources
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mlxchat.config.inference import Sampling
from mlxchat.config.serve import COMPLETION_TOKENS, ServeConfig
from mlxchat.engine.tools import ToolUse
from mlxchat.errors import DataError
from mlxchat.serve.answering import Answering, Inbox
from mlxchat.serve.errors import ApiError, invalid
from mlxchat.serve.metrics import CLIENT_LEFT, Recorder, WriteLine
from mlxchat.serve.prompts import ServedModel
from mlxchat.serve.replies import ChatReplies, CompletionReplies, Replies
from mlxchat.serve.reply_schema import ModelCard, ModelList
from mlxchat.serve.requests import Request
from mlxchat.serve.scheduler import Scheduler
from mlxchat.serve.schema import ChatRequest, CompletionRequest, Parameters, parsed
from mlxchat.serve.security import Guard
from mlxchat.serve.streaming import ClientLeftError, EventStream, json_body, while_connected
from mlxchat.serve.text import Transcript
from mlxchat.tokenizer.bpe import ASSISTANT_END

HAS = "The server provides /v1/chat/completions, /v1/completions and /v1/models."
SLOW_READING = 60.0  # seconds that a client may take to read, beside those of the answer
PAGE = {  # the files of the page, by their paths
    "/": ("index.html", "text/html"),
    "/chat.css": ("chat.css", "text/css"),
    "/chat.js": ("chat.js", "text/javascript"),
}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Service:
    """The server's routes as an ASGI application.

    Args:
        models: the facts about each model that requests need. Requests that name no model get the
            first one.
        scheduler: the thread that owns them.
        config: the server's settings.
        log: called with one line per request.

    Attributes:
        app: the application.
        closing: whether requests are refused because the server is shutting down.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        scheduler: Scheduler,
        config: ServeConfig,
        log: WriteLine,
    ) -> None:
        self.closing = False
        self._served = {model.name: model for model in models}
        self._scheduler, self._config = scheduler, config
        self._latest_inbox: Inbox | None = None
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._named_model, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            *(Route(path, _page, methods=["GET"]) for path in PAGE),
        ]
        handlers = {
            ApiError: _api_error,
            HTTPException: _http_error,
            DataError: _data_error,
            ClientLeftError: _client_left,
            ClientDisconnect: _client_left,
            Exception: _unforeseen,
        }
        inner: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
        self._recorder = Recorder(
            Guard(inner, config), frozenset(route.path for route in routes), log
        )
        self.app: ASGIApp = self._recorder

    # ---- answers ---------------------------------------------------------------------------------

    async def _chat(self, http: HttpRequest) -> Response:
        wanted = parsed(await json_body(http), ChatRequest)
        model = self._named(wanted.model)
        if wanted.max_completion_tokens and wanted.max_tokens:
            raise invalid(
                "'max_tokens' is the old name of 'max_completion_tokens'. Give only one of them.",
                "max_tokens",
            )
        if wanted.top_logprobs and not wanted.logprobs:
            raise invalid("'top_logprobs' requires 'logprobs' to be true.", "top_logprobs")
        prompt = await asyncio.to_thread(model.chat_prompt, wanted.messages)
        return await self._answer(
            http,
            wanted,
            model,
            [prompt],
            ChatReplies(model.name, wanted.logprobs),
            most=wanted.max_completion_tokens or wanted.max_tokens or self._config.max_tokens,
            logprobs=wanted.top_logprobs if wanted.logprobs else None,
            calculator=True,
        )

    async def _complete(self, http: HttpRequest) -> Response:
        wanted = parsed(await json_body(http), CompletionRequest)
        model = self._named(wanted.model)
        texts: Sequence[str | Sequence[int]] = wanted.prompts
        prompts = await asyncio.to_thread(lambda: [model.text_prompt(text) for text in texts])
        return await self._answer(
            http,
            wanted,
            model,
            prompts,
            CompletionReplies(model.name, wanted.logprobs),
            most=wanted.max_tokens or self._completion_tokens,
            logprobs=wanted.logprobs,
            calculator=False,
        )

    async def _answer(
        self,
        http: HttpRequest,
        wanted: Parameters,
        model: ServedModel,
        prompts: Sequence[tuple[int, ...]],
        replies: Replies,
        *,
        most: int,
        logprobs: int | None,
        calculator: bool,
    ) -> Response:
        """Have prompts answered, and return the response with the answers.

        Args:
            http: the request.
            wanted: its body.
            model: the one that answers.
            prompts: ids, each of which fits.
            replies: writes the answers.
            most: the largest number of tokens in an answer; the context may be a smaller one.
            logprobs: the number of alternatives to deliver with each token; None for none at all.
            calculator: whether the model may use it.
        """
        if self.closing:
            raise ApiError(503, "The server is shutting down.", code="server_closing")
        if (count := len(prompts) * wanted.n) > self._config.queue:
            raise invalid(
                f"The request asks for {count} answers, but at most {self._config.queue} can be "
                "queued.",
                "n" if wanted.n > 1 else "prompt",
            )
        requests = self._requests(wanted, model, prompts, most, logprobs, calculator)
        tokenizer = model.tokenizer
        answering = Answering(
            self._scheduler,
            self._inbox,
            requests,
            [Transcript(tokenizer, wanted.stops, calculator=calculator) for _ in requests],
            per_prompt=wanted.n,
            seconds=self._config.timeout,
            work=http.scope["work"],
        )
        seconds = self._config.timeout + SLOW_READING
        if wanted.stream:
            return EventStream(
                answering,
                replies,
                count=len(requests),
                include_usage=wanted.include_usage,
                seconds=seconds,
            )
        with closing(answering):
            answers = await while_connected(http.receive, answering.collected(), seconds)
            body = replies.whole(answers, answering.usage)
        return Response(body.model_dump_json(), media_type="application/json")

    def _requests(
        self,
        wanted: Parameters,
        model: ServedModel,
        prompts: Sequence[tuple[int, ...]],
        most: int,
        logprobs: int | None,
        calculator: bool,
    ) -> list[Request]:
        """Return what to ask of the scheduler: ``wanted.n`` answers to each prompt, in order."""
        tokenizer = model.tokenizer
        sampling = Sampling(**{**dict(model.sampling), **wanted.sampling})
        bias = model.bias(wanted.logit_bias)
        seed = self._seed(wanted.seed)
        return [
            Request(
                ids=ids,
                max_tokens=min(most, model.context - len(ids)),
                sampling=sampling,
                seed=(seed + choice) % 2**64,
                stop=frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)}),
                presence_penalty=wanted.presence_penalty,
                frequency_penalty=wanted.frequency_penalty,
                logit_bias=bias,
                logprobs=logprobs,
                tools=partial(ToolUse, tokenizer) if calculator else None,
                adapter=model.adapter,
            )
            for ids in prompts
            for choice in range(wanted.n)
        ]

    @property
    def _completion_tokens(self) -> int:
        given = "max_tokens" in self._config.model_fields_set
        return self._config.max_tokens if given else COMPLETION_TOKENS

    @property
    def _inbox(self) -> Inbox:
        """The inbox of the event loop that this runs in."""
        loop = asyncio.get_running_loop()
        if self._latest_inbox is None or self._latest_inbox.loop is not loop:
            self._latest_inbox = Inbox(loop)
        return self._latest_inbox

    def _seed(self, given: int | None) -> int:
        """Return the seed of a request's first answer; its others have those that follow."""
        if given is None:
            given = self._config.seed
        return random.getrandbits(63) if given is None else given % 2**64

    def _named(self, name: str | None) -> ServedModel:
        """Return the model of a name, or the first one; refuse other names."""
        if name is None:
            return next(iter(self._served.values()))
        if name not in self._served:
            raise ApiError(
                404,
                f"The model {name[:100]!r} does not exist. This server has "
                f"{', '.join(map(repr, self._served))}.",
                "model",
                "model_not_found",
            )
        return self._served[name]

    # ---- about the server ------------------------------------------------------------------------

    async def _models(self, http: HttpRequest) -> Response:
        return _json(ModelList(data=[_card(model) for model in self._served.values()]))

    async def _named_model(self, http: HttpRequest) -> Response:
        return _json(_card(self._named(http.path_params["name"])))

    async def _health(self, http: HttpRequest) -> Response:
        if not self._scheduler.alive:
            return JSONResponse({"status": "the model's thread has died"}, 503)
        if self.closing:
            return JSONResponse({"status": "closing"}, 503)
        return JSONResponse({"status": "ok"})

    async def _metrics(self, http: HttpRequest) -> Response:
        text = self._recorder.exposition(self._scheduler.stats())
        return PlainTextResponse(text, headers={"content-type": "text/plain; version=0.0.4"})


def _card(model: ServedModel) -> ModelCard:
    return ModelCard(
        id=model.name,
        created=model.created,
        context_length=model.context,
        chat=model.conversational,
    )


async def _page(http: HttpRequest) -> Response:
    name, kind = PAGE[http.url.path]
    file = resources.files("mlxchat.serve") / "page" / name
    return Response(file.read_bytes(), media_type=kind, headers=PAGE_HEADERS)


def _json(body: ModelCard | ModelList) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")


async def _api_error(http: HttpRequest, error: Exception) -> Response:
    return cast(ApiError, error).response()


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    """Return Starlette's own errors, for paths and methods that there are not."""
    found = cast(HTTPException, error)
    status = found.status_code
    said = {
        404: f"There is no {http.url.path[:100]!r} here. {HAS}",
        405: "This method is not allowed here.",
    }
    return ApiError(status, said.get(status, "The request is invalid.")).response(found.headers)


async def _data_error(http: HttpRequest, error: Exception) -> Response:
    return invalid(cast(DataError, error).problem).response()


async def _client_left(http: HttpRequest, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _unforeseen(http: HttpRequest, error: Exception) -> Response:
    return ApiError(500, "This is a bug in mlxchat. See the server's log for details.").response()
