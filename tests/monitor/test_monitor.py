"""What the monitor reads: statuses; logs that grow, break or are replaced; processes; the disk."""

import io
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from rich.console import Console
from support.clocks import FakeClock
from support.strange_files import STRANGE, put_strange

from mlxchat.home import Home
from mlxchat.monitor import machine as machine_module
from mlxchat.monitor.machine import (
    Disk,
    HostMemory,
    MlxchatProcess,
    command_of,
    disk,
    lives,
    pressure,
)
from mlxchat.monitor.runs import SILENT_SECONDS, Log, Monitor, Runs, WatchedRun, as_json
from mlxchat.telemetry import status as status_module
from mlxchat.telemetry.events import (
    Ended,
    Evaluated,
    Evaluating,
    Event,
    Memory,
    Noted,
    Position,
    Progressed,
    Replanned,
    Sampled,
    Saved,
    Started,
    Stepped,
    event_from_json,
    event_to_json,
    json_line,
)
from mlxchat.telemetry.log import JsonLines
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.status import (
    Process,
    Status,
    StatusFile,
    note_interruption,
    read_status,
    status_path,
    this_process,
)
from mlxchat.ui.monitor import picture

GIB = 2**30
MEMORY = Memory(GIB, 2 * GIB, GIB // 2, 4 * GIB, 8 * GIB)
HERE, THERE = Process(77, 1000.0, "here"), Process(77, 1000.0, "there")


def started(step: int = 0, total: int = 100, time: float = 0.0) -> Started:
    return Started(time, "d4", step, total, 64, 10, None, "a chip", 1000)


def stepped(step: int, loss: float = 3.0, time: float | None = None) -> Stepped:
    at = 10.0 * step if time is None else time
    return Stepped(at, step, loss, 0.02, 0.5, 10.0, Position(1, 0, 2), MEMORY)


def write_log(path: Path, *events: Event) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{event_to_json(event)}\n" for event in events))


def write_status(home: Path, tag: str, time: float, process: Process = HERE, **facts: str) -> None:
    log = Home(home).log(tag)
    with StatusFile(status_path(log), Meter(), lambda: MEMORY, lambda: time, process):
        pass
    status = json.loads(status_path(log).read_text())
    status_path(log).write_text(json.dumps({**status, "ended": None, **facts}))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 20
    while not condition():
        assert monotonic() < deadline
        sleep(0.001)


def read_runs(home: Path, now: float, alive: bool = True) -> dict[str, WatchedRun]:
    runs = Runs(Home(home), "here", lambda _: alive)
    return {run.tag: run for run in runs.read(now)}


@pytest.mark.parametrize(
    "event",
    [
        started(),
        stepped(3),
        Evaluating(1.0, 2, 3, 4),
        Evaluated(1.0, 2, 1.5, 3.0, 640, 1.0),
        Sampled(1.0, 2, "Once", " “upon”\n"),
        Saved(1.0, 2, "/x", 0.5),
        Ended(1.0, 2, "finished"),
        Noted(1.0, "hello"),
        Progressed(1.0, "a file", 1, None, "bytes"),
    ],
)
def test_an_event_comes_back_from_json(event: Event) -> None:
    assert event_from_json(event_to_json(event)) == event


def test_numbers_that_json_lacks_come_back_as_nan() -> None:
    event = event_from_json(event_to_json(stepped(1, math.inf)))
    assert isinstance(event, Stepped)
    assert math.isnan(event.loss)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[1]",
        b"3",
        b'{"event": "other"}',
        b'{"event": []}',
        b'{"event": "ended", "time": 1}',
        b'{"event": "ended", "time": "soon", "step": 1, "reason": "finished"}',
        b"null",
        b"[" * 200_000,
        b'{"event": ' * 900,
    ],
)
def test_a_line_that_is_not_an_event_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        event_from_json(line)


def test_a_log_is_read_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, taken = tmp_path / "metrics.jsonl", []
    log = Log(path)
    log.read()
    assert (log.meter.step, log.time) == (0, None)
    monkeypatch.setattr(
        "mlxchat.monitor.runs.event_from_json",
        lambda line: taken.append(line) or event_from_json(line),
    )
    with JsonLines(path) as lines:
        lines.write(started())
        for step in range(1, 4):
            lines.write(stepped(step))
            log.read()
            assert (log.meter.step, log.time) == (step, 10.0 * step)
    assert len(taken) == 4  # each line once


