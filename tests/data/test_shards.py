import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.hub_server import COMMIT, TINY, Fault, HubServer, address, dataset_files, write_shard
from support.places import TESTS
from support.strange_files import STRANGE, put_strange

from mlxchat.data.fetch import ALL_SHARDS, fetch
from mlxchat.data.hub import ATTEMPTS, Hub
from mlxchat.data.shards import (
    DATASETS,
    REVISION,
    STREAMED,
    FolderStatus,
    LocalShards,
    check_shard,
    pinned_revision,
    shard_name,
    status,
)
from mlxchat.disk import RESERVE, require_space
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Event, Noted, Progressed

Disk = namedtuple("Disk", "total used free")


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


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != REVISION)


def test_fetch_downloads_the_first_shards_and_the_last(
    hub: Hub, server: HubServer, folder: Path, events: list[Event]
) -> None:
    paths = fetch(folder, TINY, 3, hub, events.append, clock=lambda: 5.0)
    names = [shard_name(index) for index in (0, 1, 2, 9)]
    assert [path.name for path in paths] == names == names_in(folder)
    for path in paths:
        check_shard(path)
    source = LocalShards(folder)
    assert source.training == tuple(names[:3]) and source.validation == names[3]


def test_fetch_reports_every_file_and_the_sum(hub: Hub, folder: Path, events: list[Event]) -> None:
    paths = fetch(folder, TINY, 3, hub, events.append, clock=lambda: 5.0)
    last: dict[str, Progressed] = {}
    for event in events:
        assert isinstance(event, Progressed) and event.unit == "bytes" and event.time == 5.0
        assert event.done >= last.get(event.task, event).done
        last[event.task] = event
    sizes = {path.name: path.stat().st_size for path in paths}
    assert {task: event.done for task, event in last.items()} == sizes | {
        ALL_SHARDS: sum(sizes.values())
    }
    assert all(event.done == event.total for event in last.values())


def test_fetch_leaves_existing_shards_alone(
    hub: Hub, server: HubServer, folder: Path, events: list[Event]
) -> None:
    fetch(folder, TINY, 2, hub, events.append)
    server.requests.clear()
    fetch(folder, TINY, 2, replace(hub, offline=True), events.append)
    assert server.requests == []
    fetch(folder, TINY, 3, hub, events.append)
    assert {request.path.rpartition("/")[2] for request in server.requests} == {shard_name(2)}


def test_fetch_replaces_a_damaged_shard_and_says_so(
    hub: Hub, folder: Path, events: list[Event]
) -> None:
    folder.mkdir(parents=True)
    (folder / shard_name(0)).write_bytes(b"PAR1 and nothing more")
    fetch(folder, TINY, 1, hub, events.append)
    check_shard(folder / shard_name(0))
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert len(notes) == 1 and "truncated or damaged" in notes[0]


def test_fetch_keeps_shards_that_streaming_downloaded(
    hub: Hub, server: HubServer, folder: Path, events: list[Event]
) -> None:
    streamed = write_shard(folder / STREAMED / shard_name(0))
    fetch(folder, TINY, 1, hub, events.append)
    assert server.count("GET", shard_name(0)) == 0
    streamed.unlink()
    check_shard(folder / shard_name(0))


def test_all_shards_of_a_folder_are_of_the_revision_of_the_first(
    hub: Hub, server: HubServer, folder: Path, events: list[Event]
) -> None:
    fetch(folder, TINY, 1, hub, events.append)
    assert pinned_revision(folder) == COMMIT
    gets = [request.path for request in server.requests if request.method == "GET"]
    assert gets and all(f"/resolve/{COMMIT}/" in path for path in gets)
    server.requests.clear()
    fetch(folder, TINY, 3, hub, events.append)
    assert all(f"/resolve/{COMMIT}/" in request.path for request in server.requests)

    server.commit = "f" * 40  # the hub has another revision, and has lost the one we began with
    with pytest.raises(MlxchatError, match="does not exist") as caught:
        fetch(folder, TINY, 4, hub, events.append)
    assert REVISION in caught.value.remedy and str(folder) in caught.value.remedy
    fetch(folder.parent / "other", TINY, 4, hub, events.append)
    assert pinned_revision(folder.parent / "other") == server.commit


def test_an_incomplete_revision_file_is_ignored(
    hub: Hub, folder: Path, events: list[Event]
) -> None:
    folder.mkdir(parents=True)
    (folder / REVISION).write_text("abc")
    assert pinned_revision(folder) is None
    fetch(folder, TINY, 1, hub, events.append)
    assert pinned_revision(folder) == COMMIT
    assert (folder / REVISION).read_text() == f"{COMMIT}\n"


