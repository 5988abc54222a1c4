import errno
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Group
from rich.text import Text

from mlxchat.telemetry.events import (
    Ended,
    Evaluated,
    Evaluating,
    Memory,
    Noted,
    Position,
    Progressed,
    Replanned,
    Sampled,
    Saved,
    Started,
    Stepped,
)
from mlxchat.telemetry.meter import Meter
from mlxchat.ui import output
from mlxchat.ui.console import Screen, answers, close_screens, error, say, say_json, table, warning
from mlxchat.ui.output import LiteralConsole, Output, console_for
from mlxchat.ui.tables import Row, Section, show
from mlxchat.ui.views import LiveView

MEMORY = Memory(2**30, 2**30, 0, 2**30, 2**33)


def started(step=0, total=100):
    return Started(0.0, "d4", step, total, 64, 10, None, "a chip", 1000)


def stepped(step, time):
    return Stepped(time, step, 3.0, 0.02, 0.5, 0.1, Position(1, 0, 2), MEMORY)


def progressed(done, task="shard_00001.parquet", total=1000, time=0.0):
    return Progressed(time, task, done, total, "bytes")


def lines_of(events):
    stream, now = io.StringIO(), [0.0]
    with Screen(stream=stream, timer=lambda: now[0]) as screen:
        for event in events:
            now[0] = event.time
            screen.show(event)
    return stream.getvalue().splitlines()


def steps_in(lines):
    return [int(match[1]) for line in lines if (match := re.match(r"step (\d+)/", line))]


def terminal(width=80, height=24):
    return LiteralConsole(file=io.StringIO(), force_terminal=True, width=width, height=height)


def test_plain_output_shows_every_slow_step():
    lines = lines_of([started(total=5), *(stepped(n, n * 2.0) for n in range(1, 6))])
    assert steps_in(lines) == [1, 2, 3, 4, 5]
    assert "d4" in lines[0] and "1,000 parameters" in lines[0]


def test_plain_output_shows_a_fast_step_a_second_and_the_first_and_the_last():
    events = [stepped(n, n * 0.125) for n in range(1, 31)]
    assert steps_in(lines_of([started(total=30), *events])) == [1, 9, 17, 25, 30]


@pytest.mark.parametrize("end", [[Saved(9.0, 7, "/x", 0.1), Ended(9.0, 7, "interrupted")], []])
def test_plain_output_shows_the_last_step_of_a_run_that_stops_early(end):
    lines = lines_of([started(), *(stepped(n, n * 0.01) for n in range(1, 8)), *end])
    assert steps_in(lines) == [1, 7]


@pytest.mark.parametrize(
    "event", [Saved(9.0, 3, "/x", 0.1), Noted(0.0, "waiting"), progressed(1000)]
)
def test_plain_output_shows_a_step_before_what_comes_after_it(event):
    lines = lines_of([started(), *(stepped(n, n * 0.01) for n in range(1, 4)), event])
    assert [line.split(",")[0] for line in lines[1:3]] == ["step 1/100", "step 3/100"]
    assert len(lines) == 4


def test_one_step_is_written_in_the_singular():
    assert lines_of([Ended(0.0, 1, "finished")]) == ["Finished 1 step in 0s."]


def test_plain_output_has_a_line_for_each_rare_event():
    lines = lines_of(
        [
            Noted(0.0, "training a [tokenizer] first"),
            started(),
            stepped(1, 0.0),
            Evaluating(0.0, 1, 1, 2),
            Evaluated(0.0, 1, 1.25, 3.5, 640, 1.0),
            Sampled(0.0, 1, "Once", " upon\n[bold]a\x1b[2J time"),
            Saved(0.0, 1, "/tmp/step_000001", 0.5),
            Ended(0.0, 1, "finished"),
        ]
    )
    assert lines[0] == "training a [tokenizer] first"
    assert "1.2500 bits per byte" in lines[3]
    assert lines[4] == 'step 1: sample after "Once": upon [bold]a[2J time'
    assert "/tmp/step_000001" in lines[5]
    assert lines[6].startswith("Finished")
    assert len(lines) == 7