def test_an_incomplete_line_is_read_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_log(path, started(), stepped(1))
    log, line = Log(path), f"{event_to_json(stepped(2))}\n"
    with path.open("a") as file:
        file.write(line[:40])
        file.flush()
        log.read()
        assert log.meter.step == 1
        file.write(line[40:])
    log.read()
    assert log.meter.step == 2


def test_a_broken_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b"\x00\x00\n" + f"{event_to_json(started())}\n{{\n{event_to_json(stepped(1))}\n".encode()
    )
    log = Log(path)
    log.read()
    assert (log.meter.total_steps, log.meter.step) == (100, 1)


def test_a_replaced_log_is_read_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_log(path, started(), *map(stepped, range(1, 8)), Ended(70.0, 7, "interrupted"))
    log = Log(path)
    log.read()
    assert (log.meter.step, log.ending) == (7, "interrupted")
    with JsonLines.resume(path, 4) as lines:
        lines.write(started(4, time=100.0))
        log.read()
        assert (log.meter.step, log.ending, log.time) == (4, None, 100.0)
        assert [step for step, _ in log.meter.losses] == [1, 2, 3, 4]
        assert log.meter.elapsed == 40.0
    path.write_text("")  # in the same file
    log.read()
    assert (log.meter.step, log.meter.losses) == (0, [])


def test_events_of_a_deleted_log_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    write_log(path, started(), stepped(1))
    log = Log(path)
    log.read()
    shutil.rmtree(path.parent)
    log.read()
    assert log.meter.step == 1


def test_a_status_has_the_process_the_run_and_its_end(tmp_path: Path) -> None:
    path, meter, now = tmp_path / "run" / "status.json", Meter(), [100.0]

    def status() -> Status:
        found = read_status(path)
        assert found is not None
        return found

    with StatusFile(path, meter, lambda: MEMORY, lambda: now[0], HERE, interval=3600.0) as file:
        assert status() == Status(100.0, HERE, "training", 0, 0, MEMORY)
        for event, activity in (
            (started(), "training"),
            (Evaluating(1.0, 0, 3, 40), "evaluating 3/40"),
            (stepped(1), "training"),
            (Sampled(1.0, 1, "", ""), "sampling"),
        ):
            meter.update(event)
            file.update(event)
            now[0] += 1
            file.write()
            assert (status().activity, status().time) == (activity, now[0])
        file.update(Ended(1.0, 1, "finished"))
    assert (status().ended, status().step, status().total_steps) == ("finished", 1, 100)
    assert [file.name for file in path.parent.iterdir()] == ["status.json"]


def test_a_status_is_written_between_events(tmp_path: Path) -> None:
    path, times = tmp_path / "status.json", iter(range(10**9))
    with StatusFile(
        path, Meter(), lambda: MEMORY, lambda: float(next(times)), HERE, interval=0.001
    ):
        wait_until(lambda: (status := read_status(path)) is not None and status.time >= 3)


@pytest.mark.parametrize(
    ("error", "ended", "failure"),
    [
        (ValueError("no room"), "failed", "no room"),
        (ValueError(), "failed", "ValueError"),
        (BaseException("a panic in Rust"), "failed", "a panic in Rust"),
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(143), "interrupted", None),
        (GeneratorExit(), "interrupted", None),
    ],
)
def test_a_status_has_the_error_of_a_failed_run(
    tmp_path: Path, error: BaseException, ended: str, failure: str | None
) -> None:
    path = tmp_path / "status.json"
    status = StatusFile(path, Meter(), lambda: MEMORY, lambda: 1.0, HERE)
    with pytest.raises(type(error)), status:
        raise error
    status = read_status(path)
    assert status is not None
    assert (status.ended, status.failure) == (ended, failure)


@pytest.mark.parametrize(("ended", "shown"), [(None, "interrupted"), ("finished", "finished")])
def test_an_exit_without_clean_up_is_an_interruption(
    tmp_path: Path, ended: str | None, shown: str
) -> None:
    path = tmp_path / "status.json"
    with StatusFile(path, Meter(), lambda: MEMORY, lambda: 1.0, HERE) as file:
        if ended:
            file.update(Ended(1.0, 3, ended))
        note_interruption()
        status = read_status(path)
        assert status is not None and status.ended == shown
    path.unlink()
    note_interruption()
    assert not path.exists()  # the run is over


