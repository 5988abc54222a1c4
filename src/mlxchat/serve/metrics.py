"""Records the server's work: a log line for each request, and counts for Prometheus."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxchat.serve.requests import Stats
from mlxchat.telemetry.clock import Timer

WriteLine = Callable[[str], None]
CLIENT_LEFT = 499  # the status of a request whose client went before it was answered, as nginx has


@dataclass
class Work:
    """The work that a request took, for its log line.

    Attributes:
        prompt_tokens, completion_tokens: read and written.
        first: seconds from the request to its first token; None if there was none.
        note: why an answer stopped early after it had begun; empty if it did not.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    first: float | None = None
    note: str = ""

    def __str__(self) -> str:
        told = []
        if self.completion_tokens or self.prompt_tokens:
            told.append(f"{self.prompt_tokens}+{self.completion_tokens} tokens")
        if self.first is not None:
            told.append(f"first after {self.first:.3f}s")
        return ", ".join([*told, *([self.note] if self.note else [])])


class Recorder:
    """Counts an application's requests and logs a line for each, without the prompts' text.

    Args:
        app: the application.
        paths: the paths to count separately; all others are counted as one.
        log: where lines go.
        timer: returns seconds since any origin.
    """

    def __init__(
        self, app: ASGIApp, paths: frozenset[str], log: WriteLine, timer: Timer = time.monotonic
    ) -> None:
        self._app, self._paths, self._log, self._timer = app, paths, log, timer
        self._requests: Counter[tuple[str, int]] = Counter()
        self._first_seconds, self._first_count = 0.0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = self._timer(), CLIENT_LEFT
        work = scope["work"] = Work()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._note(scope, status, self._timer() - start, work)

    def _note(self, scope: Scope, status: int, seconds: float, work: Work) -> None:
        path = scope["path"]
        self._requests[path if path in self._paths else "other", status] += 1
        if work.first is not None:
            self._first_seconds += work.first
            self._first_count += 1
        client = scope["client"][0] if scope.get("client") else "-"
        shown = path[:100].encode("unicode_escape").decode()
        line = f"{client} {scope['method']} {shown} {status} {seconds:.3f}s {work}"
        self._log(" ".join(line.split()))

    def exposition(self, stats: Stats) -> str:
        """Return the counts in the text format of Prometheus."""
        return "".join(f"{line}\n" for line in self._lines(stats))

    def _lines(self, stats: Stats) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Requests by path and status.")
        for (path, status), count in sorted(self._requests.items()):
            yield f'mlxchat_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from _head(
            "first_token_seconds", "summary", "Seconds from a request to its first token."
        )
        yield f"mlxchat_first_token_seconds_sum {self._first_seconds:.6f}"
        yield f"mlxchat_first_token_seconds_count {self._first_count}"
        for name, kind, purpose, value in (
            ("queued", "gauge", "Answers waiting for a slot.", stats.queued),
            ("running", "gauge", "Answers being generated.", stats.running),
            ("slots", "gauge", "Answers that can be generated in parallel.", stats.slots),
            ("prompt_cache_bytes", "gauge", "Memory used by the prompt cache.", stats.cache_bytes),
            ("generated_tokens_total", "counter", "Tokens generated.", stats.generated_tokens),
            ("prompt_tokens_total", "counter", "Tokens in prompts.", stats.prompt_tokens),
            (
                "cached_prompt_tokens_total",
                "counter",
                "Prompt tokens found in the cache.",
                stats.cached_tokens,
            ),
        ):
            yield from _head(name, kind, purpose)
            yield f"mlxchat_{name} {value}"


def _head(name: str, kind: str, purpose: str) -> Iterator[str]:
    yield f"# HELP mlxchat_{name} {purpose}"
    yield f"# TYPE mlxchat_{name} {kind}"
