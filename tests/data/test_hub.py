import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.hub_server import COMMIT, Fault, HubServer

from mlxchat.data.download import download
from mlxchat.data.hub import ATTEMPTS, Hub, UnreachableError
from mlxchat.errors import MlxchatError
from mlxchat.home import Home

REPO = "someone/texts"
ADDRESS = f"/datasets/{REPO}/resolve/main/shard_00000.parquet"
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    origin = tmp_path / "origin"
    origin.write_bytes(CONTENT)
    with HubServer({ADDRESS: origin}) as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def hub(server: HubServer, pauses: list[float]) -> Iterator[Hub]:
    with httpx.Client(trust_env=False, timeout=5) as client:
        yield Hub(server.endpoint, client, token="secret", sleep=pauses.append)


def test_stat_returns_size_checksum_and_commit(hub: Hub) -> None:
    remote = hub.stat(REPO, "shard_00000.parquet")
    assert remote.size == len(CONTENT)
    assert remote.checksum is not None and len(remote.checksum) == 64
    assert remote.commit == COMMIT


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=12;t=55'}, 1.0),
        ({"Retry-After": "86400"}, 300.0),
        ({"Retry-After": "0"}, 1.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:20 GMT"}, 20.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:27:00 GMT"}, 1.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:20 GMT", "Date": "today"}, 1.0),
        ({"Retry-After": "soon"}, 1.0),
    ],
)
def test_the_server_decides_how_long_to_wait(headers: dict[str, str], pause: float) -> None:
    date = {"Date": "Wed, 21 Oct 2026 07:28:00 GMT"}
    answers = iter([(429, date | headers), (200, {"Content-Length": "5"})])
    pauses: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        status, headers = next(answers)
        return httpx.Response(status, headers=headers)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        Hub("http://hub.example", client, sleep=pauses.append).stat(REPO, "file")
    assert pauses == [pause]


def test_only_the_hubs_own_etag_is_a_checksum() -> None:
    tag, git = "a" * 64, "b" * 40
    for headers, checksum in (
        ({"ETag": f'"{tag}"'}, None),  # of a storage: whatever it hashes
        ({"ETag": f'W/"{git}"', "X-Repo-Commit": COMMIT}, git),
        ({"ETag": f'"{git}"', "X-Linked-Etag": f'"{tag}"', "X-Repo-Commit": COMMIT}, tag),
        ({"X-Linked-Etag": '"5-of-something"'}, None),
    ):
        answer = httpx.Response(200, headers={"Content-Length": "5", **headers})
        transport = httpx.MockTransport(lambda request, answer=answer: answer)
        with httpx.Client(transport=transport) as client:
            assert Hub("http://hub.example", client).stat(REPO, "file").checksum == checksum


def test_a_redirected_head_does_not_carry_the_token(hub: Hub, server: HubServer) -> None:
    with HubServer(server.files) as other:
        server.faults = [Fault(method="HEAD", elsewhere=other.endpoint)]
        assert hub.stat(REPO, "shard_00000.parquet").size == len(CONTENT)
        assert other.count("HEAD", "shard_00000.parquet") == 1
        assert all("authorization" not in request.headers for request in other.requests)


def test_attempts_are_bounded_and_the_error_names_the_file(
    hub: Hub, server: HubServer, pauses: list[float]
) -> None:
    server.faults = [Fault(method="HEAD", status=503, times=100)]
    with pytest.raises(UnreachableError, match=r"shard_00000\.parquet.*503") as caught:
        hub.stat(REPO, "shard_00000.parquet")
    assert server.count("HEAD", "shard_00000.parquet") == ATTEMPTS
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert "network" in caught.value.remedy


def test_without_a_network_it_retries_then_names_the_endpoint(pauses: list[float]) -> None:
    with HubServer({}) as closed:
        endpoint = closed.endpoint
    with (
        httpx.Client(trust_env=False) as client,
        pytest.raises(MlxchatError, match=rf"{endpoint}.*cannot be had: [^\[]"),
    ):
        Hub(endpoint, client, sleep=pauses.append).stat(REPO, "shard_00000.parquet")
    assert len(pauses) == ATTEMPTS - 1


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for variable in ("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "MLXCHAT_HOME"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return monkeypatch


def from_environment(endpoint: str | None = None) -> Hub:
    hub = Hub.from_environment(endpoint)
    hub.close()
    return hub


def test_the_endpoint_comes_from_argument_then_environment(
    environment: pytest.MonkeyPatch,
) -> None:
    assert from_environment().endpoint == "https://huggingface.co"
    environment.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert from_environment().endpoint == "https://mirror.example"
    assert from_environment("http://127.0.0.1:8000").endpoint == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "endpoint",
    [
        "mirror.example",
        "ftp://mirror.example",
        "http://",
        "http://host:port",
        "http://127.0.0.1:99999",
        "http://a..b",
        f"http://{'a' * 64}.example",
        "http://xn--a.example",
        "http://[::1",
        "http://a\udcff.example",
    ],
)
def test_a_malformed_endpoint_is_refused(environment: pytest.MonkeyPatch, endpoint: str) -> None:
    environment.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(MlxchatError) as caught:
        from_environment()
    assert f"The endpoint {endpoint.rstrip('/')!r} is not" in caught.value.problem


@pytest.mark.parametrize("endpoint", ["http://bücher.example", "http://[::1]:8000", "http://a_b."])
def test_unusual_endpoints_are_accepted(environment: pytest.MonkeyPatch, endpoint: str) -> None:
    assert from_environment(endpoint).endpoint == endpoint