def test_a_disk_that_hangs_delays_no_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "_PATIENCE", 0.05)
    with StatusFile(tmp_path / "status.json", Meter(), lambda: MEMORY, lambda: 1.0, HERE) as file:
        hanging = threading.Event()
        monkeypatch.setattr(file, "interrupt", hanging.wait)
        began = monotonic()
        note_interruption()
        assert monotonic() - began < 10
        hanging.set()


def test_a_status_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "status.json"
    with StatusFile(path, Meter(), lambda: MEMORY, lambda: 1.0, HERE):
        pass
    assert read_status(path) is None


SOUND = json.loads(json.dumps(asdict(Status(100.0, HERE, "training", 3, 9, MEMORY))))


def with_value(fields: dict[str, Any], name: str, value: object) -> str:
    """The fields as JSON, with another value of one of them or, as in ``process.pid``, within."""
    outer, _, inner = name.partition(".")
    changed = {**fields[outer], inner: value} if inner else value
    return json.dumps({**fields, outer: changed})


BAD_STATUSES = {
    "empty": "",
    "cut": "{",
    "another type": "[]",
    "another form": '{"time": 1}',
    "nested": "[" * 200_000,
    **{
        f"{name} {value}": with_value(SOUND, name, value)
        for name, value in [
            ("time", "now"),
            ("time", 1e15),
            ("time", 1e18),
            ("time", -1e15),
            ("time", math.inf),
            ("time", None),
            ("time", math.nan),
            ("step", True),
            ("step", -1),
            ("step", 1.5),
            ("step", "3"),
            ("step", 10**300),
            ("total_steps", 2**63),
            ("activity", "\ud800"),
            ("activity", "x" * 10**5),
            ("process.pid", -1),
            ("process.pid", 0),
            ("process.pid", 10**18),
            ("process.started", 1e18),
            ("process.started", math.nan),
            ("memory.peak", -1),
            ("memory", None),
            ("ended", "soon"),
        ]
    },
}


@pytest.mark.parametrize("text", BAD_STATUSES.values(), ids=BAD_STATUSES)
def test_a_status_that_no_run_writes_makes_its_run_unreadable_and_no_other(
    text: str, tmp_path: Path
) -> None:
    write_log(Home(tmp_path).log("fine"), started(), stepped(1))
    write_log(Home(tmp_path).log("bad"), started(), stepped(1))
    path = status_path(Home(tmp_path).log("bad"))
    path.write_text(json.dumps(SOUND))
    assert read_runs(tmp_path, 101.0)["bad"].state == "running"
    path.write_text(text)
    with pytest.raises((OSError, ValueError)):
        read_status(path)
    assert_only_bad_is_unreadable(tmp_path, path)


LINE = json.loads(event_to_json(stepped(2)))
BAD_LINES = {
    "long": " " * 2**20,
    **{
        f"{name} {value}": with_value(LINE, name, value)
        for name, value in [
            ("time", 1e15),
            ("time", 1e18),
            ("time", -1.0),
            ("time", "now"),
            ("time", None),
            ("time", math.nan),
            ("time", 50 + 2 * 86_400.0),
            ("loss", 1e308),
            ("loss", -math.inf),
            ("loss", "3.0"),
            ("seconds", 1e308),
            ("step", True),
            ("step", "x"),
            ("step", -1),
            ("step", 10**299),
            ("position", []),
            ("memory.peak", 1e18),
        ]
    },
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_line_that_no_run_writes_makes_its_run_unreadable_and_no_other(
    line: str, tmp_path: Path
) -> None:
    write_log(Home(tmp_path).log("fine"), started(), stepped(1))
    path = Home(tmp_path).log("bad")
    write_log(path, started(), stepped(1))
    with path.open("a") as file:
        file.write(f"{line}\n")
    assert_only_bad_is_unreadable(tmp_path, path.parent)


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["metrics.jsonl", "status.json"])
def test_what_is_no_file_makes_its_run_unreadable_and_no_other(
    name: str, kind: str, tmp_path: Path
) -> None:
    for tag in ("fine", "bad"):
        write_log(Home(tmp_path).log(tag), started(), stepped(1))
    path = Home(tmp_path).log("bad").with_name(name)
    put_strange(kind, path)
    assert_only_bad_is_unreadable(tmp_path, path)


