import fcntl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hub_server import COMMIT, Fault, HubServer, Request

from mlxchat.data.hub import ATTEMPTS, Cancelled, Hub, RemoteFile
from mlxchat.errors import MlxchatError

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


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "data" / "shard_00000.parquet"


def fetch(hub: Hub, destination: Path) -> list[int]:
    reports: list[int] = []
    hub.download(hub.stat(REPO, "shard_00000.parquet"), destination, reports.append)
    return reports


def storage_requests(server: HubServer) -> list[Request]:
    return [request for request in server.requests if request.path.startswith("/storage")]


def only(destination: Path) -> bool:
    return list(destination.parent.iterdir()) == [destination]


def test_stat_tells_size_checksum_and_commit(hub: Hub) -> None:
    remote = hub.stat(REPO, "shard_00000.parquet")
    assert remote.size == len(CONTENT)
    assert remote.sha256 is not None and len(remote.sha256) == 64
    assert remote.commit == COMMIT


def test_download_is_whole_and_reported(hub: Hub, destination: Path) -> None:
    reports = fetch(hub, destination)
    assert destination.read_bytes() == CONTENT
    assert only(destination)
    assert reports == sorted(reports) and reports[-1] == len(CONTENT)


def test_requests_name_the_program_and_carry_the_token(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    fetch(hub, destination)
    for request in server.requests:
        assert request.headers["user-agent"].startswith("mlxchat/")
        assert request.headers["authorization"] == "Bearer secret"
        assert request.headers["accept-encoding"] == "identity"


def test_another_host_does_not_see_the_token(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    with HubServer(server.files) as storage:
        server.storage = storage.endpoint
        fetch(hub, destination)
        assert destination.read_bytes() == CONTENT
        assert storage.requests
        assert all("authorization" not in request.headers for request in storage.requests)


def test_a_cut_transfer_goes_on_where_it_stopped(
    hub: Hub, server: HubServer, destination: Path, pauses: list[float]
) -> None:
    server.faults = [Fault(cut=100_000), Fault(cut=50_000)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT
    ranges = [request.headers.get("range") for request in storage_requests(server)]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert pauses == [1.0, 2.0]


def test_a_later_process_goes_on_where_the_first_stopped(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.faults = [Fault(cut=100_000), Fault(status=500, times=ATTEMPTS)]
    with pytest.raises(MlxchatError):
        fetch(hub, destination)
    assert hub.partial(destination).stat().st_size == 100_000
    assert not destination.exists()
    server.faults = []
    fetch(hub, destination)
    assert storage_requests(server)[-1].headers["range"] == "bytes=100000-"
    assert destination.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_again(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.faults = [Fault(cut=100_000), Fault(ignore_range=True)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT[:-1] + b"x", CONTENT + b"x", b"x" * 1000])
def test_a_partial_file_of_something_else_is_started_over(
    hub: Hub, destination: Path, left: bytes
) -> None:
    destination.parent.mkdir()
    hub.partial(destination).write_bytes(left)
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


def test_a_complete_partial_file_is_not_fetched_again(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    destination.parent.mkdir()
    hub.partial(destination).write_bytes(CONTENT)
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT
    assert storage_requests(server) == []


def test_a_range_that_cannot_be_had_starts_over(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    destination.parent.mkdir()
    hub.partial(destination).write_bytes(CONTENT[:10])
    server.faults = [Fault(status=416)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


def test_a_corrupt_file_is_an_error_and_is_not_kept(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.faults = [Fault(spoil=True)]
    with pytest.raises(MlxchatError, match="corrupt"):
        fetch(hub, destination)
    assert list(destination.parent.iterdir()) == []


def test_without_a_checksum_the_size_decides(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.faults = [Fault(method="HEAD", omit_checksum=True, times=2)]
    assert hub.stat(REPO, "shard_00000.parquet").sha256 is None
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


def test_a_file_longer_than_announced_is_an_error(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    remote = RemoteFile(server.endpoint + ADDRESS, 1000, None, None)
    with pytest.raises(MlxchatError, match="corrupt"):
        hub.download(remote, destination)
    assert list(destination.parent.iterdir()) == []


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_failures_are_retried(
    hub: Hub, server: HubServer, destination: Path, status: int
) -> None:
    server.faults = [Fault(method="HEAD", status=status), Fault(status=status)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"Retry-After": "86400"}, 300.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1.0),
    ],
)
def test_the_server_says_how_long_to_wait(
    hub: Hub,
    server: HubServer,
    pauses: list[float],
    headers: dict[str, str],
    pause: float,
) -> None:
    server.faults = [Fault(method="HEAD", status=429, headers=headers)]
    hub.stat(REPO, "shard_00000.parquet")
    assert pauses == [pause]


def test_attempts_are_bounded_and_the_error_names_the_file(
    hub: Hub, server: HubServer, pauses: list[float]
) -> None:
    server.faults = [Fault(method="HEAD", status=503, times=100)]
    with pytest.raises(MlxchatError, match=r"shard_00000\.parquet.*503") as caught:
        hub.stat(REPO, "shard_00000.parquet")
    assert server.count("HEAD", "shard_00000.parquet") == ATTEMPTS
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert "network" in caught.value.remedy


def test_every_wait_is_told_once(hub: Hub, server: HubServer, destination: Path) -> None:
    notes: list[str] = []
    server.faults = [
        Fault(cut=100_000),
        Fault(status=429, headers={"Retry-After": "120"}),
        Fault(method="HEAD", status=503),
    ]
    fetch(replace(hub, note=notes.append), destination)
    told = [note.split(" to get shard_00000.parquet: ") for note in notes]
    waits = ["Trying again in 1 s", "Trying again in 1 s", "Trying again in 120 s"]
    assert [wait for wait, _ in told] == waits
    for (_, reason), said in zip(told, ("503", "100000", "429 Too Many Requests."), strict=True):
        assert said in reason


def test_a_redirect_to_a_host_that_cannot_be(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.storage = "http://a..b"
    with pytest.raises(MlxchatError, match=f"{server.endpoint}.*host whose name"):
        fetch(hub, destination)


@pytest.mark.parametrize(
    ("status", "said"), [(404, "does not exist"), (401, "not open"), (418, "418")]
)
def test_final_answers_are_not_retried(
    hub: Hub, server: HubServer, destination: Path, status: int, said: str
) -> None:
    remote = hub.stat(REPO, "shard_00000.parquet")
    server.faults = [Fault(status=status), Fault(method="HEAD", status=status)]
    with pytest.raises(MlxchatError, match=said):
        hub.download(remote, destination)
    with pytest.raises(MlxchatError, match=said):
        hub.stat(REPO, "shard_00000.parquet")
    assert list(destination.parent.iterdir()) == []


def test_no_network(pauses: list[float]) -> None:
    with HubServer({}) as closed:
        endpoint = closed.endpoint
    with (
        httpx.Client(trust_env=False) as client,
        pytest.raises(MlxchatError, match=f"{endpoint}.*cannot be had"),
    ):
        Hub(endpoint, client, sleep=pauses.append).stat(REPO, "shard_00000.parquet")
    assert len(pauses) == ATTEMPTS - 1


def test_a_destination_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(MlxchatError, match="cannot be stored"):
        fetch(hub, tmp_path / "data" / "shard_00000.parquet")


def test_waits_for_another_process_and_takes_what_it_made(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    destination.parent.mkdir()
    partial = hub.partial(destination)
    other = partial.open("a+b")
    fcntl.flock(other, fcntl.LOCK_EX)

    def finish(_: float) -> None:
        if not other.closed:
            other.write(CONTENT)
            other.flush()
            partial.rename(destination)
            other.close()

    waiting = Hub(server.endpoint, hub.client, sleep=finish)
    fetch(waiting, destination)
    assert storage_requests(server) == []
    assert destination.read_bytes() == CONTENT
    assert only(destination)


def test_takes_over_where_another_process_gave_up(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    destination.parent.mkdir()
    other = hub.partial(destination).open("a+b")
    fcntl.flock(other, fcntl.LOCK_EX)
    other.write(CONTENT[:5000])
    waiting = Hub(server.endpoint, hub.client, sleep=lambda _: other.close())
    fetch(waiting, destination)
    assert storage_requests(server)[-1].headers["range"] == "bytes=5000-"
    assert destination.read_bytes() == CONTENT


def test_stop_ends_a_transfer_and_keeps_what_came(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    stop = threading.Event()
    remote = hub.stat(REPO, "shard_00000.parquet")
    with pytest.raises(Cancelled):
        hub.until(stop).download(remote, destination, lambda done: stop.set())
    assert 0 < hub.partial(destination).stat().st_size < len(CONTENT)
    with pytest.raises(Cancelled):
        hub.until(stop).stat(REPO, "shard_00000.parquet")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for variable in ("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
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
def test_an_endpoint_that_is_none(environment: pytest.MonkeyPatch, endpoint: str) -> None:
    environment.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(MlxchatError) as caught:
        from_environment()
    assert f"The endpoint {endpoint.rstrip('/')!r} is not" in caught.value.problem


@pytest.mark.parametrize("endpoint", ["http://bücher.example", "http://[::1]:8000", "http://a_b."])
def test_unusual_endpoints(environment: pytest.MonkeyPatch, endpoint: str) -> None:
    assert from_environment(endpoint).endpoint == endpoint


@pytest.mark.parametrize("proxy", ["gopher://127.0.0.1:1", "http://[::1"])
def test_a_proxy_that_cannot_be_used(environment: pytest.MonkeyPatch, proxy: str) -> None:
    environment.setenv("ALL_PROXY", proxy)
    with pytest.raises(MlxchatError, match="proxy"):
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


def test_offline_asks_nobody(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MlxchatError, match="HF_HUB_OFFLINE"):
        from_environment().stat(REPO, "shard_00000.parquet")
