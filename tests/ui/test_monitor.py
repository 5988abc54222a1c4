"""The screen of the monitor at any size, and the program in a terminal and in a pipe."""

import fcntl
import io
import json
import math
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from mlxchat.home import Home
from mlxchat.monitor.machine import Disk, HostMemory, MlxchatProcess
from mlxchat.monitor.runs import Snapshot, State, WatchedRun
from mlxchat.telemetry.events import (
    CoreMeasured,
    Evaluated,
    Judged,
    Memory,
    Position,
    Started,
    Stepped,
)
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.status import Process, Status
from mlxchat.ui.monitor import picture, watch
from mlxchat.ui.text import Cell, flow, grid

GIB = 2**30
DRAWN = {chr(code) for code in range(0x2801, 0x2900)}  # the dots of a curve
NOW = 1_795_000_000.0
MEMORY = Memory(3 * GIB, 4 * GIB, GIB // 2, 12 * GIB, 36 * GIB)
MACHINE = HostMemory("here", 12 * GIB, 36 * GIB, GIB // 2, 2 * GIB, "normal")
ENDED = {"finished": "finished", "interrupted": "interrupted", "failed": "failed"}


def run(
    tag: str = "d12",
    state: State = "running",
    pid: int = 101,
    host: str = "here",
    last_seen: float = NOW - 5,
    loss: float | None = None,
    saved: tuple[int, ...] = (1000, 1100, 1200, 1300),
    failure: str | None = None,
) -> WatchedRun:
    meter, latest = Meter(), None
    meter.update(Started(0.0, tag, 0, 20_000, 65536, 10**9, None, "Apple M3 Pro", 186))
    for step in range(1, 1301):
        value = 3 + 7 * math.exp(-step / 100) if loss is None else loss
        latest = Stepped(last_seen, step, value, 0.02, 0.12, 28.0, Position(1, 2, 50), MEMORY)
        meter.update(latest)
    meter.update(Evaluated(last_seen, 1300, 1.25, 3.0, 640, 1.0))
    status = Status(
        last_seen,
        Process(pid, 1.0, host),
        "evaluating 3/40",
        1300,
        20_000,
        MEMORY,
        ENDED.get(state),
        failure,
    )
    return WatchedRun(
        tag, state, last_seen, meter, latest, status, saved, NOW - 125 if saved else None
    )


def snapshot(
    *runs: WatchedRun, processes: tuple[MlxchatProcess, ...] = (), machine: HostMemory = MACHINE
) -> Snapshot:
    disk = Disk(812_300_000_000, 340_500_000_000, 2_400_000, 812_000_000, 120_300_000_000)
    return Snapshot(NOW, "/Users/someone/.cache/mlxchat", machine, disk, runs, processes)


def drawn(seen: Snapshot, width: int = 80, height: int | None = 40, footer: str = "") -> str:
    console = Console(width=width, height=200, file=io.StringIO(), color_system=None)
    console.print(picture(seen, width=width, height=height, footer=footer))
    return console.file.getvalue()


THREE = snapshot(
    run("d12"),
    run("d4", "died", pid=102, last_seen=NOW - 125),
    run("d20", pid=103),
    processes=(
        MlxchatProcess(101, 1.0, "train --depth 12", 6 * GIB),
        MlxchatProcess(103, 1.0, "train --depth 20", 7 * GIB),
        MlxchatProcess(104, 2.0, "chat --model-tag d4 -p \x1b[31m" + "word " * 40, GIB),
    ),
)


@pytest.mark.parametrize("width", [60, 80, 100, 160, 240])
@pytest.mark.parametrize("height", [24, 30, 40, 60])
def test_three_runs_fit_at_any_size(width: int, height: int) -> None:
    text = drawn(THREE, width, height, "q quits")
    lines = text.splitlines()
    assert {cell_len(line) for line in lines[:-1]} == {width}
    assert len(lines) <= height
    assert lines[-1] == "q quits"
    numbers = ["1,300/20,000", "3.0000", "6d 01h", "died", "3.2 GB", "4.3 GB", "536.9 MB"]
    facts = ["12.9 of 38.7 GB", "33.3%", "normal", "0.5 of 2.1 GB", "812.3 GB", "340.5 GB"]
    for shown in [*numbers, *facts, "2.4 MB", "812.0 MB", "120.3 GB", "101", "103", "104"]:
        assert shown in text, shown
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 60, 100])
def test_scores_have_their_intervals_where_there_is_room(width: int) -> None:
    scored = run()
    ends = (0.52, 0.44, 0.6, 0.71, 0.61, 0.79)
    scored.meter.update(Judged(NOW, 1300, 200, 8, 0.5, *ends, 31.0, 9.0))
    scored.meter.update(CoreMeasured(NOW, 1300, 0.1139, 0.008, 500, 60.0, {}))
    text = drawn(snapshot(scored), width)
    assert {cell_len(line) for line in text.splitlines()} == {width}
    assert "52.0%" in text and "0.1139" in text
    intervals = [shown in text for shown in ("(44.0% to 60.0%)", "(0.0982 to 0.1296)")]
    assert intervals == [width >= 60] * 2