def assert_only_bad_is_unreadable(home: Path, path: Path) -> None:
    """Check what is shown of the runs ``fine`` and ``bad``, the latter for its file or folder."""
    snapshot = look(home).snapshot()
    (bad, fine) = sorted(snapshot.runs, key=lambda run: run.tag)
    assert (fine.state, fine.meter.step, fine.fault) == ("running", 1, None)
    assert bad.state == "unreadable"
    assert bad.fault is not None
    assert str(path) in bad.fault
    for run in json.loads(json_line(as_json(snapshot)))["runs"]:
        assert (run["fault"] is None) == (run["tag"] == "fine")


def test_a_line_is_named_and_the_run_is_read_again_once_it_is_repaired(tmp_path: Path) -> None:
    path = Home(tmp_path).log("d4")
    write_log(path, started(), stepped(1), stepped(2, loss=1e100))
    runs = Runs(Home(tmp_path), "here", lambda _: True)
    for _ in range(2):
        (run,) = runs.read(20.0)
        assert run.fault is not None
        assert "metrics.jsonl is damaged (line 3: loss: " in run.fault
    path.unlink()
    write_log(path, started(), stepped(1), stepped(2))
    (run,) = runs.read(20.0)
    assert (run.state, run.meter.step) == ("running", 2)


def test_numbers_at_the_bounds_are_shown(tmp_path: Path) -> None:
    path = Home(tmp_path).log("d4")
    huge = replace(stepped(2**63 - 1, 1e40, time=1.0), seconds=1e11)
    write_log(path, started(total=2**63 - 1), stepped(1), stepped(2, 1e-320), huge)
    with path.open("a") as file:
        file.write(event_to_json(stepped(3, time=1.0)).replace("10.0", "null") + "\n")
    snapshot = look(tmp_path).snapshot()
    assert snapshot.runs[0].fault is None
    json_line(as_json(snapshot))
    for width in (30, 80, 200):
        console = Console(width=width, file=io.StringIO())
        console.print(picture(snapshot, width=width, height=40))


@pytest.mark.parametrize(
    ("process", "alive", "age", "state"),
    [
        (HERE, True, 1.0, "running"),
        (HERE, True, SILENT_SECONDS + 1, "silent"),
        (HERE, False, 1.0, "died"),
        (HERE, False, 1e6, "died"),
        (THERE, False, 1.0, "running"),  # this machine cannot see its processes
        (THERE, True, SILENT_SECONDS + 1, "silent"),
        (None, True, 1.0, "running"),  # a version that published nothing
        (None, False, SILENT_SECONDS + 1, "silent"),
    ],
)
def test_the_state_follows_from_process_and_log(
    tmp_path: Path, process: Process | None, alive: bool, age: float, state: str
) -> None:
    write_log(Home(tmp_path).log("d4"), started(), stepped(1, time=1000.0))
    if process:
        write_status(tmp_path, "d4", 1000.0, process)
    run = read_runs(tmp_path, 1000.0 + age, alive)["d4"]
    assert (run.state, run.last_seen) == (state, 1000.0)


def test_a_mac_that_changed_its_name_is_still_this_one(tmp_path: Path) -> None:
    write_log(Home(tmp_path).log("d4"), started(), stepped(1, time=1000.0))
    write_status(tmp_path, "d4", 1000.0, Process(77, 1000.0, "at-home", "hardware"))
    for machine, state, host in (("hardware", "died", "here"), ("other", "running", "at-home")):
        runs = Runs(Home(tmp_path), "here", lambda _: False, machine)
        (run,) = runs.read(1001.0)
        assert run.state == state and run.status
        assert run.status.process.host == host
        runs.host = "on-the-train"  # while it is watched
        (run,) = runs.read(1001.0)
        assert run.state == state and run.status
        assert run.status.process.host == ("on-the-train" if host == "here" else host)


@pytest.mark.parametrize("ended", ["finished", "interrupted", "failed"])
def test_a_run_is_ended_if_its_status_says_so(tmp_path: Path, ended: str) -> None:
    write_log(Home(tmp_path).log("d4"), started(), stepped(1))
    write_status(tmp_path, "d4", 1000.0, ended=ended)
    assert read_runs(tmp_path, 1001.0, alive=False)["d4"].state == ended


@pytest.mark.parametrize("reason", ["finished", "interrupted"])
def test_a_log_alone_shows_that_a_run_ended(tmp_path: Path, reason: str) -> None:
    write_log(Home(tmp_path).log("d4"), started(), stepped(1), Ended(20.0, 1, reason))
    assert read_runs(tmp_path, 21.0)["d4"].state == reason