def test_plain_output_marks_the_best_evaluation():
    bits = [(100, 1.25, True), (200, 1.0, True), (300, 1.5, False)]
    lines = lines_of([Evaluated(0.0, n, b, 3.5, 640, 1.0, best) for n, b, best in bits])
    assert lines == [
        "step 100: validation 1.2500 bits per byte, the best so far, loss 3.5000",
        "step 200: validation 1.0000 bits per byte, the best so far, loss 3.5000",
        "step 300: validation 1.5000 bits per byte (best: 1.0000, step 200), loss 3.5000",
    ]


def test_plain_output_has_one_line_for_a_file():
    done = [progressed(n, time=n / 100) for n in (0, 500, 1000, 1000)]
    assert lines_of(done) == ["shard_00001.parquet: 1.0 kB in 10s"]


def test_plain_output_says_how_far_it_is_where_it_would_be_quiet():
    told = [Progressed(5.0 * n, "finding a level", n, None, "levels") for n in range(4)]
    told += [Evaluating(15.0 + 4 * n, 0, n, 20) for n in range(1, 8)]
    assert lines_of(told) == [
        "finding a level: 2 levels",
        "evaluating: 2 of 20 batches (10%), 1m 12s left",
        "evaluating: 5 of 20 batches (25%), 1m 00s left",
    ]


def test_json_is_every_event_and_nothing_else():
    events = [Noted(0.0, "é"), started(), stepped(1, 0.0), Evaluating(0.0, 1, 1, 2), progressed(1)]
    stream = io.StringIO()
    with Screen(json=True, stream=stream) as screen:
        for event in events:
            screen.show(event)
    names = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert names == ["note", "started", "step", "evaluating", "progress"]


@pytest.mark.parametrize("width", [160, 80, 40])
def test_a_terminal_gets_a_panel_and_lines_above_it(width):
    console = terminal(width)
    with Screen(console=console, timer=lambda: 0.0) as screen:
        screen.show(started())
        for step in range(1, 10):
            screen.show(stepped(step, step * 1.0))
        screen.show(Sampled(0.0, 9, "Once", " [upon] a time"))
        screen.show(Ended(9.0, 9, "interrupted"))
    text = console.file.getvalue()
    panel = text[text.rindex("╭") :]
    assert text.index('sample after "Once": [upon]') < text.rindex("╭")
    assert "9/100" in panel and "3.0000" in panel
    assert panel.index("╯") < panel.index("Stopped after step 9")
    assert text.endswith("\x1b[?25h") or "\x1b[?25h" in panel  # the cursor is back


def test_panels_can_be_ended_from_outside():
    console = terminal()
    with Screen(console=console, timer=lambda: 0.0) as screen:
        screen.show(started())
        close_screens()
        console.print("why it ends")
        text = console.file.getvalue()
        assert text.index("\x1b[?25h") < text.index("why it ends")  # the cursor is back
        screen.show(stepped(1, 1.0))
    assert console.file.getvalue() == text


def test_a_terminal_gets_bars_with_the_sum_last():
    console, now = terminal(), [0.0]
    with Screen(console=console, timer=lambda: now[0]) as screen:
        screen.show(progressed(0, "all shards", 4000))
        screen.show(progressed(0))
        screen.show(progressed(0, "shard_00002.parquet"))
        now[0] = 5.0
        screen.show(progressed(500, time=-3600.0))  # the time of day was set back
        screen.show(progressed(1000, "shard_00002.parquet", time=-3600.0))
        screen.show(progressed(1500, "all shards", 4000, time=3600.0))
    text = console.file.getvalue()
    assert "shard_00002.parquet: 1.0 kB in 5s" in text
    last = text[text.rindex("shard_00001") :]
    assert "50%" in last and last.index("all shards") > 0
    assert "100 B/s" in last and "300 B/s" in last


