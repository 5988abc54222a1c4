"""Clients that leave, are slow or send nonsense, and the end of the server."""

import errno
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from support.servers import ANSWER, FakeScheduler, serving, tokens

from mlxchat.config.serve import ServeConfig
from mlxchat.errors import ConfigError, DeviceError
from mlxchat.serve import answering, server, streaming
from mlxchat.serve.server import Server, bind

HI = {"messages": [{"role": "user", "content": "hi"}]}
LONG = tokens("moo " * 30)


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def connection(to: Server) -> socket.socket:
    host, port = to.url.removeprefix("http://").removesuffix("/v1").split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def post(body: object, **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {
        "host": "127.0.0.1",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + content


@contextmanager
def that_may_be_closed() -> Iterator[None]:
    """Let a server end a connection that has bytes left; one that hangs is still an error.

    What fails then depends on the moment, and `shutdown` fails with ENOTCONN, which Python does
    not count among its ConnectionErrors.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
            raise


def answered(to: Server, sent: bytes) -> tuple[int, bytes]:
    """The status and the rest of what comes until the server closes or nothing more comes."""
    received = b""
    with connection(to) as client, that_may_be_closed():
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        while piece := client.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


def text_of(to: Server) -> str:
    import httpx

    reply = httpx.post(f"{to.url}/chat/completions", json=HI, timeout=10)
    assert reply.status_code == 200
    return reply.json()["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeScheduler, Server]]:
    """A server for all tests, since one takes 0.2 seconds to end."""
    scheduler = FakeScheduler()
    with serving(scheduler) as server:
        yield scheduler, server


@pytest.fixture
def scheduler(shared: tuple[FakeScheduler, Server]) -> Iterator[FakeScheduler]:
    """Its scheduler, as it was at the beginning; all slots are free after each test."""
    scheduler, _ = shared
    scheduler.tickets.clear()
    yield scheduler
    scheduler.script = lambda request: tokens(ANSWER)
    scheduler.go.set()
    until(lambda: scheduler.busy() == 0)


@pytest.fixture
def running(scheduler: FakeScheduler, shared: tuple[FakeScheduler, Server]) -> Server:
    return shared[1]


# ---- clients that leave --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_frees_its_slots(
    stream: bool, n: int, scheduler: FakeScheduler, running: Server
) -> None:
    scheduler.go.clear()
    for phase in ("queued", "writing"):
        client = connection(running)
        client.sendall(post({**HI, "stream": stream, "n": n}))
        until(lambda: scheduler.busy() == n)
        if phase == "writing":
            scheduler.script = lambda request: LONG
            scheduler.go.set()
            until(lambda: scheduler.stats().generated_tokens > 0)
            scheduler.go.clear()
        client.close()
        until(lambda: all(ticket.cancelled for ticket in scheduler.tickets))
        until(lambda: scheduler.busy() == 0)
        scheduler.tickets.clear()
    scheduler.script = lambda request: tokens(ANSWER)
    scheduler.go.set()
    assert text_of(running) == ANSWER


def test_a_client_that_leaves_within_its_body_costs_nothing(
    scheduler: FakeScheduler, running: Server
) -> None:
    for cut in (10, 100, 150):
        with connection(running) as client:
            client.sendall(post(HI)[:cut])
    assert text_of(running) == ANSWER
    assert len(scheduler.tickets) == 1


def test_a_long_wait_has_comments(
    scheduler: FakeScheduler, running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "KEEP_ALIVE", 0.01)
    scheduler.go.clear()
    with connection(running) as client:
        client.sendall(post({**HI, "stream": True}, connection="close"))
        received = b""
        while b": keep-alive\n\n" not in received:
            received += client.recv(65536)
        scheduler.go.set()
        while piece := client.recv(65536):
            received += piece
    assert b"data: [DONE]\n\n" in received


def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = FakeScheduler()
    monkeypatch.setattr("mlxchat.serve.app.SLOW_READING", 0.05)
    scheduler.go.clear()
    with serving(scheduler, timeout=0.05) as running, connection(running) as client:
        client.sendall(post({**HI, "stream": True}))
        until(lambda: scheduler.busy() == 1)
        until(lambda: all(ticket.cancelled for ticket in scheduler.tickets))


def test_what_a_client_does_not_read_keeps_no_connection(
    scheduler: FakeScheduler, running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "UNREAD_SECONDS", 0.1)
    scheduler.script = lambda request: tokens("moo " * 40)
    many = {**HI, "n": 4, "logprobs": True, "top_logprobs": 20, "max_tokens": 160}
    connections = running._uvicorn.server_state.connections
    for stream in (False, True):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", int(running.url.split(":")[2].removesuffix("/v1"))))
            client.sendall(post({**many, "stream": stream}) * 10)
            until(lambda: len(scheduler.tickets) > 0)
            until(lambda: not connections, seconds=60)
            until(lambda: scheduler.busy() == 0)
            scheduler.tickets.clear()
    assert text_of(running)


# ---- clients that are slow -----------------------------------------------------------------------


def test_a_slow_body_is_refused(running: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BODY_SECONDS", 0.02)
    with connection(running) as client:
        client.sendall(post(HI)[:-5])
        assert b" 408 " in client.recv(65536).partition(b"\r\n")[0]


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/comp"])
def test_a_connection_without_a_request_is_closed(
    sent: bytes, running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.02)
    with connection(running) as client:
        client.sendall(sent)
        assert client.recv(65536) == b""
    with connection(running) as client:  # after a whole request, too
        client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        until(lambda: b'"ok"' in client.recv(65536))
        client.sendall(b"POST /v1/chat/comp")
        assert client.recv(65536) == b""


@pytest.mark.parametrize("head", ["GET /health", "POST /v1/nothing", "POST /v1/completions"])
def test_a_body_that_nobody_reads_is_timed(
    head: str, running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REST_SECONDS", 0.1)
    with connection(running) as client:
        sent = f"{head} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n"
        client.sendall(sent.encode())
        assert client.recv(65536)
        with that_may_be_closed():
            client.sendall(b"a")  # which ends uvicorn's own timer
            while client.recv(65536):
                pass


def test_a_connection_goes_on_after_a_body_that_nobody_reads(
    running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REST_SECONDS", 0.1)
    head = b"GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\n"
    with connection(running) as client:
        client.sendall(head + b"a")
        until(lambda: b'"ok"' in client.recv(65536))
        client.sendall(b"bc")
        time.sleep(0.2)
        client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        until(lambda: b'"ok"' in client.recv(65536))


# ---- nonsense ------------------------------------------------------------------------------------

SEEDS = [post(HI), post({"prompt": "a", "stream": True, "stop": ["a", "b"]})]
NESTED = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "n": 2}


def nonsense(number: int) -> bytes:
    """A request that something is wrong with: its bytes, its values, its sizes."""
    draw = random.Random(number)
    kind = number % 5
    if kind == 0:  # bytes that changed
        sent = bytearray(SEEDS[number % 2])
        for _ in range(draw.randint(1, 8)):
            sent[draw.randrange(len(sent))] = draw.randrange(256)
        return bytes(sent)
    if kind == 1:  # a body that changed
        content = bytearray(json.dumps(NESTED).encode())
        for _ in range(draw.randint(1, 5)):
            content[draw.randrange(len(content))] = draw.choice(b'{}[]",:\\0\x00\xffe-')
        return post(bytes(content))
    if kind == 2:  # values of other types
        values = [None, True, -1, 1e400, 2**70, "x" * 300, [], {}, [[1]], {"a": {}}, "\ud800"]
        names = ["messages", "n", "stop", "seed", "logit_bias", "top_k", "model", "stream", "x"]
        names.append("\ud800")
        wrong = {draw.choice(names): draw.choice(values) for _ in range(3)}
        return post({**NESTED, **wrong})
    if kind == 3:  # sizes that are not so
        length = draw.choice(["-1", "0", "7", "1e9", "99999999999", "0x10", ""])
        return post(HI, content_length=length)
    header = draw.choice(["x" * 70_000, "a\x00b", "\x7f", "é"])
    return post(HI, **{draw.choice(["x_long", "authorization", "host"]): header})


def statuses(to: Server, count: int) -> set[int]:
    return {answered(to, nonsense(number))[0] for number in range(count)}


def test_nonsense_is_refused_and_the_server_answers_on(
    running: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    told = statuses(running, 50)
    assert {status // 100 for status in told} <= {0, 2, 4}  # 0: the body never came
    assert 400 in told
    assert text_of(running) == ANSWER
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_thousand_requests_of_nonsense(
    scheduler: FakeScheduler, running: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    assert {status // 100 for status in statuses(running, 1500)} <= {0, 2, 4}
    assert text_of(running) == ANSWER
    until(lambda: scheduler.busy() == 0)
    assert "Traceback" not in "".join(capfd.readouterr())


# ---- the end -------------------------------------------------------------------------------------


def test_the_end_finishes_what_has_begun_and_takes_nothing_new() -> None:
    scheduler = FakeScheduler()
    scheduler.go.clear()
    with serving(scheduler) as running:
        texts: list[str] = []
        asking = threading.Thread(target=lambda: texts.append(text_of(running)))
        asking.start()
        until(lambda: running.stats.running == 1)
        ending = threading.Thread(target=running.close, args=[10])
        ending.start()
        until(lambda: not running.running)
        scheduler.go.set()
        for thread in (asking, ending):
            thread.join(5)
            assert not thread.is_alive()
        assert texts == [ANSWER]
        with pytest.raises(OSError):
            connection(running)
        running.close()


def test_the_end_does_not_wait_longer_than_it_is_told() -> None:
    scheduler = FakeScheduler()
    scheduler.go.clear()
    with serving(scheduler) as running, connection(running) as client:
        client.sendall(post({**HI, "stream": True}))
        until(lambda: running.stats.running == 1)
        start = time.monotonic()
        running.close(0.05)
        assert time.monotonic() - start < 10
        received = b""
        while piece := client.recv(65536):
            received += piece
    assert b"event: error" in received
    assert b"server_closing" in received


def test_waiting_ends_with_the_server_or_the_models_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "WATCH_SECONDS", 0.01)
    scheduler = FakeScheduler()
    with serving(scheduler) as running:
        ending = threading.Timer(0.05, setattr, (scheduler, "alive", False))
        ending.start()
        with pytest.raises(DeviceError, match="thread has stopped"):
            running.wait()
        scheduler.alive = True
        threading.Timer(0.05, running.close, (0,)).start()
        running.wait()
        assert not running.running


def test_a_port_that_is_taken_is_an_error() -> None:
    with closing(bind(ServeConfig(port=0))) as taken:
        taken.listen()
        with pytest.raises(ConfigError, match=r"Cannot listen at (.|\n)*already in use"):
            bind(ServeConfig(port=taken.getsockname()[1]))
    with pytest.raises(ConfigError, match="Cannot listen"):
        bind(ServeConfig(host="no.such.host.invalid", insecure=True))


def test_ipv6() -> None:
    try:
        with serving(host="::1") as running:
            assert running.url.startswith("http://[::1]:")
            assert text_of(running) == ANSWER
    except ConfigError:
        pytest.skip("this machine has no IPv6")
