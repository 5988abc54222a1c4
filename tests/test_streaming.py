import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from hub_server import TINY, Fault, HubServer, address, dataset_files, write_shard

from mlxchat.data import streaming as module
from mlxchat.data.hub import ATTEMPTS, Hub
from mlxchat.data.shards import check_shard, shard_name
from mlxchat.data.streaming import StreamingShards
from mlxchat.errors import MlxchatError
from mlxchat.telemetry import Event, Noted, Progressed

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

    def stream(max_cached: int = 2, num_shards: int | None = None) -> StreamingShards:
        source = StreamingShards(folder, TINY, max_cached, hub, events.append, num_shards)
        opened.append(source)
        return source

    yield stream
    for source in opened:
        source.close()


def on_disk(folder: Path, validation: bool = False) -> set[int]:
    """Numbers of the shards in a folder, whole or in part."""
    found = {path.name.partition(".")[0] for path in folder.glob("shard_*")}
    numbers = {int(name.removeprefix("shard_")) for name in found}
    return numbers if validation else numbers - {TINY.last_shard}


def whole(folder: Path) -> set[int]:
    return {int(path.stem.removeprefix("shard_")) for path in folder.glob("*.parquet")}


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
def test_it_covers_the_dataset_and_begins_again_within_the_room_given(
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


def test_the_next_shard_can_be_had_before_the_last_is_given_back(
    stream: Stream, folder: Path
) -> None:
    source = stream(2)
    with Watch(folder) as watch:
        source.acquire(shard_name(0))
        for index in range(1, 9):
            check_shard(source.acquire(shard_name(index)))
            assert (folder / shard_name(index - 1)).exists()  # still in use
            source.release(shard_name(index - 1))
    assert watch.most <= 2


def test_shards_come_before_they_are_asked_for(
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


def test_nothing_but_validation_comes_before_the_reader_is_known(
    stream: Stream, server: HubServer, folder: Path
) -> None:
    source = stream()
    eventually(lambda: whole(folder) == {9})
    read(source, 7)
    assert server.count("GET", shard_name(0)) == 0


def test_the_shard_used_longest_ago_goes_first(stream: Stream, folder: Path) -> None:
    source = stream(3, num_shards=9)
    for index in (0, 1):
        read(source, index)
    source.acquire(shard_name(2))
    eventually(lambda: whole(folder) == {2, 3, 4, 9})


def test_a_shard_in_use_stays(stream: Stream, folder: Path) -> None:
    source = stream(3)
    kept = source.acquire(shard_name(0))
    for index in range(1, 6):
        read(source, index)
        assert kept.exists()
    source.release(shard_name(0))
    read(source, 6)
    eventually(lambda: not kept.exists())


def test_files_of_others_stay_and_count(stream: Stream, server: HubServer, folder: Path) -> None:
    own = [write_shard(folder / shard_name(index)) for index in (0, 1, 4)]
    source = stream(5)
    with Watch(folder) as watch:
        for index in [*range(9), 0, 1]:
            read(source, index)
    assert all(path.exists() for path in own)
    assert all(server.count("GET", path.name) == 0 for path in own)
    assert watch.most <= 5


def test_many_files_of_others_leave_room_for_two(stream: Stream, folder: Path) -> None:
    own = [write_shard(folder / shard_name(index)) for index in range(4)]
    source = stream(2)
    with Watch(folder) as watch:
        for index in range(9):
            read(source, index)
    assert all(path.exists() for path in own)
    assert watch.most <= len(own) + 2


def test_a_restart_goes_on_with_what_is_there(
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


def test_a_restart_elsewhere_with_less_room_drops_the_rest(stream: Stream, folder: Path) -> None:
    source = stream(4)
    read(source, 0)
    eventually(lambda: whole(folder) == {0, 1, 2, 3, 9})
    source.close()
    again = stream(2)
    read(again, 6)
    eventually(lambda: whole(folder) == {6, 7, 9})


def test_a_partial_file_counts_and_is_gone_on_with(
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
    assert hub.partial(folder / shard_name(1)).stat().st_size == 100
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


def test_a_failure_is_forgotten_when_the_shard_is_asked_for(
    stream: Stream, server: HubServer
) -> None:
    server.faults = [Fault(name=shard_name(1), method="HEAD", status=500, times=ATTEMPTS)]
    source = stream()
    read(source, 0)
    eventually(lambda: bool(source._failures))
    read(source, 1)


def test_failures_are_tried_again_in_the_background(
    stream: Stream, server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    server.faults = [Fault(name=shard_name(1), method="HEAD", status=500, times=3 * ATTEMPTS)]
    read(stream(), 0)
    eventually(lambda: whole(folder) == {0, 1, 9})


def test_the_disk_is_asked_before_each_download(
    stream: Stream, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, needed: int) -> None:
        raise MlxchatError("The disk is too small.")

    monkeypatch.setattr(module, "require_space", full)
    source = stream()
    with pytest.raises(MlxchatError, match="too small"):
        source.acquire(shard_name(0))
    assert server.count("GET", "parquet") == 0


def test_closing_is_quick_and_wakes_who_waits(
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
    assert any(
        isinstance(event, Progressed) and event.task == shard_name(0) and event.done == event.total
        for event in events
    )


def test_a_report_that_fails_leaves_nobody_waiting(hub: Hub, folder: Path) -> None:
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


def test_why_it_waits_is_noted(stream: Stream, server: HubServer, events: list[Event]) -> None:
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
    with pytest.raises(MlxchatError, match="Another run streams") as caught:
        stream()
    assert "MLXCHAT_HOME" in caught.value.remedy
    first.close()
    stream()


def test_one_shard_is_too_little_room(stream: Stream) -> None:
    with pytest.raises(MlxchatError, match="--max-cached-shards 1 is too few"):
        stream(1)


def test_a_dataset_that_fits_is_fetched_once(stream: Stream, server: HubServer) -> None:
    source = stream(5, num_shards=3)
    for index in [*range(3)] * 4:
        read(source, index)
    assert [server.count("GET", shard_name(index)) for index in range(4)] == [1, 1, 1, 0]
