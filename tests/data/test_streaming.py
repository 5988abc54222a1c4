import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.hub_server import TINY, Fault, HubServer, address, dataset_files, write_shard

from mlxchat.data import streaming as module
from mlxchat.data.download import partial
from mlxchat.data.fetch import fetch
from mlxchat.data.hub import ATTEMPTS, Hub
from mlxchat.data.shards import STREAMED, check_shard, shard_name
from mlxchat.data.streaming import LOCK, StreamingShards
from mlxchat.errors import LockedError, MlxchatError
from mlxchat.locks import Lock
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Event, Noted, Progressed

Stream = Callable[..., StreamingShards]
PATIENCE = 10.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(dataset_files(TINY, tmp_path / "origin")) as server:
        yield server


@pytest.fixture
def hub(server: HubServer) -> Iterator[Hub]:
    with httpx.Client(trust_env=False, timeout=5) as client:
        yield Hub(server.endpoint, client, backoff=0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "base_data_tiny"


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def stream(hub: Hub, folder: Path, events: list[Event]) -> Iterator[Stream]:
    opened: list[StreamingShards] = []

    def stream(
        max_cached: int = 2,
        num_shards: int | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> StreamingShards:
        source = StreamingShards(folder, TINY, max_cached, hub, events.append, num_shards, clock)
        opened.append(source)
        return source

    yield stream
    for source in opened:
        source.close()


def on_disk(folder: Path) -> set[int]:
    """Numbers of the training shards in a folder, whole or in part, streamed or not."""
    found = {path.name.partition(".")[0] for path in folder.rglob("shard_*")}
    return {int(name.removeprefix("shard_")) for name in found} - {TINY.last_shard}


def whole(folder: Path) -> set[int]:
    return {int(path.stem.removeprefix("shard_")) for path in folder.rglob("*.parquet")}


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def read(source: StreamingShards, index: int) -> None:
    check_shard(source.acquire(shard_name(index)))
    source.release(shard_name(index))


class Watch:
    """Looks at a folder all the time, and remembers the most training shards it saw."""

    def __init__(self, folder: Path) -> None:
        self.most = 0
        self._folder, self._stop = folder, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.0005):
            self.most = max(self.most, len(on_disk(self._folder)))


@pytest.mark.parametrize("max_cached", [2, 3])
def test_streaming_repeats_the_dataset_within_the_given_number_of_shards(
    stream: Stream, server: HubServer, folder: Path, max_cached: int
) -> None:
    source = stream(max_cached)
    assert source.training == tuple(shard_name(index) for index in range(9))
    with Watch(folder) as watch:
        for index in [*range(9), *range(9), 0]:
            path = source.acquire(shard_name(index))
            check_shard(path)
            assert path.exists()
            source.release(shard_name(index))
    assert watch.most <= max_cached
    check_shard(source.acquire(source.validation))
    assert server.count("GET", source.validation) == 1


def test_the_next_shard_can_be_acquired_before_the_last_is_released(
    stream: Stream, folder: Path
) -> None:
    source = stream(2)
    with Watch(folder) as watch:
        source.acquire(shard_name(0))
        for index in range(1, 9):
            check_shard(source.acquire(shard_name(index)))
            assert source._find(shard_name(index - 1))  # still in use
            source.release(shard_name(index - 1))
    assert watch.most <= 2


def test_shards_are_downloaded_ahead_of_the_reader(
    stream: Stream, server: HubServer, folder: Path, events: list[Event]
) -> None:
    source = stream(4)
    read(source, 3)
    eventually(lambda: whole(folder) == {3, 4, 5, 6, 9})
    events.clear()
    server.faults = [Fault(method="HEAD", status=404, times=100)]
    for index in (4, 5, 6):
        read(source, index)
    assert not [event for event in events if isinstance(event, Noted)]


def test_only_validation_is_downloaded_before_the_reader_starts(
    stream: Stream, server: HubServer, folder: Path
) -> None:
    source = stream()
    eventually(lambda: whole(folder) == {9})
    read(source, 7)
    assert server.count("GET", shard_name(0)) == 0


def test_the_least_recently_used_shard_is_deleted_first(stream: Stream, folder: Path) -> None:
    source = stream(3, num_shards=9)
    for index in (0, 1):
        read(source, index)
    source.acquire(shard_name(2))
    eventually(lambda: whole(folder) == {2, 3, 4, 9})


def test_a_shard_in_use_is_not_deleted(stream: Stream, folder: Path) -> None:
    source = stream(3)
    kept = source.acquire(shard_name(0))
    for index in range(1, 6):
        read(source, index)
        assert kept.exists()
    source.release(shard_name(0))
    read(source, 6)
    eventually(lambda: not kept.exists())


def test_other_files_are_kept_and_counted(stream: Stream, server: HubServer, folder: Path) -> None:
    own = [write_shard(folder / shard_name(index)) for index in (0, 1, 4)]
    source = stream(5)
    with Watch(folder) as watch:
        for index in [*range(9), 0, 1]:
            read(source, index)
    assert all(path.exists() for path in own)
    assert all(server.count("GET", path.name) == 0 for path in own)
    assert watch.most <= 5


def test_many_other_files_still_leave_room_for_two_shards(stream: Stream, folder: Path) -> None:
    own = [write_shard(folder / shard_name(index)) for index in range(4)]
    source = stream(2)
    with Watch(folder) as watch:
        for index in range(9):
            read(source, index)
    assert all(path.exists() for path in own)
    assert watch.most <= len(own) + 2


def test_a_restart_reuses_the_shards_on_disk(
    stream: Stream, server: HubServer, folder: Path
) -> None:
    source = stream(3)
    read(source, 4)
    eventually(lambda: whole(folder) == {4, 5, 6, 9})
    source.close()
    server.requests.clear()
    again = stream(3)
    read(again, 4)
    read(again, 5)
    eventually(lambda: whole(folder) == {5, 6, 7, 9})
    assert {request.path.rpartition("/")[2] for request in server.requests} == {shard_name(7)}


def test_a_restart_elsewhere_with_less_room_deletes_the_rest(stream: Stream, folder: Path) -> None:
    source = stream(4)
    read(source, 0)
    eventually(lambda: whole(folder) == {0, 1, 2, 3, 9})
    source.close()
    again = stream(2)
    read(again, 6)
    eventually(lambda: whole(folder) == {6, 7, 9})


def test_a_partial_file_counts_and_is_resumed(
    stream: Stream, server: HubServer, hub: Hub, folder: Path
) -> None:
    server.faults = [
        Fault(name=shard_name(1), cut=100),
        Fault(name=shard_name(1), status=500, times=ATTEMPTS - 1),
    ]
    source = stream(2)
    read(source, 0)
    eventually(lambda: bool(source._failures))
    source.close()
    assert partial(folder / STREAMED / shard_name(1)).stat().st_size == 100
    again = stream(2)
    with Watch(folder) as watch:
        for index in (1, 2, 3):
            read(again, index)
    assert watch.most <= 2
    ranges = [r.headers.get("range") for r in server.requests if r.path.endswith(shard_name(1))]
    assert "bytes=100-" in ranges


def test_a_shard_that_does_not_exist_is_an_error_when_it_is_needed(
    stream: Stream, server: HubServer, folder: Path
) -> None:
    del server.files[address(TINY, shard_name(2))]
    source = stream(3)
    read(source, 0)
    read(source, 1)
    with pytest.raises(MlxchatError, match=r"shard_00002\.parquet does not exist"):
        source.acquire(shard_name(2))
    read(source, 3)


def test_a_failed_shard_is_retried_when_it_is_needed(stream: Stream, server: HubServer) -> None:
    server.faults = [Fault(name=shard_name(1), method="HEAD", status=500, times=ATTEMPTS)]
    source = stream()
    read(source, 0)
    eventually(lambda: bool(source._failures))
    read(source, 1)


def test_failures_are_retried_in_the_background(
    stream: Stream, server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    server.faults = [Fault(name=shard_name(1), method="HEAD", status=500, times=3 * ATTEMPTS)]
    read(stream(), 0)
    eventually(lambda: whole(folder) == {0, 1, 9})


class Link:
    """Lets downloads end only at moments of a clock that the test advances, one at each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed, self._moments = threading.Condition(), 0
        download = module.download_shard

        def at_its_moment(*arguments: Any) -> None:
            with self._changed:
                while not self._changed.wait_for(lambda: self._moments > 0, 0.05):
                    arguments[0].check_stop()
                self._moments -= 1
            download(*arguments)

        monkeypatch.setattr(module, "download_shard", at_its_moment)

    def pass_time(self, moments: int, idle: Callable[[], bool]) -> None:
        """Let so many downloads end, fewer where the link is idle."""
        for _ in range(moments):
            with self._changed:
                self._moments = 1
                self._changed.notify_all()
            eventually(lambda: self._moments == 0 or idle())
        with self._changed:
            self._moments = 0


@pytest.mark.parametrize("max_cached", [2, 3, 5])
def test_on_a_link_twice_as_fast_as_the_reader_only_the_first_shard_is_awaited(
    stream: Stream,
    server: HubServer,
    folder: Path,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
    max_cached: int,
) -> None:
    link = Link(monkeypatch)
    server.faults = [Fault(cut=50, times=20)]
    source = stream(max_cached)
    link.pass_time(1, idle=lambda: 9 in whole(folder))
    eventually(lambda: 9 in whole(folder))

    for number, index in enumerate([*range(9), *range(9)]):

        def idle(index: int = index) -> bool:
            return whole(folder) >= {9, *((index + i) % 9 for i in range(max_cached))}

        def there(name: str = shard_name(index)) -> bool:
            return source._find(name) is not None

        first = threading.Thread(target=link.pass_time, args=(1, there))
        if number == 0:
            first.start()
        else:
            eventually(there)
        source.acquire(shard_name(index))
        if number == 0:
            first.join()
        link.pass_time(2, idle)  # one shard is read while two could come
        source.release(shard_name(index))
    waits = [e.text for e in events if isinstance(e, Noted) and "Waiting" in e.text]
    assert waits == ["Waiting for shard_00000.parquet."]


def test_a_network_outage_is_waited_out(
    stream: Stream, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "PATIENCE", 3)
    outage = 2 * ATTEMPTS
    server.faults = [Fault(shard_name(0), "HEAD", times=outage, status=503)]
    read(stream(), 0)
    assert server.count("HEAD", shard_name(0)) == outage + 1


def test_a_network_that_stays_down_is_an_error(
    stream: Stream, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "PATIENCE", 3)
    server.faults = [Fault(shard_name(0), "HEAD", times=10**6, status=503)]

    def seconds() -> float:
        """Stop after the last attempt, so that none follows before the reader has woken up."""
        return time.monotonic() if server.count("HEAD", shard_name(0)) < 3 * ATTEMPTS else 0.0

    with pytest.raises(MlxchatError, match=r"shard_00000\.parquet could not be downloaded.*503"):
        stream(clock=Clock(seconds=seconds)).acquire(shard_name(0))
    assert server.count("HEAD", shard_name(0)) == 3 * ATTEMPTS


@pytest.mark.parametrize("answered_before", [False, True])
def test_a_network_that_has_never_worked_is_an_error_at_once(
    answered_before: bool, stream: Stream, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who starts without a network learns it in seconds; an outage is waited out."""
    asked: list[str] = []

    def refuse(self: httpx.Client, request: httpx.Request, **_: object) -> httpx.Response:
        asked.append(request.url.path.rpartition("/")[2])
        raise httpx.ConnectError("no route to host")

    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "PATIENCE", 2)
    if answered_before:
        (folder / STREAMED).mkdir(parents=True)
        write_shard(folder / STREAMED / shard_name(5))
    monkeypatch.setattr(httpx.Client, "send", refuse)
    source = stream()
    with pytest.raises(MlxchatError, match="could not be downloaded: no route to host"):
        source.acquire(shard_name(0))
    source.close()
    assert len(asked) == ATTEMPTS or (answered_before and asked.count(shard_name(0)) > ATTEMPTS)


def test_unavailable_validation_does_not_stop_training(
    stream: Stream, server: HubServer, folder: Path
) -> None:
    del server.files[address(TINY, shard_name(9))]
    source = stream(2)
    for index in range(9):
        read(source, index)
    with pytest.raises(MlxchatError, match=r"shard_00009\.parquet does not exist"):
        source.acquire(source.validation)


def test_a_file_added_meanwhile_is_kept(stream: Stream, folder: Path) -> None:
    source = stream(3)
    read(source, 0)
    eventually(lambda: whole(folder) == {0, 1, 2, 9})
    own = write_shard(folder / shard_name(1))  # one that streaming has brought, too
    for index in [*range(9), 0, 1]:
        read(source, index)
    assert own.exists()
    assert whole(folder) >= {1, 9}


def test_a_shard_downloaded_meanwhile_by_fetch_is_kept(
    stream: Stream, hub: Hub, server: HubServer, folder: Path
) -> None:
    source = stream(3)
    read(source, 0)
    eventually(lambda: whole(folder) == {0, 1, 2, 9})
    fetch(folder, TINY, 2, hub, lambda event: None)
    assert server.count("GET", shard_name(1)) == 1
    for index in range(9):
        read(source, index)
    assert (folder / shard_name(0)).exists() and (folder / shard_name(1)).exists()


def test_a_shard_damaged_by_a_power_cut_is_downloaded_again(stream: Stream, folder: Path) -> None:
    (folder / STREAMED).mkdir(parents=True)
    (folder / STREAMED / shard_name(0)).write_bytes(b"PAR1")
    read(stream(), 0)


def test_an_unwritable_folder_is_reported(
    stream: Stream, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stream(2)
    read(source, 0)
    eventually(lambda: whole(folder) == {0, 1, 9})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(MlxchatError, match=r"streamed cannot be stored: Permission denied"):
        source.acquire(shard_name(5))


def test_disk_space_is_checked_before_each_download(
    stream: Stream, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, needed: int) -> None:
        raise MlxchatError("The disk is too small.")

    monkeypatch.setattr(module, "require_space", full)
    source = stream()
    with pytest.raises(MlxchatError, match="too small"):
        source.acquire(shard_name(0))
    assert server.count("GET", "parquet") == 0


def test_closing_is_quick_and_wakes_waiting_readers(
    stream: Stream, server: HubServer, folder: Path
) -> None:
    server.bytes_per_second = 1000
    source = stream()
    failures: list[MlxchatError] = []

    def wait() -> None:
        try:
            source.acquire(shard_name(0))
        except MlxchatError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    eventually(lambda: server.count("GET", "parquet") > 0)
    begun = time.monotonic()
    source.close()
    source.close()
    assert time.monotonic() - begun < 3
    waiting.join(PATIENCE)
    assert "stopped" in failures[0].problem


def test_progress_and_waiting_are_reported(stream: Stream, events: list[Event]) -> None:
    read(stream(), 0)
    assert any(isinstance(event, Noted) and shard_name(0) in event.text for event in events)
    # The shard is on disk, and its reader may go on, shortly before the last bytes are reported.
    eventually(
        lambda: any(
            isinstance(event, Progressed)
            and event.task == shard_name(0)
            and event.done == event.total
            for event in list(events)
        )
    )


def test_a_failing_report_leaves_no_reader_waiting(hub: Hub, folder: Path) -> None:
    def report(event: Event) -> None:
        if isinstance(event, Progressed):
            raise BrokenPipeError

    # The thread's own end is told by threading.excepthook, as for any thread.
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        with (
            closing(StreamingShards(folder, TINY, 2, hub, report)) as source,
            pytest.raises(MlxchatError, match="stopped"),
        ):
            source.acquire(shard_name(0))
    finally:
        threading.excepthook = hook


def test_the_reason_for_waiting_is_reported(
    stream: Stream, server: HubServer, events: list[Event]
) -> None:
    server.faults = [Fault(name=shard_name(0), method="HEAD", status=503)]
    read(stream(), 0)
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert notes == [
        "Waiting for shard_00000.parquet.",
        "Trying again in 0.01 s to get shard_00000.parquet: the server answers 503 "
        "Service Unavailable.",
    ]


def test_two_runs_cannot_share_a_folder(stream: Stream) -> None:
    first = stream()
    with pytest.raises(LockedError, match="Another run streams") as caught:
        stream()
    assert "MLXCHAT_HOME" in caught.value.remedy
    first.close()
    stream()


def test_a_folder_stays_locked_when_the_lock_is_deleted(
    stream: Stream, folder: Path, server: HubServer
) -> None:
    source = stream(2)
    (folder / STREAMED / LOCK).unlink()
    read(source, 0)
    with pytest.raises(LockedError):
        stream()
    (folder / STREAMED / LOCK).unlink()
    other = Lock.take(folder / STREAMED / LOCK)
    assert other is not None
    with other, pytest.raises(LockedError, match="Another run streams"):
        for index in range(1, 8):
            read(source, index)


def test_room_for_one_shard_is_refused(stream: Stream) -> None:
    with pytest.raises(MlxchatError, match="`max_cached_shards=1` is too few"):
        stream(1)


def test_a_dataset_that_fits_is_downloaded_once(stream: Stream, server: HubServer) -> None:
    source = stream(5, num_shards=3)
    for index in [*range(3)] * 4:
        read(source, index)
    assert [server.count("GET", shard_name(index)) for index in range(4)] == [1, 1, 1, 0]