def test_a_run_that_is_watched_falls_silent_whatever_the_clocks_say(tmp_path: Path) -> None:
    """The run is on another machine, whose clock is set back, and so is this one's."""
    timer = [0.0]
    runs = Runs(Home(tmp_path), "here", lambda _: True, timer=lambda: timer[0])
    write_log(Home(tmp_path).log("d4"), started(), stepped(1))

    def state(seconds: float, now: float) -> str:
        timer[0] = seconds
        return runs.read(now)[0].state

    write_status(tmp_path, "d4", 10_000.0, THERE)
    assert state(0.0, 10_001.0) == "running"
    assert state(1.0, 13_601.0) == "running"  # our clock is set forward
    assert state(SILENT_SECONDS + 1, 6_400.0) == "silent"  # and back
    write_status(tmp_path, "d4", 9_000.0, THERE)  # its clock is set back
    assert state(SILENT_SECONDS + 2, 20_000.0) == "running"
    assert state(2 * SILENT_SECONDS + 3, 9_000.0) == "silent"


def test_the_speed_of_a_run_is_remembered(tmp_path: Path) -> None:
    write_log(Home(tmp_path).log("d4"), started(), *map(stepped, range(1, 6)))
    run = read_runs(tmp_path, 50.0)["d4"]
    assert run.seconds_left(50.0) == 950.0
    assert run.seconds_left(54.0) == 946.0
    assert run.seconds_left(40.0) == 950.0  # another host's clock
    assert read_runs(tmp_path, 1e6)["d4"].seconds_left(1e6) is None


def test_a_changed_number_of_steps_is_followed(tmp_path: Path) -> None:
    write_log(Home(tmp_path).log("d4"), started(), stepped(1))
    write_status(tmp_path, "d4", 10.0)
    assert read_runs(tmp_path, 11.0)["d4"].meter.total_steps == 100
    changed = Replanned(2.0, 1, 80, 100, "1h")
    write_log(Home(tmp_path).log("d4"), started(), stepped(1), changed, stepped(2))
    assert read_runs(tmp_path, 11.0)["d4"].meter.total_steps == 80


def test_checkpoints_are_listed_as_they_come_and_go(tmp_path: Path) -> None:
    home = Home(tmp_path)
    write_log(home.log("d4"), started(), stepped(1))
    runs = Runs(home, "here", lambda _: True)
    (run,) = runs.read(20.0)
    assert (run.saved_steps, run.saved) == ((), None)
    for step in (10, 9):
        (home.runs / "d4" / f"step_{step:06d}").mkdir(parents=True)
    (home.runs / "d4" / ".unfinished_step_000011").mkdir()
    os.utime(home.runs / "d4" / "step_000010", (15.0, 15.0))
    (run,) = runs.read(20.0)
    assert (run.saved_steps, run.saved) == ((9, 10), 15.0)
    shutil.rmtree(home.runs)
    (run,) = runs.read(20.0)
    assert run.saved_steps == ()