def test_a_panel_each_with_its_curve() -> None:
    text = drawn(THREE, 80, 60)
    for shown in (
        "d12 · evaluating 3/40 · process 101 on here",
        "tokens/s       2,341",
        "time           10h 06m, 6d 01h left",
        "checkpoints    … 1,100, 1,200, 1,300",
        "last saved     2m 05s ago",
        "train d12",
        "train d20",
        "chat --model-tag d4",
    ):
        assert shown in text, shown
    assert text.count("loss ") >= 6  # three numbers and three axes
    assert "…" in text.splitlines()[-2]  # of the commands only one that has no room is cut


def test_the_curves_of_runs_go_first_where_room_is_short() -> None:
    panels = drawn(THREE, 80, 36).split("╭")
    (died,) = [panel for panel in panels if "d4 · died" in panel]
    alive = [panel for panel in panels if "evaluating" in panel]
    assert not DRAWN & set(died)
    assert all(DRAWN & set(panel) for panel in alive)


def test_a_pipe_gets_everything() -> None:
    many = snapshot(*(run(f"d{index}", last_seen=NOW - index) for index in range(30)))
    text = drawn(many, 100, None)
    assert text.count("evaluating 3/40") == 30


def test_runs_of_long_ago_get_a_line_and_are_counted_where_there_is_no_room() -> None:
    old = [run(f"d{index}", "finished", last_seen=NOW - 9000 * index) for index in range(1, 60)]
    lines = drawn(snapshot(run("new"), *old)).splitlines()
    assert len(lines) == 40
    assert any("earlier runs" in line for line in lines)
    listed = [line.split()[2] for line in lines if line.startswith("│ finished")]
    assert listed == [f"d{index}" for index in range(1, len(listed) + 1)]
    assert any(f"and {59 - len(listed)} more" in line for line in lines)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (run(state="died"), ["killed or crashed", "5s ago", "resumes from step 1,300"]),
        (run(state="died", saved=()), ["nothing was saved", "checkpoints    none"]),
        (
            run(state="silent", last_seen=NOW - 125),
            ["No sign of life since", "2m 05s ago", "process 101"],
        ),
        (run(state="finished"), ["Finished on"]),
        (run(state="interrupted"), ["Stopped on", "resumes from step 1,300"]),
        (run(state="failed", failure="No\nroom \x1b[2J left."), ["Failed on", "No room [2J left."]),
        (run(loss=math.nan), ["nan"]),
    ],
)
def test_the_screen_shows_the_facts_of_a_run(shown: WatchedRun, words: list[str]) -> None:
    text = " ".join(drawn(snapshot(shown)).replace("│", " ").split())
    for word in words:
        assert " ".join(word.split()) in text, word


def test_a_run_without_steps_or_without_files_is_shown() -> None:
    begun = WatchedRun("d4", "running", NOW, Meter(), None, None, (), None)
    lost = WatchedRun("d6", "silent", None, Meter(), None, None, (), None)
    text = drawn(snapshot(begun, lost))
    assert "step 0/0" in text
    assert "earlier runs" in text


def test_an_unreadable_run_is_shown_with_the_reason_beside_the_others() -> None:
    fault = "/home/logs/d4/status.json is damaged (time: it is not)."
    lost = WatchedRun("d4\n\x1b[2J", "unreadable", None, Meter(), None, None, (5,), None, fault)
    text = drawn(snapshot(lost, run("d6")))
    assert "d4 [2J · unreadable" in text and "d6 · " in text
    assert "It cannot be watched: /home/logs/d4/status.json is damaged (time: it is not)." in (
        " ".join(text.replace("│", " ").split())
    )
    small = drawn(snapshot(lost, run("d6")), height=14)
    assert "unreadable  d4 [2J" in small and "running" in small


def test_a_run_on_another_machine_is_shown_as_such() -> None:
    text = drawn(snapshot(run(host="there"), processes=(MlxchatProcess(101, 1.0, "chat", GIB),)))
    (there,) = [line for line in text.splitlines() if "train d12 on there" in line]
    assert "4.3 GB" in there
    assert "–" in there  # what it holds in all cannot be seen from here
    assert any("101  chat" in line for line in text.splitlines())


def test_a_full_machine_is_warned_of() -> None:
    assert "swap, which slows" not in drawn(
        snapshot(machine=replace(MACHINE, memory_used=28 * GIB))
    )
    full = drawn(snapshot(machine=replace(MACHINE, memory_used=30 * GIB, pressure="critical")))
    assert "Memory is 83% full" in full
    assert "critical" in full


def test_of_a_mac_its_own_word_is_shown() -> None:
    busy = replace(MACHINE, memory_used=34 * GIB, mac=True)
    assert "swap" not in drawn(snapshot(machine=busy)).replace("swap 0.5 of", "")
    short = drawn(snapshot(machine=replace(busy, pressure="warning", memory_used=12 * GIB)))
    assert "Memory pressure is warning: macOS is compressing memory" in short


def test_an_empty_home_says_what_to_do() -> None:
    text = drawn(snapshot(machine=replace(MACHINE, pressure=None, swap_total=0)))
    assert "mlxchat train" in text
    assert "swap none" in text
    assert "pressure" not in text


