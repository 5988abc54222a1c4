"""What is let in: each rule of `mlxchat.serve.security`, from the outside."""

import pytest
from support.servers import ask, service

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
KEY = "correct-horse"


def chat(headers: dict[str, str], **settings: object) -> object:
    return ask(service(**settings).app, "POST", "/v1/chat/completions", CHAT, headers)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "[::1]"]
)
def test_names_of_this_machine_are_let_in(host: str) -> None:
    assert chat({"host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "192.168.1.5",
        "",
        "localhost:8000, evil.example",
        None,
    ],
)
def test_a_foreign_host_is_refused(host: str | None) -> None:
    reply = chat({"host": host})
    assert reply.status == 403
    assert reply.error["code"] == "host_not_allowed"
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("host.docker.internal:8000", 200),
        ("Host.Docker.Internal", 200),
        ("model.example", 200),
        ("localhost:8000", 200),
        ("docker.internal", 403),
        ("a.model.example", 403),
        ("model.example.evil.example", 403),
    ],
)
def test_further_names_can_be_allowed(host: str, status: int) -> None:
    names = ["host.docker.internal", "Model.Example"]
    assert chat({"host": host}, allow_host=names).status == status
    assert chat({"host": host}, allow_host=names, host="0.0.0.0", insecure=True).status == status


def test_pages_of_an_allowed_name_are_the_servers_own() -> None:
    """A proxy with TLS may send on its own name, or the address that it asks."""
    for host in ("127.0.0.1:8000", "model.example"):
        for origin, status in (
            ("https://model.example", 200),
            ("https://model.example:8443", 200),
            ("https://evil.example", 403),
            ("https://model.example@evil.example", 403),
            ("https://model.example/x", 403),
            ("model.example", 403),
            ("null", 403),
        ):
            reply = chat({"host": host, "origin": origin}, allow_host=["model.example"])
            assert reply.status == status, (host, origin)
            assert "access-control-allow-origin" not in reply.headers


def test_on_other_addresses_names_are_refused_unless_there_is_a_key() -> None:
    everywhere = {"host": "0.0.0.0"}
    for host, status in (("192.168.1.5:8000", 200), ("[fe80::1]", 200), ("evil.example", 403)):
        assert chat({"host": host}, insecure=True, **everywhere).status == status
    headers = {"host": "model.example", "authorization": f"Bearer {KEY}"}
    assert chat(headers, api_key=KEY, **everywhere).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000"])
def test_a_foreign_origin_is_refused(origin: str) -> None:
    reply = chat({"origin": origin})
    assert reply.status == 403
    assert reply.error["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in reply.headers


def test_the_servers_own_page_is_let_in() -> None:
    reply = chat({"origin": "http://127.0.0.1:8000"})
    assert reply.status == 200
    assert "access-control-allow-origin" not in reply.headers


def test_an_origin_that_was_asked_for_may_read_answers_and_errors() -> None:
    own = "http://localhost:3000"
    settings = {"cors_origin": [own], "api_key": KEY}
    preflight = ask(
        service(**settings).app,
        "OPTIONS",
        "/v1/chat/completions",
        headers={"origin": own, "access-control-request-headers": "authorization, x-stainless-os"},
    )
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == own
    assert preflight.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    for key, status in ((KEY, 200), ("wrong", 401)):
        reply = chat({"origin": own, "authorization": f"Bearer {key}"}, **settings)
        assert reply.status == status
        assert reply.headers["access-control-allow-origin"] == own
        assert reply.headers["vary"] == "origin"
        assert "access-control-allow-credentials" not in reply.headers
    assert chat({"origin": "http://localhost:3001"}, **settings).status == 403
    assert chat({"origin": "https://any.example"}, cors_origin=["*"]).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_another_content_type_is_refused(kind: str | None) -> None:
    reply = chat({"content-type": kind})
    assert reply.status == 415
    assert reply.error["code"] == "unsupported_content_type"


def test_json_may_name_its_encoding() -> None:
    assert chat({"content-type": "Application/JSON; charset=utf-8"}).status == 200


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong-horse", f"Basic {KEY}", KEY, "Bearer", f"Bearer {KEY}x"]
)
def test_without_the_key_there_is_no_answer(header: str | None) -> None:
    reply = chat({"authorization": header}, api_key=KEY)
    assert reply.status == 401
    assert reply.error["code"] == "invalid_api_key"
    assert KEY not in reply.body.decode()


def test_the_key_opens_every_path_and_health_needs_none() -> None:
    app = service(api_key=KEY).app
    for path in ("/v1/models", "/metrics"):
        assert ask(app, "GET", path).status == 401
        assert ask(app, "GET", path, headers={"authorization": f"bearer {KEY}"}).status == 200
    assert ask(app, "GET", "/health").status == 200


@pytest.mark.parametrize("name", ["../../etc/passwd", "/root/model", "gpt-4", "", "cow/../cow"])
def test_no_request_chooses_another_model(name: str) -> None:
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "The"}),
    ):
        reply = ask(service().app, "POST", path, {**body, "model": name})
        assert reply.status == 404
        assert reply.error["code"] == "model_not_found"
        assert reply.error["param"] == "model"
    assert ask(service().app, "GET", f"/v1/models/{name}").status == 404


def test_a_body_that_is_too_large_is_refused() -> None:
    large = b" " * (2**20 + 1)
    for headers in ({"content-length": str(len(large))}, {}):
        reply = ask(service().app, "POST", "/v1/completions", large, headers)
        assert reply.status == 413
        assert reply.error["code"] == "request_too_large"


def test_the_log_has_a_line_for_each_request_and_no_text_of_it() -> None:
    lines: list[str] = []
    app = service(log=lines.append).app
    ask(app, "POST", "/v1/chat/completions", CHAT)
    ask(app, "GET", "/a\nb\x1b[31m")
    ask(app, "POST", "/v1/completions", {"prompt": "secret", "tools": ["secret"]})
    assert len(lines) == 3
    assert lines[0].startswith("127.0.0.1 POST /v1/chat/completions 200 0.")
    assert "6+17 tokens, first after" in lines[0]
    assert r"GET /a\nb\x1b[31m 404" in lines[1]
    assert not any("secret" in line or "hi" in line.split() for line in lines)