def test_runs_are_listed_by_start_and_vanish_when_deleted(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for tag, time in (("a", 30.0), ("b", 10.0), ("c", 20.0)):
        write_log(home.log(tag), started(time=time), stepped(1))
    (tmp_path / "logs" / "stray").touch()
    (tmp_path / "logs" / "empty").mkdir()
    runs = Runs(home, "here", lambda _: True)
    assert [run.tag for run in runs.read(40.0)] == ["empty", "b", "c", "a"]
    shutil.rmtree(tmp_path / "logs" / "b")
    assert [run.tag for run in runs.read(40.0)] == ["empty", "c", "a"]
    shutil.rmtree(tmp_path / "logs")
    assert runs.read(40.0) == []


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("mlxchat train --depth 4", "train --depth 4"),
        ("/venv/bin/python3.12 /venv/bin/mlxchat chat", "chat"),
        ("/Python.app/Contents/MacOS/Python -I /venv/bin/mlxchat data fetch", "data fetch"),
        ("uv run mlxchat train", ""),
        ("vim mlxchat", ""),
        ("python -m pytest mlxchat", ""),
        ("mlxchat", ""),
        ("python", ""),
        ("", ""),
    ],
)
def test_the_command_is_found_in_a_command_line(line: str, command: str) -> None:
    assert " ".join(command_of(line.split())) == command


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that calls itself mlxchat."""
    program = "import sys; sys.stdin.read()"
    process = subprocess.Popen(
        ["mlxchat", "-c", program], executable=sys.executable, stdin=subprocess.PIPE
    )
    yield process
    process.communicate()


def test_programs_are_found_with_their_memory(sleeper: subprocess.Popen[bytes]) -> None:
    (found,) = [p for p in machine_module.mlxchat_processes() if p.pid == sleeper.pid]
    assert found.command.startswith("-c import sys")
    assert found.resident > 2**20


def test_a_process_is_distinguished_from_a_later_one_with_its_id(
    sleeper: subprocess.Popen[bytes],
) -> None:
    me = this_process()
    assert me.pid == os.getpid()
    assert lives(me)
    assert not lives(Process(me.pid, me.started - 60, me.host))
    assert not lives(replace(me, started=me.started - 3600))
    assert me.booted is not None
    before = replace(me, started=me.started - 3600, booted=me.booted - 3600)
    assert lives(before)  # the clock was set by an hour since then
    child = machine_module.psutil.Process(sleeper.pid).create_time()
    assert lives(Process(sleeper.pid, child, me.host))
    sleeper.kill()
    wait_until(lambda: not lives(Process(sleeper.pid, child, me.host)))  # a zombie by then
    sleeper.wait(timeout=20)
    assert not lives(Process(sleeper.pid, child, me.host))


@pytest.mark.parametrize(
    ("some", "full", "level"),
    [("0.00", "0.00", "normal"), ("12.5", "0.10", "warning"), ("40.0", "20.0", "critical")],
)
def test_memory_pressure_is_read_from_linux(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, some: str, full: str, level: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    stalls = tmp_path / "memory"
    rest = "avg60=0.00 avg300=0.00 total=0"
    stalls.write_text(f"some avg10={some} {rest}\nfull avg10={full} {rest}\n")
    assert pressure(stalls) == level
    stalls.write_text("another kernel\n")
    assert pressure(stalls) is None
    assert pressure(tmp_path / "missing") is None


def test_disk_use_is_split_by_kind(tmp_path: Path) -> None:
    nothing = disk(Home(tmp_path / "not" / "there"))
    assert nothing == Disk(0, 0, 0, 0, nothing.free)
    assert nothing.free > 0
    for name, size in (
        ("base_data/shard_00000.parquet", 1),
        ("base_data_climbmix/.streamed/shard", 2),
        ("base_checkpoints/d4/step_000001/model.safetensors", 4),
        ("chatsft_checkpoints/d4/step_000001/config.json", 8),
        ("tokenizer/tokenizer.json", 16),
        ("tokenizer_builtin/tokenizer.json", 32),
        ("logs/d4/metrics.jsonl", 64),
        ("other/file", 128),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    found = disk(Home(tmp_path))
    assert found == Disk(3, 12, 48, 64, found.free)


def look(home: Path, now: float = 50.0, processes: tuple[MlxchatProcess, ...] = ()) -> Monitor:
    return Monitor(
        Home(home),
        clock=FakeClock(now),
        memory=lambda: HostMemory("here", 5 * GIB, 8 * GIB, 0, 0, "normal"),
        processes=lambda: list(processes),
        lives=lambda _: True,
    )


def test_json_has_everything_the_screen_shows(tmp_path: Path) -> None:
    write_log(Home(tmp_path).log("d4"), started(), *map(stepped, range(1, 5)), stepped(5, math.nan))
    write_status(tmp_path, "d4", 50.0)
    program = MlxchatProcess(99, 1.0, "chat", GIB)
    said = as_json(look(tmp_path, processes=(program,)).snapshot())
    said = json.loads(json.dumps(said, allow_nan=False))
    (run,) = said["runs"]
    assert (run["tag"], run["state"], run["step"], run["total_steps"]) == ("d4", "running", 5, 100)
    assert run["loss"] == pytest.approx(3.0)
    assert run["diverged"]
    assert run["seconds_left"] == 950.0
    assert run["status"]["memory"]["peak"] == 2 * GIB
    assert run["status"]["process"]["pid"] == 77
    assert said["machine"]["memory_total"] == 8 * GIB
    assert not said["machine"]["full"]
    assert said["processes"] == [{"pid": 99, "started": 1.0, "command": "chat", "resident": GIB}]


def test_a_machine_is_full_beyond_four_fifths() -> None:
    assert not HostMemory("here", 80, 100, 0, 0, None).full
    assert HostMemory("here", 81, 100, 0, 0, None).full


def test_the_monitor_writes_nothing(tmp_path: Path) -> None:
    assert look(tmp_path / "home").snapshot().runs == ()
    assert not (tmp_path / "home").exists()
