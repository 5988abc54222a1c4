"""The running server: the model's thread, the HTTP thread, and how both stop.

uvicorn runs in its own thread, so that the thread that starts the server still receives Ctrl-C, and
a notebook is not blocked.
"""

import asyncio
import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from mlxchat.config.serve import ServeConfig
from mlxchat.errors import BackendError, ConfigError, DeviceError, reason_of
from mlxchat.model.gpt import GPT
from mlxchat.serve.requests import Stats
from mlxchat.serve.scheduler import Scheduler

try:
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from mlxchat.serve.app import Service
    from mlxchat.serve.metrics import WriteLine
    from mlxchat.serve.prompts import ServedModel
except ImportError as error:
    raise BackendError(
        f"The server's libraries are not installed ({error}).",
        'Install the extra serve: pip install "mlxchat[serve]"',
    ) from error

__all__ = [  # import them from here
    "FINISHING_SECONDS",
    "ServedModel",
    "Server",
    "bind",
    "start",
    "thread_died",
]

EVERYWHERE = {"0.0.0.0", "::"}  # all addresses of the machine
FINISHING_SECONDS = 30.0  # in which answers that have begun are finished when the server ends
LEAVE = 5.0  # seconds more to send them
HEAD_SECONDS = 30.0  # for a client to send the head of a request
REST_SECONDS = 30.0  # for it to send the rest of a body whose request has been answered
UNREAD_SECONDS = 60.0  # for it to read what it was sent
WATCH_SECONDS = 1.0  # between looks whether the model's thread is alive
IDLE_SECONDS = 65  # that a connection stays open between requests, more than proxies wait
MORE_CONNECTIONS = 100  # than there can be answers


def bind(config: ServeConfig) -> socket.socket:
    """Return a socket that is bound to the address and port of the settings.

    Raises:
        ConfigError: the address is not this machine's, or another program has the port.
    """
    try:
        found = socket.getaddrinfo(
            config.host.strip("[]"), config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(config, error) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _cannot_listen(config, error) from error
    return bound


def _cannot_listen(config: ServeConfig, error: OSError) -> ConfigError:
    return ConfigError(
        f"Cannot listen at `host={config.host}` and `port={config.port}`: {reason_of(error)}.",
        "Use another `port`; 0 picks a free one.",
    )


class Server:
    """A server that runs until it is closed, or its context ends.

    Args:
        scheduler: the thread that owns the models; closed with the server.
        models: the facts about each model that requests need; the first one answers requests that
            name none.
        config: the settings.
        bound: the socket to listen on, from `bind`.
        log: called with one line per request.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        models: Sequence[ServedModel],
        config: ServeConfig,
        bound: socket.socket,
        log: WriteLine,
    ) -> None:
        self._scheduler = scheduler
        self._service = Service(models, self._scheduler, config, log)
        self._host, self._port = config.host.strip("[]"), bound.getsockname()[1]
        self._bound = bound
        self._uvicorn = uvicorn.Server(_uvicorn_config(self._service, config))
        logging.getLogger("uvicorn.error").addHandler(_FAILURES)
        self._thread = threading.Thread(
            target=self._uvicorn.run, args=([bound],), name="http", daemon=True
        )
        self._thread.start()
        while not self._uvicorn.started and self._thread.is_alive():
            time.sleep(0.005)

    @property
    def url(self) -> str:
        """The address for clients of OpenAI's API (``base_url``), on this machine."""
        host = "localhost" if self._host in EVERYWHERE else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/v1"

    @property
    def page_url(self) -> str:
        """The address of the page to talk to the model, on this machine."""
        return self.url.removesuffix("v1")

    @property
    def running(self) -> bool:
        """Whether it answers requests."""
        return self._thread.is_alive() and self._scheduler.alive and not self._service.closing

    @property
    def stats(self) -> Stats:
        """The answers that wait and that are being generated, and the tokens so far."""
        return self._scheduler.stats()

    def wait(self) -> None:
        """Wait until the server ends, or Ctrl-C.

        Raises:
            DeviceError: the model's thread has died.
        """
        while self._thread.is_alive():
            self._thread.join(WATCH_SECONDS)
            if not self._scheduler.alive and not self._service.closing:
                raise thread_died()

    def close(self, seconds: float = FINISHING_SECONDS) -> None:
        """End the server; closing it again does nothing.

        Args:
            seconds: in which answers that have begun are finished. Those that wait are refused.
        """
        self._service.closing = True
        self._uvicorn.config.timeout_graceful_shutdown = math.ceil(seconds + LEAVE)
        self._uvicorn.should_exit = True
        self._scheduler.close(seconds)
        self._thread.join(LEAVE)
        self._uvicorn.force_exit = True
        self._thread.join(LEAVE)
        self._bound.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(0.0 if kind else FINISHING_SECONDS)


def thread_died() -> DeviceError:
    """Return the error of a server whose model has failed for good."""
    return DeviceError("The model's thread has stopped.", "Restart the server.")


def start(
    network: GPT,
    models: Sequence[ServedModel],
    config: ServeConfig,
    bound: socket.socket,
    log: WriteLine = lambda line: None,
    adapted: Mapping[str, GPT] | None = None,
) -> Server:
    """Return a running server.

    Args:
        network: prepared for inference; from now on it belongs to the server.
        models: what requests need to know of it and of the others, the first one first.
        config: the settings.
        bound: the socket to listen on, from `bind`.
        log: gets a line for each request, and the traceback of each failure of the model.
        adapted: the network with each of several adapters, by name.
    """
    scheduler = Scheduler(
        network,
        adapted,
        slots=config.slots,
        queue=config.queue,
        cache_bytes=config.cache_bytes,
        log=log,
    )
    return Server(scheduler, models, config, bound, log)


def _uvicorn_config(service: Service, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        service.app,
        http=_PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=config.slots + config.queue + MORE_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
    )


class _PatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with a time limit on each thing that a client has to do.

    The limits apply to sending a request's head, to sending the rest of a body after the request
    has already been answered, and to reading the answer. uvicorn only limits the pause between an
    answer and the next byte, and unread data keeps a closed connection alive.
    """

    _owed: asyncio.TimerHandle | None = None  # for the head of a request, or the rest of a body
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pauses as soon as a client does not read
        self._expect(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        owed_rest = self._owes_rest()
        super().data_received(data)
        if self._owes_rest():
            return  # timed since the answer
        idle = self.conn.their_state is h11.IDLE
        if owed_rest or not idle:
            self._stop_waiting()
        if idle and self._owed is None:
            self._expect(HEAD_SECONDS)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._owes_rest():
            self._expect(REST_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def _owes_rest(self) -> bool:
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _expect(self, seconds: float) -> None:
        if not self.transport.is_closing():
            self._owed = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._owed is not None:
            self._owed.cancel()
            self._owed = None


class _Failures(logging.Handler):
    """Passes failures of the application to `sys.excepthook`; uvicorn would only log them."""

    def emit(self, record: logging.LogRecord) -> None:
        failed: Any = record.exc_info
        if failed and isinstance(failed[1], Exception):
            sys.excepthook(*failed)


_FAILURES = _Failures()