@pytest.mark.slow
def test_two_processes_share_the_work(server: HubServer, folder: Path) -> None:
    server.bytes_per_second = 100_000
    program = (
        "import sys, httpx; from pathlib import Path; from support.hub_server import TINY; "
        "from mlxchat.data.fetch import fetch; from mlxchat.data.hub import Hub; "
        "hub = Hub(sys.argv[1], httpx.Client(trust_env=False)); "
        "fetch(Path(sys.argv[2]), TINY, 9, hub, lambda event: None, workers=2)"
    )
    command = [sys.executable, "-c", program, server.endpoint, str(folder)]
    both = [subprocess.Popen(command, cwd=TESTS) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert names_in(folder) == [shard_name(index) for index in range(10)]
    assert all(server.count("GET", name) == 1 for name in names_in(folder))


@pytest.mark.parametrize("count", [-1, 0, 10])
def test_an_impossible_number_of_shards_is_refused(
    hub: Hub, folder: Path, events: list[Event], count: int
) -> None:
    with pytest.raises(MlxchatError, match=f"`num_shards={count}` is not possible") as caught:
        fetch(folder, TINY, count, hub, events.append)
    assert "from 1 to 9" in caught.value.remedy


def test_a_disk_too_small_is_reported_before_downloading(
    hub: Hub,
    server: HubServer,
    folder: Path,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = RESERVE + 10_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(10 * free, 9 * free, free))
    with pytest.raises(MlxchatError, match="too small"):
        fetch(folder, TINY, 5, hub, events.append)
    assert all(request.method == "HEAD" for request in server.requests)
    assert names_in(folder) == []
    fetch(folder, TINY, 1, hub, events.append)


def test_space_is_checked_on_the_disk_of_the_nearest_existing_folder(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(MlxchatError, match="too small"):
        require_space(tmp_path / "not" / "yet", 10**18)


def test_a_missing_shard_stops_the_others(
    hub: Hub, server: HubServer, folder: Path, events: list[Event]
) -> None:
    server.faults = [Fault(name=shard_name(2), status=404), Fault(cut=0, stall=0.5, times=100)]
    with pytest.raises(MlxchatError, match=r"shard_00002\.parquet does not exist"):
        fetch(folder, TINY, 9, hub, events.append)
    assert server.count("GET", shard_name(8)) == 0
    server.faults = []
    fetch(folder, TINY, 9, hub, events.append)
    assert len(names_in(folder)) == 10


def test_an_interruption_ends_the_transfers(hub: Hub, folder: Path) -> None:
    def interrupt(_: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(folder, TINY, 9, hub, interrupt)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_a_file_that_is_not_a_shard_is_not_kept(
    hub: Hub, server: HubServer, folder: Path, events: list[Event], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"content": ["x"]}), wrong)
    server.files[address(TINY, shard_name(0))] = wrong
    with pytest.raises(MlxchatError, match=r"shard_00000\.parquet has no column text"):
        fetch(folder, TINY, 1, hub, events.append)
    assert not (folder / shard_name(0)).exists()


def test_garbage_from_a_server_is_not_announced_as_done(
    hub: Hub, server: HubServer, folder: Path, events: list[Event], tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_text("<html>Log in!</html>")
    server.files = dict.fromkeys(server.files, garbage)
    with pytest.raises(
        MlxchatError, match=r"did not send a parquet shard.*is not a parquet"
    ) as caught:
        fetch(folder, TINY, 2, hub, events.append)
    assert "endpoint" in caught.value.remedy and "Delete" not in caught.value.remedy
    progress = [event for event in events if isinstance(event, Progressed)]
    assert progress and all(event.done < (event.total or 0) for event in progress)


def test_waits_are_reported_and_without_a_network_for_one_file_only(
    hub: Hub, server: HubServer, folder: Path, events: list[Event]
) -> None:
    server.faults = [Fault(method="HEAD", status=503, times=1000)]
    with pytest.raises(MlxchatError, match="503"):
        fetch(folder, TINY, 9, hub, events.append, clock=lambda: 5.0)
    first = f"Trying again in 0.01 s to get {TINY.validation}: the server answers 503"
    assert events[0] == Noted(5.0, f"{first} Service Unavailable.")
    assert len(events) == ATTEMPTS - 1


def test_check_shard_says_what_is_wrong(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "whole.parquet")
    check_shard(whole)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-100])
    text = tmp_path / "text.parquet"
    text.write_text("just text")
    (tmp_path / "empty.parquet").touch()
    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"text": [1, 2]}), numbers)
    for name, said in {
        "nowhere": "does not exist",
        "cut": "truncated or damaged",
        "text": "is not a parquet file",
        "empty": "is not a parquet file",
        "numbers": "has int64, not strings",
    }.items():
        with pytest.raises(MlxchatError, match=f"{name}.parquet.*{said}"):
            check_shard(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_check_shard_accepts_every_string_type(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", "b"]).cast(kind)}), tmp_path / "own.parquet")
    check_shard(tmp_path / "own.parquet")


def test_a_folder_needs_at_least_two_shards(tmp_path: Path) -> None:
    for prepare, said in (
        (lambda: None, "There is no data"),
        ((tmp_path / "data").mkdir, "no shards"),
        (lambda: write_shard(tmp_path / "data" / shard_name(0)), "only one shard"),
    ):
        prepare()
        with pytest.raises(MlxchatError, match=said) as caught:
            LocalShards(tmp_path / "data")
        assert "mlxchat data fetch" in caught.value.remedy


def test_local_shards_are_checked_when_read(tmp_path: Path) -> None:
    for index in range(3):
        write_shard(tmp_path / shard_name(index))
    source = LocalShards(tmp_path)
    assert source.acquire(shard_name(0)) == tmp_path / shard_name(0)
    source.release(shard_name(0))
    (tmp_path / shard_name(1)).write_bytes(b"")
    with pytest.raises(MlxchatError, match="not a parquet file"):
        source.acquire(shard_name(1))
    source.close()


def test_status_counts_shards_bytes_and_unfinished_files(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert status(home) == []
    known = DATASETS["climbmix"]
    sizes = [
        write_shard(home.data("climbmix") / name).stat().st_size
        for name in (shard_name(0), known.validation, f"{STREAMED}/{shard_name(1)}")
    ]
    (home.data("climbmix") / REVISION).write_text(f"{COMMIT}\n")
    (home.data("climbmix") / "shard_00001.parquet.incomplete").touch()
    write_shard(home.data("own") / shard_name(0))
    home.data("fineweb-edu").mkdir()
    (tmp_path / "base_database").mkdir()
    assert [replace(found, bytes=0) for found in status(home)] == [
        FolderStatus("fineweb-edu", tmp_path / "base_data", 0, 0, False, (), None),
        FolderStatus(
            "climbmix",
            tmp_path / "base_data_climbmix",
            2,
            0,
            True,
            ("shard_00001.parquet.incomplete",),
            COMMIT,
        ),
        FolderStatus("own", tmp_path / "base_data_own", 1, 0, False, (), None),
    ]
    assert status(home)[1].bytes == sum(sizes)


def test_a_shard_that_streaming_fetched_and_fetch_keeps_counts_once(tmp_path: Path) -> None:
    folder = Home(tmp_path).data("fineweb-edu")
    streamed = write_shard(folder / ".streamed" / shard_name(0))
    (folder / shard_name(0)).hardlink_to(streamed)
    [found] = status(Home(tmp_path))
    assert found.bytes == streamed.stat().st_size


@pytest.mark.parametrize("kind", STRANGE)
def test_status_counts_what_lies_in_a_folder_without_opening_it(kind: str, tmp_path: Path) -> None:
    home = Home(tmp_path)
    size = write_shard(home.data("own") / shard_name(0)).stat().st_size
    for name in (REVISION, shard_name(1), f"{shard_name(2)}.incomplete"):
        put_strange(kind, home.data("own") / name)
    (tmp_path / "base_data_other").symlink_to("base_data_other")
    (found,) = status(home)
    assert (found.name, found.shards, found.revision) == ("own", 2, None)
    assert found.bytes >= size


def test_the_datasets_have_nanochats_validation_shards() -> None:
    assert DATASETS["fineweb-edu"].validation == "shard_01822.parquet"
    assert DATASETS["climbmix"].validation == "shard_06542.parquet"
    assert "non-commercial" in DATASETS["climbmix"].licence_note
    assert len(DATASETS["climbmix"].training()) == 6542


def test_status_imports_no_large_library() -> None:
    program = (
        "import sys; from pathlib import Path; from mlxchat.data.shards import status; "
        "from mlxchat.home import Home; status(Home(Path('nowhere'))); "
        "sys.exit(bool({'httpx', 'pyarrow', 'mlx'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
