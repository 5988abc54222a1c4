"""Reads request bodies and streams answers, and handles clients that disconnect."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import closing, suppress
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlxchat.json_text import parse_json
from mlxchat.serve.answering import Answering
from mlxchat.serve.errors import ApiError, invalid
from mlxchat.serve.replies import Replies

LARGEST_BODY = 2**20  # of a body; the longest conversation of a model takes a tenth
BODY_SECONDS = 30.0
DONE = b"data: [DONE]\n\n"

_Result = TypeVar("_Result")


class ClientLeftError(Exception):
    """The client has closed its connection."""


async def json_body(request: HttpRequest) -> object:
    """Return the body of a request.

    Raises:
        ApiError: it is too large (413), too slow (408) or not JSON (400).
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 12 or int(announced) > LARGEST_BODY):
        raise _too_large()
    try:
        body = await asyncio.wait_for(_read(request), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} seconds.") from error
    try:
        return parse_json(body)
    except ValueError as error:
        raise invalid(f"The body of the request is not valid JSON: {error}.") from error


async def _read(request: HttpRequest) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_BODY:
            raise _too_large()
    return bytes(body)


def _too_large() -> ApiError:
    return ApiError(
        413, f"The body has more than {LARGEST_BODY:,} bytes.", code="request_too_large"
    )


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, _Result], seconds: float
) -> _Result:
    """Return the result of some work, which is cancelled as soon as the client leaves.

    Args:
        receive: of ASGI, of a request whose body has been read.
        work: what to do.
        seconds: after which the client counts as gone: it does not read what is sent.

    Raises:
        ClientLeftError: it left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    tasks = (working, leaving)
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """The answers to a request as server-sent events, as openai-python reads them.

    Args:
        answering: the answers, which are cancelled when the stream ends for any reason.
        replies: writes the chunks.
        count: the number of answers.
        include_usage: whether the last chunk has the usage, which is then null in all others.
        seconds: the maximum duration of a stream whose client reads slowly.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        answering: Answering,
        replies: Replies,
        *,
        count: int,
        include_usage: bool,
        seconds: float,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._answering, self._replies, self._count = answering, replies, count
        self._without = None if include_usage else {"usage"}
        self._include_usage = include_usage
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, as ASGI calls it."""
        with closing(self._answering), suppress(ClientLeftError):
            await while_connected(receive, self._send(send), self._seconds)

    async def _send(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        async for event in self._events():
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        for chunk in self._replies.opening(self._count):
            yield self._event(chunk)
        try:
            async for delivery in self._answering.deliveries():
                if delivery is None:
                    yield b": keep-alive\n\n"
                    continue
                for chunk in self._replies.chunks(delivery):
                    yield self._event(chunk)
        except ApiError as error:
            yield b"event: error\ndata: " + json.dumps(error.body).encode() + b"\n\n"
            return
        if self._include_usage:
            yield self._event(self._replies.closing(self._answering.usage))
        yield DONE

    def _event(self, chunk: BaseModel) -> bytes:
        return f"data: {chunk.model_dump_json(exclude=self._without)}\n\n".encode()