def test_cells_flow_and_a_grid_cuts_only_what_has_no_room() -> None:
    cells = [Cell("a", "1"), Cell("bb", "22"), Cell("ccc", "333")]
    assert [line.plain for line in flow(cells, 12, 3)] == ["a 1   bb 22", "ccc 333"]
    rows = [("1", "a long command", "9.0"), ("22", "short", "10.0")]
    lines = [line.plain for line in grid(("id", "what", "size"), rows, 17, texts=2)]
    assert lines == ["id  what     size", "1   a long…   9.0", "22  short    10.0"]


def test_watch_looks_after_each_interval_and_redraws_at_another_size() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    now, looks, drawings = [0.0], [], []

    def pressed(seconds: float) -> bool:
        now[0] += seconds
        if now[0] == 2.5:
            console.width = 100
        return now[0] >= 5

    def look() -> float:
        looks.append(now[0])
        return now[0]

    def draw(seen: float, width: int, height: int) -> Text:
        drawings.append((seen, width, height))
        return Text("picture")

    watch(console, look, draw, 2.0, pressed, timer=lambda: now[0])
    assert looks == [0.0, 2.0, 4.0]
    assert drawings == [(0.0, 80, 24), (2.0, 80, 24), (2.0, 100, 24), (4.0, 100, 24)]
    text = console.file.getvalue()
    assert text.index("\x1b[?1049h") < text.index("picture") < text.index("\x1b[?1049l")


def read_until(controller: int, awaited: bytes) -> bytes:
    """What a terminal is sent, up to the awaited bytes."""
    shown, deadline = b"", time.monotonic() + 20
    while awaited not in shown:
        ready, _, _ = select.select([controller], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {awaited!r} in {shown!r}"
        shown += os.read(controller, 4096)
    return shown


COMMAND = [sys.executable, "-c", "from mlxchat.cli.app import main; main()", "monitor"]


@pytest.fixture
def ended(home: Path) -> Home:
    """A home with the log of a run that is over."""
    log = Home(home).log("d4")
    log.parent.mkdir(parents=True)
    log.write_text('{"event": "ended", "time": 1000.0, "step": 3, "reason": "finished"}\n{"ev')
    return Home(home)


@pytest.mark.parametrize("options", [[], ["--once"]])
def test_in_a_pipe_there_is_one_picture_without_control_characters(
    ended: Home, options: list[str]
) -> None:
    result = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=True)
    assert "finished" in result.stdout
    assert all(letter.isprintable() for letter in result.stdout.replace("\n", ""))


def test_json_is_one_object_and_mlx_is_not_imported(ended: Home) -> None:
    script = (
        "import sys\n"
        "from mlxchat.cli.monitor import monitor_command\n"
        "monitor_command(json=True)\n"
        "heavy = {'mlx', 'mlx.core', 'pyarrow', 'httpx', 'tiktoken', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    (run,) = json.loads(said)["runs"]
    assert (run["tag"], run["state"]) == ("d4", "finished")


def test_an_interval_for_one_picture_is_a_usage_error() -> None:
    for other in ("--once", "--json"):
        result = subprocess.run([*COMMAND, "--interval", "1", other], capture_output=True)
        assert result.returncode == 2
        assert b"--interval" in result.stderr


@pytest.mark.parametrize("ending", ["q", "Ctrl-C"])
def test_on_a_terminal_it_ends_at_a_key_and_leaves_the_terminal_as_it_was(
    ended: Home, ending: str
) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    before = termios.tcgetattr(terminal)
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(
        COMMAND,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        start_new_session=True,
    )
    shown = read_until(controller, b"q quits")
    if ending == "q":
        os.write(controller, b"xq")
    else:
        process.send_signal(signal.SIGINT)
    shown += read_until(controller, b"\x1b[?1049l")
    assert process.wait(timeout=20) == 0
    assert termios.tcgetattr(terminal) == before
    assert b"Traceback" not in shown
    os.close(controller)
    os.close(terminal)


TRAIN = (
    "train --dataset builtin --depth 1 --max-seq-len 32 --device-batch-size 4 --vocab-size 300 "
    "--total-batch-size 256 --model-tag killed --eval-tokens 512 --save-every 5 --json "
    "--num-iterations 100000"
).split()


@pytest.mark.slow
def test_a_real_run_is_watched_and_its_death_is_seen(home: Path) -> None:
    def seen() -> dict[str, object]:
        command = [*COMMAND, "--json"]
        said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        (run,) = said["runs"]
        return dict(run)

    process = subprocess.Popen([*COMMAND[:-1], *TRAIN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    saved = (line for line in process.stdout if json.loads(line)["event"] == "saved")
    assert len(list(islice(saved, 2))) == 2
    running = seen()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    died = seen()
    assert (running["state"], died["state"]) == ("running", "died")
    assert running["saved_steps"]
    assert isinstance(died["status"], dict)
    assert died["status"]["process"]["pid"] == process.pid
    assert died["status"]["memory"]["peak"] > 0
    assert died["seconds_left"] is None