def test_a_screen_shows_the_meter_that_a_resumed_run_brings():
    meter = Meter(step=50, elapsed=7200.0)
    console = terminal()
    with Screen(console=console, timer=lambda: 0.0) as screen:
        screen.follow(meter)
        for event in (started(step=50), stepped(51, 1.0)):
            meter.update(event)
            screen.show(event)
    assert "2h 00m" in console.file.getvalue()
    assert meter.elapsed == pytest.approx(7200.1)


def test_many_threads_may_report_at_once():
    console = terminal()
    with Screen(console=console) as screen:

        def load(name):
            for done in range(0, 1001, 20):
                screen.show(progressed(done, name))

        threads = [threading.Thread(target=load, args=(f"file {n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        screen.show(started())
        for step in range(1, 100):
            screen.show(stepped(step, step * 0.01))
        for thread in threads:
            thread.join(timeout=20)
        assert not any(thread.is_alive() for thread in threads)
    text = console.file.getvalue()
    assert all(f"file {n}: 1.0 kB" in text for n in range(8))
    screen.show(progressed(0))
    assert console.file.getvalue() == text  # the end is the end


class Broken(io.StringIO):
    """A stream that cannot be written to."""

    def __init__(self, number, terminal=False):
        super().__init__()
        self.number, self.terminal = number, terminal

    def isatty(self):
        return self.terminal

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
@pytest.mark.parametrize("json_lines", [True, False])
def test_a_stream_that_takes_nothing_more_ends_the_output_not_the_run(json_lines, number):
    with Screen(json=json_lines, stream=Broken(number)) as screen:
        for event in (started(), stepped(1, 0.0), stepped(2, 2.0), Ended(2.0, 2, "finished")):
            screen.show(event)


@pytest.mark.parametrize(
    ("number", "terminal", "is_failure"),
    [
        (errno.EPIPE, False, False),
        (errno.ECONNRESET, False, False),
        (errno.EIO, True, False),
        (errno.EIO, False, True),
        (errno.ENOSPC, False, True),
        (errno.EDQUOT, False, True),
        (errno.EBADF, False, True),
        (errno.ENOSPC, True, True),
    ],
)
def test_only_a_reader_that_left_is_no_failure(number, terminal, is_failure):
    out = Output(Broken(number, terminal))
    out.write("text")
    out.write("more")
    assert (out.failure is not None) == is_failure


def test_a_stream_that_its_owner_has_closed_takes_nothing_more():
    stream = io.StringIO()
    out = Output(stream)
    stream.close()
    out.write("text")
    assert out.failure is None


def test_output_into_head_ends_without_a_traceback():
    program = """
import sys
import termios
from mlxchat.telemetry.events import Noted
from mlxchat.ui.console import Screen, say
with Screen() as screen:
    for number in range(20000):
        screen.show(Noted(0.0, f"line {number}"))
say("after")
print("worked to the end", file=sys.stderr)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == "worked to the end\n"
    assert process.returncode == 0


def test_characters_that_the_encoding_lacks_become_question_marks():
    raw = io.BytesIO()
    stream = Output(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("2 – 3 \ud800\n")
    stream.flush()
    assert raw.getvalue() == b"2 ? 3 ?\n"


def test_a_terminal_of_size_0_is_one_of_unknown_size(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name in ("COLUMNS", "LINES"):
        monkeypatch.setenv(name, "0")
    assert min(console_for(Terminal()).size) > 0
    monkeypatch.setenv("COLUMNS", "50")
    assert console_for(Terminal()).width == 50


def test_an_error_is_two_lines_on_standard_error(capsys):
    error(f"no folder {'x' * 200} [red]", "Make one: mkdir [x]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"Error: no folder {'x' * 200} [red]\nMake one: mkdir [x]\n"


def test_a_warning_is_a_line_on_standard_error(capsys):
    warning(f"no [blas] {'x' * 200}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"Warning: no [blas] {'x' * 200}\n"


def test_lines_and_answers_are_printed_as_they_are(capsys):
    say("[bold]:smile: 12")
    answers([("What is [red]?", "A\ncolour.")])
    assert capsys.readouterr().out == "[bold]:smile: 12\n> What is [red]?\n  A colour.\n"


def test_table_aligns_numbers_and_cuts_nothing(capsys):
    table(["dataset", "shards"], [["[builtin]", 2], ["fineweb-edu", 1822]])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["dataset", "shards"]
    assert first.rstrip() == "[builtin]         2"
    assert second.rstrip() == "fineweb-edu   1,822"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_table_on_a_narrow_terminal_breaks_no_number_or_word(width, monkeypatch):
    console = terminal(width)
    monkeypatch.setattr("mlxchat.ui.console.console_for", lambda _: console)
    columns = ["weights", "stored as", "number", "bits each", "MB before", "MB after"]
    table(columns, [["embedding", "8 bits, groups of 64", 19_200, 9.0, 0.08, 0.02]])
    lines = Text.from_ansi(console.file.getvalue()).plain.splitlines()
    assert max(map(len, lines)) <= width
    assert {"embedding", "bits,", "19,200", "9.0", "0.02"} <= set(" ".join(lines).split())


@pytest.mark.parametrize("width", [80, 90, 111])
def test_scores_with_intervals_are_broken_between_words(width, monkeypatch):
    console = terminal(width)
    monkeypatch.setattr("mlxchat.ui.console.console_for", lambda _: console)
    columns = ["task", "examples", "right (95% interval)", "centered"]
    columns += [f"GPT-2 {size}" for size in ("124M", "355M", "774M", "1.56B")]
    scores = ["42.9% (21.4% to 67.4%)", "-0.1429", "57.9%", "65.6%", "68.9%", "71.4%"]
    table(columns, [["bigbench_operators", 14, *scores], ["copa", 14, *scores]])
    lines = Text.from_ansi(console.file.getvalue()).plain.splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join([*columns, "bigbench_operators", "copa", "14", *scores]).split()
    assert set(words) == set(" ".join(lines).split())
    assert len(lines) == {80: 6, 90: 4, 111: 3}[width]


@pytest.mark.parametrize("width", [40, 80])
def test_a_path_in_a_table_can_be_copied_from_a_narrow_terminal(width, monkeypatch):
    console, path = terminal(width), f"/home/{'a-long-name/' * 8}base_data"
    monkeypatch.setattr("mlxchat.ui.console.console_for", lambda _: console)
    table(["dataset", "shards", "folder"], [["mine", 2, path], [path, 3, "/short"]])
    lines = Text.from_ansi(console.file.getvalue()).plain.splitlines()
    shown = ["mine", "shards  2", "folder", path, path, "shards  3", "folder  /short"]
    assert [line.rstrip() for line in lines] == shown


HOSTILE = "a\x1b[31m\x1b]0;owned\x07\x9b2J\r\u202eb\x7f [red][/] :smile:"
HARMLESS = "a[31m]0;owned2Jb [red][/] :smile:"
HARMLESS_IN_ONE_LINE = "a[31m]0;owned2J b [red][/] :smile:"


def everything_printed_about(text, capsys):
    """What the functions that print anything print about a text."""
    say(text)
    error(text, text)
    warning(text)
    table([text], [[text]])
    answers([(text, text)])
    show([text], [Section(text, [Row(text, text, text)])])
    events = [
        Noted(0.0, text),
        Progressed(0.0, text, 5, 5, text),
        Started(0.0, text, 0, 3, 1, 1, None, text, 1),
        stepped(1, 0.0),
        Sampled(0.0, 1, text, text),
        Saved(0.0, 1, text, 0.1),
        Replanned(0.0, 1, 4, 3, text),
        Ended(0.0, 1, "finished"),
    ]
    with Screen() as screen:
        for event in events:
            screen.show(event)
    printed = capsys.readouterr()
    return printed.out + printed.err


def test_no_text_reaches_a_file_with_what_controls_a_terminal(capsys):
    printed = everything_printed_about(HOSTILE, capsys)
    assert {letter for letter in printed if not letter.isprintable()} == {"\n"}
    assert HARMLESS in printed and HARMLESS_IN_ONE_LINE in printed
    assert f"Error: {HARMLESS_IN_ONE_LINE}\n{HARMLESS_IN_ONE_LINE}\n" in printed


def test_no_text_reaches_a_terminal_with_what_controls_it(capsys, monkeypatch):
    """Shown on a terminal, hostile text has the control sequences that its harmless twin has."""
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr("mlxchat.ui.views.REFRESHES_PER_SECOND", 0.001)
    twin = everything_printed_about(HARMLESS, capsys)
    hostile = everything_printed_about(HOSTILE, capsys)
    assert "\x1b[" in twin
    shape = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")
    assert shape.findall(hostile) == shape.findall(twin)


@pytest.mark.parametrize("value", [HOSTILE, [HOSTILE], {HOSTILE: HOSTILE}, Path(HOSTILE)], ids=type)
def test_json_has_no_control_characters_and_keeps_the_text(value, capsys):
    say_json(value)
    printed = capsys.readouterr().out
    assert printed.isascii() and printed[:-1].isprintable() and printed[-1] == "\n"
    again = json.loads(printed)
    assert again == (str(value) if isinstance(value, Path) else value)


def test_json_has_null_for_what_is_no_number(capsys):
    say_json({"a": [math.nan, (math.inf, 1.5)]})
    assert capsys.readouterr().out == '{"a": [null, [null, 1.5]]}\n'


def test_ui_imports_neither_mlx_nor_training():
    program = "import sys, mlxchat.ui.console; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {name for name in loaded if name.split(".")[0] == "mlx"}
    assert not {name for name in loaded if name.startswith("mlxchat.train")}


def test_the_time_of_an_evaluation_is_foretold_without_that_of_compiling():
    console = LiteralConsole(file=io.StringIO(), force_terminal=True, width=80, height=24)
    now = [0.0]
    with Screen(console=console, timer=lambda: now[0]) as screen:
        screen.show(started())
        for batch, time in ((0, 0.0), (1, 60.0), (2, 61.0), (3, 62.0)):
            now[0] = time
            screen.show(Evaluating(time, 0, batch, 10))
    assert "30.0%  7s left" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def printed_at(width, monkeypatch, print_all):
    console = terminal(width)
    monkeypatch.setattr("mlxchat.ui.console.console_for", lambda stream: console)
    print_all()
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).splitlines()


def test_the_words_of_an_error_are_not_broken(monkeypatch):
    folder = "/home/ada/.cache/mlxchat/base_data_of_my_novels"
    problem = f"There is no data: the folder {folder} does not exist."
    remedy = "Get some: mlxchat data fetch --from 'a novel.txt'"
    assert printed_at(40, monkeypatch, lambda: error(problem, remedy)) == [
        "Error: There is no data: the folder",
        f"{folder} does not exist.",  # the terminal breaks it, so that it can be copied
        "Get some:",
        "mlxchat data fetch --from 'a novel.txt'",
    ]


@pytest.mark.parametrize("width", [40, 80, 160])
def test_no_line_breaks_a_path_an_address_or_a_command(width, monkeypatch):
    address = "http://a-machine-with-a-rather-long-name.local:8000/v1"
    path = f"/Users/ada/{'deep/' * 20}d12-mlx-lm"
    command = f"mlxchat chat --checkpoint '/Users/ada/my {'deep/' * 20}model' --temperature 0.5"
    prose = "The model is quantized, so its weights are exported as ordinary numbers of 16 bits. "

    def print_all():
        say(f"{prose}The base_url for OpenAI's clients: {address}")
        say(f"{prose}Written to {path}")
        warning(f"{prose}Talk to it: {command}")
        error(f"{path} is no folder.", f"{prose}Make one: {command}")

    lines = printed_at(width, monkeypatch, print_all)
    for whole in (address, path, command):
        assert any(whole in line for line in lines)
    others = [line for line in lines if path not in line and "mlxchat chat" not in line]
    assert max(map(len, others)) <= max(width, len(address))
    words = " ".join(lines).split()
    assert words == [
        *f"{prose}The base_url for OpenAI's clients: {address}".split(),
        *f"{prose}Written to {path}".split(),
        *f"Warning: {prose}Talk to it: {command}".split(),
        *f"Error: {path} is no folder. {prose}Make one: {command}".split(),
    ]


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_note_is_broken_between_words_and_its_path_is_whole(width):
    console = terminal(width)
    path = f"/Users/ada/{'deep/' * 40}d12-mlx-lm"
    note = f"It is quantized: its weights are exported as numbers, to {path} in that folder."
    with Screen(console=console) as screen:
        screen.show(Noted(0.0, note))
    lines = Text.from_ansi(console.file.getvalue()).plain.splitlines()
    assert " ".join(lines) == note and any(line.startswith(path) for line in lines)
    assert all(len(line) <= width for line in lines if path not in line)


def test_output_that_is_no_terminal_is_not_broken(capsys):
    text = f"{'words ' * 100}mlxchat chat --model-tag fox"
    say(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_a_process_that_ends_at_once_leaves_the_terminal_as_it_was(monkeypatch):
    keyboard, screen = pty.openpty()
    with os.fdopen(screen) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(output, "_has_keyboard", lambda: True)
        before = termios.tcgetattr(stream)
        with output.control_keys_hidden():
            assert termios.tcgetattr(stream) != before
            output.show_control_keys()
            assert termios.tcgetattr(stream) == before
        assert termios.tcgetattr(stream) == before
    os.close(keyboard)


class SlowPanel:
    """As many lines as it is told when its drawing begins, which takes some time."""

    height = 5

    def __rich_console__(self, *_: object) -> Iterator[Text]:
        height = self.height
        time.sleep(0.001)
        yield from (Text("panel") for _ in range(height))


def test_lines_of_several_threads_and_a_panel_that_grows_stay_whole(monkeypatch):
    panel = SlowPanel()
    monkeypatch.setattr("mlxchat.ui.views.REFRESHES_PER_SECOND", 500)
    monkeypatch.setattr(LiveView, "_picture", lambda _: Group(panel))
    console = LiteralConsole(file=io.StringIO(), force_terminal=True, width=80, height=24)
    with Screen(console=console) as screen:
        screen.show(started())

        def say_thirty(name: str) -> None:
            for number in range(30):
                panel.height = 5 + number % 3
                screen.show(Noted(0.0, f"{name} {number}"))

        others = [threading.Thread(target=say_thirty, args=(name,)) for name in ("a", "b")]
        for thread in others:
            thread.start()
        say_thirty("run")
        for thread in others:
            thread.join()
    lines = [line for line in on_a_terminal(console.file.getvalue()) if line]
    assert lines.count("panel") == panel.height == len(lines) - 91  # and the plan
    assert set(lines) >= {f"{name} {n}" for name in ("run", "a", "b") for n in range(30)}


def on_a_terminal(written: str) -> list[str]:
    """Return the lines of an endless terminal after something was written."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\n|\r|[^\x1b\n\r]+", written):
        if part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part[0] not in "\r\x1b":
            lines[row] += part
    return lines
