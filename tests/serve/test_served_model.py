"""The server with a real model, though a tiny one that was never trained."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support import models
from support.servers import BYTES

import mlxchat
from mlxchat.config.inference import Sampling
from mlxchat.config.serve import ServeConfig
from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import generate
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.serve.server import ServedModel, Server, bind, start

CONTEXT = 256
GREETING = [{"role": "user", "content": "Who says moo?"}]


def network() -> GPT:
    config = GPTConfig.from_depth(1, vocab_size=BYTES.vocab_size, sequence_len=CONTEXT)
    made = GPT.new(config, seed=0)
    made.prepare_for_inference()
    return made


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    served = ServedModel("cow", BYTES, CONTEXT, conversational=True, sampling=Sampling())
    config = ServeConfig(port=0, slots=4, queue=200)
    with start(network(), [served], config, bind(config)) as server:
        yield server


def asked(server: Server, **body: object) -> dict[str, object]:
    parameters = {"messages": GREETING, "max_tokens": 20, **body}
    reply = httpx.post(f"{server.url}/chat/completions", json=parameters, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def texts(reply: dict[str, object]) -> list[str]:
    return [choice["message"]["content"] for choice in reply["choices"]]


def test_a_completion_is_what_the_model_generates(server: Server) -> None:
    ids = [BYTES.bos, *BYTES.encode("The cow")]
    stop = frozenset({BYTES.bos, BYTES.special("<|assistant_end|>")})
    model = network()
    own = list(generate(model, ids, KVCache(model.config), stop=stop, max_tokens=20))
    body = {"prompt": "The cow", "temperature": 0, "max_tokens": 20, "logprobs": 0}
    reply = httpx.post(f"{server.url}/completions", json=body, timeout=60).json()
    names = [BYTES.token_bytes(token).decode("utf-8", "backslashreplace") for token in own]
    assert reply["choices"][0]["logprobs"]["tokens"] == names


def test_a_seed_gives_the_same_alone_and_in_company(server: Server) -> None:
    together = texts(asked(server, n=4, seed=7, temperature=1))
    assert texts(asked(server, seed=9, temperature=1)) == together[2:3]
    assert len(set(together)) == 4


def test_a_second_turn_is_read_from_the_cache(server: Server) -> None:
    first = asked(server, temperature=0)
    said = {"role": "assistant", "content": texts(first)[0]}
    second = asked(server, messages=[*GREETING, said, *GREETING], temperature=0)
    details = second["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] >= first["usage"]["prompt_tokens"]


def test_the_settings_of_a_server_in_python(tmp_path: Path) -> None:
    """The system message is one of chats without one, the length that of chats and completions."""
    model = mlxchat.load(models.saved_in(tmp_path / "cow", models.network()))
    own, said = [{"role": "system", "content": "Moo."}, *GREETING], "Be brief."
    with model.serve(port=0, system=said, max_tokens=3, temperature=0) as server:
        bodies = [
            ("chat/completions", {"messages": GREETING}, len(f"{said}\n\n") + 17),
            ("chat/completions", {"messages": own}, len("Moo.\n\n") + 17),
            ("completions", {"prompt": "Hi"}, 3),
        ]
        for path, body, length in bodies:
            usage = httpx.post(f"{server.url}/{path}", json=body, timeout=60).json()["usage"]
            assert usage["prompt_tokens"] == length
            assert usage["completion_tokens"] <= 3


def leave(server: Server, number: int) -> None:
    """Ask, and hang up: at once, after the head of the answer, or after some of it."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        body = b'{"messages": [{"role": "user", "content": "Moo?"}], "stream": true}'
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}"
        )
        client.sendall(f"{head}\r\ncontent-type: application/json\r\n\r\n".encode() + body)
        for _ in range(number % 4):
            client.recv(300)


def hang_up(server: Server, clients: int, requests: int) -> None:
    """Let some clients ask one after another; half of their requests are left, at every phase."""

    def use(client: int) -> None:
        for number in range(client, requests, clients):
            if number % 2:
                leave(server, number // 2)
            else:
                asked(server, seed=number)

    threads = [threading.Thread(target=use, args=[client]) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    for _ in range(1000):
        stats = server.stats
        if not stats.queued + stats.running:
            return
        time.sleep(0.01)
    raise AssertionError(stats)


def test_clients_that_leave_free_their_slots(server: Server) -> None:
    lone = texts(asked(server, seed=1))
    hang_up(server, clients=6, requests=12)
    assert texts(asked(server, seed=1)) == lone


@pytest.mark.slow
def test_five_hundred_requests_of_which_half_are_left(server: Server) -> None:
    lone = texts(asked(server, seed=1))
    hang_up(server, clients=12, requests=500)
    assert texts(asked(server, seed=1)) == lone