@pytest.mark.parametrize("proxy", ["gopher://127.0.0.1:1", "http://[::1"])
def test_an_unusable_proxy_is_an_error(environment: pytest.MonkeyPatch, proxy: str) -> None:
    environment.setenv("ALL_PROXY", proxy)
    with pytest.raises(MlxchatError, match=r"proxy .* of ALL_PROXY"):
        from_environment()


SECRET = "hf_abcdefgh"


@pytest.mark.parametrize(
    ("endpoint", "query", "login"),
    [
        (f"https://hub.example/m?token={SECRET}", f"token={SECRET}", f"Bearer {SECRET}"),
        (f"https://me:{SECRET}@hub.example/m/", "", "Basic bWU6aGZfYWJjZGVmZ2g="),
        (f"https://{SECRET}@hub.example/m", "", "Basic aGZfYWJjZGVmZ2g6"),
    ],
)
def test_what_logs_in_is_sent_to_the_endpoint_only_and_never_shown(
    endpoint: str, query: str, login: str, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[httpx.Request] = []
    busy = iter([True])
    digest = hashlib.sha256(CONTENT).hexdigest()
    linked = {"Location": "https://storage.example/x", "X-Linked-Size": str(len(CONTENT))}

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if request.url.host == "storage.example":
            return httpx.Response(200, content=iter([CONTENT]))
        if next(busy, False):
            return httpx.Response(503)
        if "missing" in request.url.path:
            return httpx.Response(404)
        return httpx.Response(302, headers={**linked, "X-Linked-Etag": digest})

    environment.setenv("HF_ENDPOINT", endpoint)
    environment.setenv("HF_TOKEN", SECRET)
    told: list[str] = []
    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        hub = replace(from_environment(), client=client, sleep=lambda _: None, note=told.append)
        remote = hub.stat(REPO, "shard")
        download(hub, remote, tmp_path / "shard")
        with pytest.raises(
            MlxchatError, match=r"https://hub\.example/m/.* does not exist"
        ) as caught:
            hub.stat(REPO, "missing")
    assert hub.endpoint == "https://hub.example/m"
    assert SECRET not in "".join((repr(hub), repr(remote), str(caught.value), *told))
    for request in asked:
        own = request.url.host == "hub.example"
        assert request.url.query.decode() == (query if own else "")
        assert request.headers.get("authorization") == (login if own else None)


@pytest.mark.parametrize(
    "endpoint",
    [
        f"https//me:{SECRET}@host",
        f"me:{SECRET}@host",
        f"http://me:{SECRET}@host:port",
        f"http://host:port?token={SECRET}",
        f"http://me:a/{SECRET}@host",
        f"http://me:a?{SECRET}@host",
    ],
)
def test_a_malformed_endpoint_is_shown_without_credentials(
    endpoint: str, environment: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MlxchatError, match="The endpoint") as caught:
        from_environment(endpoint)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("proxy", ["gopher://me:SECRET@127.0.0.1:1", "http://me:SECRET@[::1"])
def test_the_password_of_a_proxy_is_not_shown(environment: pytest.MonkeyPatch, proxy: str) -> None:
    environment.setenv("HTTPS_PROXY", proxy.replace("SECRET", SECRET))
    with pytest.raises(MlxchatError, match="HTTPS_PROXY") as caught:
        from_environment()
    assert SECRET not in str(caught.value)


def test_the_users_folders_may_begin_with_a_tilde(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("HOME", str(tmp_path))
    environment.setenv("HF_HOME", "~/hub")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "token").write_text("stored\n")
    assert from_environment().token == "stored"
    environment.delenv("HF_HOME")
    for folder in (tmp_path / "own" / "huggingface", tmp_path / ".cache" / "huggingface"):
        folder.mkdir(parents=True)
        (folder / "token").write_text(str(folder))
    for cache, folder in (("~/own", "own"), ("own", ".cache"), ("", ".cache")):
        environment.setenv("XDG_CACHE_HOME", cache)
        assert from_environment().token == str(tmp_path / folder / "huggingface")
        assert Home.from_environment().root == tmp_path / folder / "mlxchat"
    environment.setenv("MLXCHAT_HOME", "~/models")
    assert Home.from_environment().root == tmp_path / "models"
    environment.setenv("MLXCHAT_HOME", "models")
    assert Home.from_environment().root == Path.cwd() / "models"


def test_a_token_that_cannot_be_read_is_named(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "token").touch()
    environment.setattr(Path, "read_text", refuse)
    with pytest.raises(MlxchatError, match=f"{tmp_path / 'token'} cannot be read: Permission"):
        from_environment()


def test_the_token_comes_from_environment_then_file(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert from_environment().token is None
    (tmp_path / "token").write_text("stored\n")
    assert from_environment().token == "stored"
    (tmp_path / "elsewhere").write_text("other")
    environment.setenv("HF_TOKEN_PATH", str(tmp_path / "elsewhere"))
    assert from_environment().token == "other"
    environment.setenv("HF_TOKEN", "given")
    assert from_environment().token == "given"
    environment.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert from_environment().token is None


@pytest.mark.parametrize("token", ["hf_sécret", "hf_secret\nX-More: 1"])
def test_a_token_that_cannot_be_sent_is_not_shown(
    environment: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    (tmp_path / "token").write_text(token, encoding="latin-1")
    with pytest.raises(MlxchatError, match=str(tmp_path / "token")):
        from_environment()
    environment.setenv("HF_TOKEN", token)
    with pytest.raises(MlxchatError, match="HF_TOKEN") as caught:
        from_environment()
    assert "cret" not in caught.value.problem + caught.value.remedy


def test_offline_no_request_is_made(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MlxchatError, match="HF_HUB_OFFLINE"):
        from_environment().stat(REPO, "shard_00000.parquet")
