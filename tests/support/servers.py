"""A server without a model: what it would say is scripted, token by token."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp

from mlxchat.config.inference import Sampling
from mlxchat.config.serve import ServeConfig
from mlxchat.serve.app import Service
from mlxchat.serve.prompts import ServedModel
from mlxchat.serve.requests import Busy, Closed, Deliver, Finished, Request, Token
from mlxchat.serve.scheduler import Stats
from mlxchat.serve.server import Server, bind
from mlxchat.tokenizer.bpe import Tokenizer

BYTES = Tokenizer.train([""], vocab_size=265)  # a token for each byte
ANSWER = "The cow says moo."


def tokens(*said: str) -> list[int]:
    """Ids of texts, byte by byte, and of special tokens by their names."""
    special = BYTES.special_tokens
    return [
        i for text in said for i in ([special[text]] if text in special else BYTES.encode(text))
    ]


@dataclass(eq=False)
class FakeTicket:
    request: Request
    deliver: Deliver
    script: list[int]
    cached_tokens: int = 0
    written: int = 0
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakeScheduler:
    """Has the interface of `mlxchat.serve.scheduler.Scheduler`; its script says what is generated.

    Attributes:
        go: while it is not set, no token comes.
        tickets: all that there were.
    """

    script: Callable[[Request], list[int]] = lambda request: tokens(ANSWER)
    slots: int = 4
    queue: int = 8
    alive: bool = True
    closed: bool = False
    failure: Exception | None = None
    go: threading.Event = field(default_factory=threading.Event)
    tickets: list[FakeTicket] = field(default_factory=list)
    _waiting: list[FakeTicket] = field(default_factory=list)
    _running: list[FakeTicket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.go.set()
        self._lock = threading.Lock()
        self._at_work = False

    def submit(self, request: Request, deliver: Deliver) -> FakeTicket:
        with self._lock:
            if self.closed:
                raise Closed("The server is closing.")
            if len(self._waiting) + len(self._running) >= self.queue + self.slots:
                raise Busy("The queue is full.", "Try again.")
            ticket = FakeTicket(request, deliver, self.script(request))
            self.tickets.append(ticket)
            self._waiting.append(ticket)
            if not self._at_work:
                self._at_work = True
                threading.Thread(target=self._run, daemon=True).start()
            return ticket

    def stats(self) -> Stats:
        generated = sum(ticket.written for ticket in self.tickets)
        return Stats(len(self._waiting), len(self._running), self.slots, generated, 7, 3, 1000)

    def close(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._lock:
            self.closed = True
            for ticket in self._waiting:
                ticket.deliver(Closed("The server is closing."))
            self._waiting = []
        while self.busy() and time.monotonic() < deadline:
            time.sleep(0.002)
        self.go.set()
        with self._lock:
            self.alive = False
            for ticket in self._running:
                ticket.deliver(Closed("The server is closing."))
            self._running = []

    def busy(self) -> int:
        with self._lock:
            return len(self._waiting) + len(self._running)

    def _run(self) -> None:
        while True:
            self.go.wait(0.005)
            with self._lock:
                self._forget_cancelled()
                while self._waiting and len(self._running) < self.slots:
                    self._running.append(self._waiting.pop(0))
                for ticket in list(self._running) if self.go.is_set() else ():
                    self._step(ticket)
                if not self._running:
                    self._at_work = False
                    return

    def _forget_cancelled(self) -> None:
        self._waiting = [ticket for ticket in self._waiting if not ticket.cancelled]
        self._running = [ticket for ticket in self._running if not ticket.cancelled]

    def _step(self, ticket: FakeTicket) -> None:
        request = ticket.request
        ticket.cached_tokens = len(request.ids) - 1
        if self.failure:
            self._running.remove(ticket)
            ticket.deliver(self.failure)
        elif ticket.written < min(len(ticket.script), request.max_tokens):
            ticket.deliver(self._token(ticket.script[ticket.written], request))
            ticket.written += 1
        else:
            self._running.remove(ticket)
            reason = "length" if ticket.written < len(ticket.script) else "stop"
            ticket.deliver(Finished(reason))

    def _token(self, token: int, request: Request) -> Token:
        if request.logprobs is None:
            return Token(token, False, None, ())
        others = [(token, -0.5), *((other, -2.0 - other) for other in range(20))]
        return Token(token, False, -0.5, tuple(others[: request.logprobs]))


def model(**changes: object) -> ServedModel:
    """The facts of a model whose context is 200 bytes."""
    known = {
        "name": "cow",
        "tokenizer": BYTES,
        "context": 200,
        "conversational": True,
        "sampling": Sampling(),
    }
    return ServedModel(**{**known, **changes})


@contextmanager
def serving(
    scheduler: FakeScheduler | None = None,
    served: ServedModel | None = None,
    log: Callable[[str], None] = lambda line: None,
    others: Sequence[ServedModel] = (),
    **settings: object,
) -> Iterator[Server]:
    """A running server on a free port."""
    config = ServeConfig(port=0, **settings)
    models = [served or model(), *others]
    server = Server(scheduler or FakeScheduler(), models, config, bind(config), log)
    try:
        yield server
    finally:
        server.close(0)


@dataclass
class Reply:
    """An answer of the application."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The chunks of a stream; the last line of it, and comments, are checked and left out."""
        *lines, end = self.body.decode().removesuffix("\n\n").split("\n\n")
        assert end == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines if line[0] != ":"]


def ask(
    app: ASGIApp, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> Reply:
    """Send a request to an application without a server; ``body`` is JSON, or bytes as they are."""
    given = {"host": "127.0.0.1:8000", "content-type": "application/json", **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in given.items() if v is not None],
        "client": ("127.0.0.1", 50_000),
    }
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    arriving = [{"type": "http.request", "body": content, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if not arriving:
            await asyncio.sleep(3600)
        return arriving.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    start, *pieces = sent
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], told, b"".join(piece["body"] for piece in pieces))


def service(
    scheduler: FakeScheduler | None = None,
    served: ServedModel | None = None,
    log: Callable[[str], None] = lambda line: None,
    others: Sequence[ServedModel] = (),
    **settings: object,
) -> Service:
    """The application of a server."""
    config = ServeConfig(**settings)
    return Service([served or model(), *others], scheduler or FakeScheduler(), config, log)
