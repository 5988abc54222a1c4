import errno
import fcntl
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.hub_server import Fault, HubServer, Request

from mlxchat.data import download as module
from mlxchat.data.download import MISMATCHES, download, partial
from mlxchat.data.fetch import pin
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
    download(hub, hub.stat(REPO, "shard_00000.parquet"), destination, reports.append)
    return reports


def storage_requests(server: HubServer) -> list[Request]:
    return [request for request in server.requests if request.path.startswith("/storage")]


def only(destination: Path) -> bool:
    return list(destination.parent.iterdir()) == [destination]


def test_a_download_is_complete_and_reports_its_progress(hub: Hub, destination: Path) -> None:
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


def test_a_cut_transfer_resumes_where_it_stopped(
    hub: Hub, server: HubServer, destination: Path, pauses: list[float]
) -> None:
    server.faults = [Fault(cut=100_000), Fault(cut=50_000)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT
    ranges = [request.headers.get("range") for request in storage_requests(server)]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert pauses == [1.0, 1.0]  # each went on


def test_a_later_process_resumes_where_the_first_stopped(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.faults = [Fault(cut=100_000), Fault(status=500, times=ATTEMPTS)]
    with pytest.raises(MlxchatError):
        fetch(hub, destination)
    assert partial(destination).stat().st_size == 100_000
    assert not destination.exists()
    server.faults = []
    fetch(hub, destination)
    assert storage_requests(server)[-1].headers["range"] == "bytes=100000-"
    assert destination.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_file_again(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.faults = [Fault(cut=100_000), Fault(ignore_range=True)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT[:-1] + b"x", CONTENT + b"x", b"x" * 1000])
def test_a_partial_file_of_another_file_is_discarded(
    hub: Hub, destination: Path, left: bytes
) -> None:
    destination.parent.mkdir()
    partial(destination).write_bytes(left)
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


def test_a_complete_partial_file_is_not_downloaded_again(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    destination.parent.mkdir()
    partial(destination).write_bytes(CONTENT)
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT
    assert storage_requests(server) == []


def test_a_refused_range_starts_over(hub: Hub, server: HubServer, destination: Path) -> None:
    destination.parent.mkdir()
    partial(destination).write_bytes(CONTENT[:10])
    server.faults = [Fault(status=416)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


def test_a_corrupt_file_is_an_error_and_is_not_kept(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.faults = [Fault(spoil=1000, times=MISMATCHES)]
    with pytest.raises(MlxchatError, match="corrupt"):
        fetch(hub, destination)
    assert list(destination.parent.iterdir()) == []


def test_corrupt_bytes_are_downloaded_again(hub: Hub, server: HubServer, destination: Path) -> None:
    server.faults = [Fault(spoil=len(CONTENT) - 1), Fault(cut=1000), Fault(spoil=0)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT
    assert only(destination)


def test_a_file_that_changes_between_two_parts_is_not_mixed(
    hub: Hub, server: HubServer, destination: Path, tmp_path: Path
) -> None:
    later = tmp_path / "later"
    later.write_bytes(CONTENT[::-1])
    server.faults = [Fault(cut=100_000), Fault(change=later)]
    with pytest.raises(MlxchatError, match="corrupt"):
        fetch(hub, destination)
    assert list(destination.parent.iterdir()) == []
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("checksum", [True, False])
def test_a_part_from_elsewhere_in_the_file_is_not_appended(
    hub: Hub, server: HubServer, destination: Path, checksum: bool
) -> None:
    server.faults = [Fault(cut=100_000), Fault(misplace=7)] * MISMATCHES
    if not checksum:
        server.faults.append(Fault(method="HEAD", omit_checksum=True))
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


def test_without_a_checksum_parts_are_not_put_together(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    destination.parent.mkdir()
    partial(destination).write_bytes(b"x" * 1000)
    server.faults = [Fault(method="HEAD", omit_checksum=True), Fault(cut=100_000)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT
    assert all("range" not in request.headers for request in storage_requests(server))


def test_a_git_checksum_is_checked(hub: Hub, server: HubServer, destination: Path) -> None:
    right = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    remote = replace(hub.stat(REPO, "shard_00000.parquet"), checksum=right)
    download(hub, remote, destination)
    assert destination.read_bytes() == CONTENT
    with pytest.raises(MlxchatError, match="corrupt"):
        download(hub, replace(remote, checksum="0" * 40), destination)


def test_a_stalled_transfer_is_noticed_and_resumed(server: HubServer, destination: Path) -> None:
    server.faults = [Fault(cut=100_000, stall=60), Fault(cut=0, stall=60)]
    with httpx.Client(trust_env=False, timeout=0.1) as client:
        fetch(Hub(server.endpoint, client, sleep=lambda _: None), destination)
    assert destination.read_bytes() == CONTENT


def test_a_trickle_counts_as_a_stall(
    hub: Hub, server: HubServer, destination: Path, pauses: list[float]
) -> None:
    times = itertools.count(0, 600)  # more between two chunks than they may take
    fetch(replace(hub, timer=lambda: float(next(times))), destination)
    assert destination.read_bytes() == CONTENT
    assert pauses and "range" in storage_requests(server)[-1].headers


def test_attempts_that_make_progress_are_not_counted(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.faults = [Fault(cut=10_000, times=4 * ATTEMPTS)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


def test_a_file_finished_by_another_process_is_not_downloaded_again(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    remote = hub.stat(REPO, "shard_00000.parquet")
    destination.parent.mkdir()
    destination.write_bytes(CONTENT)
    download(hub, remote, destination)
    assert storage_requests(server) == []
    destination.write_bytes(CONTENT[::-1])  # but a damaged one is
    download(hub, remote, destination)
    assert destination.read_bytes() == CONTENT
    assert only(destination)


@pytest.mark.parametrize("call", ["sync", "replace"])
def test_a_disk_failure_at_the_end_is_reported(
    hub: Hub, destination: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module if call == "sync" else Path, call, fail)
    with pytest.raises(MlxchatError, match="No space left"):
        fetch(hub, destination)
    monkeypatch.undo()
    assert partial(destination).read_bytes() == CONTENT
    assert not destination.exists()


def test_without_a_checksum_the_size_decides(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.faults = [Fault(method="HEAD", omit_checksum=True, times=2)]
    assert hub.stat(REPO, "shard_00000.parquet").checksum is None
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


def test_a_file_longer_than_announced_is_an_error(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    remote = RemoteFile(server.endpoint + ADDRESS, 1000, None, None)
    with pytest.raises(MlxchatError, match="corrupt"):
        download(hub, remote, destination)
    assert list(destination.parent.iterdir()) == []


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_failures_are_retried(
    hub: Hub, server: HubServer, destination: Path, status: int
) -> None:
    server.faults = [Fault(method="HEAD", status=status), Fault(status=status)]
    fetch(hub, destination)
    assert destination.read_bytes() == CONTENT


def test_every_wait_is_reported_once(hub: Hub, server: HubServer, destination: Path) -> None:
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


def test_a_redirect_to_an_impossible_host_is_an_error(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    server.storage = "http://a..b"
    with pytest.raises(MlxchatError, match=f"{server.endpoint}.*host with an invalid name"):
        fetch(hub, destination)


@pytest.mark.parametrize(
    ("status", "said"), [(404, "does not exist"), (401, "no access"), (418, "418")]
)
def test_final_answers_are_not_retried(
    hub: Hub, server: HubServer, destination: Path, status: int, said: str
) -> None:
    remote = hub.stat(REPO, "shard_00000.parquet")
    server.faults = [Fault(status=status), Fault(method="HEAD", status=status)]
    with pytest.raises(MlxchatError, match=said):
        download(hub, remote, destination)
    with pytest.raises(MlxchatError, match=said):
        hub.stat(REPO, "shard_00000.parquet")
    assert list(destination.parent.iterdir()) == []


def test_an_unwritable_destination_is_an_error(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(MlxchatError, match="cannot be stored"):
        fetch(hub, tmp_path / "data" / "shard_00000.parquet")


def test_it_waits_for_another_process_and_uses_its_file(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    destination.parent.mkdir()
    grown = partial(destination)
    other = grown.open("a+b")
    fcntl.flock(other, fcntl.LOCK_EX)

    def finish(_: float) -> None:
        if not other.closed:
            other.write(CONTENT)
            other.flush()
            grown.rename(destination)
            other.close()

    waiting = Hub(server.endpoint, hub.client, sleep=finish)
    fetch(waiting, destination)
    assert storage_requests(server) == []
    assert destination.read_bytes() == CONTENT
    assert only(destination)


def test_it_resumes_where_another_process_gave_up(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    destination.parent.mkdir()
    other = partial(destination).open("a+b")
    fcntl.flock(other, fcntl.LOCK_EX)
    other.write(CONTENT[:5000])
    waiting = Hub(server.endpoint, hub.client, sleep=lambda _: other.close())
    fetch(waiting, destination)
    assert storage_requests(server)[-1].headers["range"] == "bytes=5000-"
    assert destination.read_bytes() == CONTENT


def test_a_partial_file_that_is_deleted_meanwhile_is_not_taken_for_the_whole(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    remote = hub.stat(REPO, "shard_00000.parquet")
    others = []

    def delete(done: int) -> None:
        if not others:
            partial(destination).unlink()
            others.append(partial(destination).open("a+b"))  # another process begins anew
            fcntl.flock(others[0], fcntl.LOCK_EX)
            others[0].write(CONTENT[:100])
            others[0].flush()

    waiting = replace(hub, sleep=lambda _: others[0].close())
    download(waiting, remote, destination, delete)
    assert storage_requests(server)[-1].headers["range"] == "bytes=100-"
    assert destination.read_bytes() == CONTENT
    assert only(destination)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_disk_without_locks_is_downloaded_to(
    code: int, hub: Hub, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    held = destination.parent / f".{partial(destination).name}.held"
    destination.parent.mkdir()
    held.write_text("1 elsewhere\n")
    waiting = replace(hub, sleep=lambda _: held.unlink())
    fetch(waiting, destination)
    assert destination.read_bytes() == CONTENT
    assert only(destination)
    assert pin(destination.parent, "a" * 40) == pin(destination.parent, "b" * 40) == "a" * 40


def test_stop_ends_a_transfer_and_keeps_the_partial_file(
    hub: Hub, server: HubServer, destination: Path
) -> None:
    stop = threading.Event()
    remote = hub.stat(REPO, "shard_00000.parquet")
    with pytest.raises(Cancelled):
        download(hub.until(stop), remote, destination, lambda done: stop.set())
    assert 0 < partial(destination).stat().st_size < len(CONTENT)
    with pytest.raises(Cancelled):
        hub.until(stop).stat(REPO, "shard_00000.parquet")
