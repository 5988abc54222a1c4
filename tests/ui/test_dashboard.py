import io
import math
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from mlxchat.harmless import harmless
from mlxchat.telemetry.events import (
    CoreMeasured,
    Drawing,
    Evaluated,
    Evaluating,
    Judged,
    Memory,
    Position,
    Progressed,
    Rewarded,
    Sampled,
    Started,
    Stepped,
)
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.dashboard import curve, dashboard
from mlxchat.ui.text import LEAST_BAR, TaskProgress, amount, bars, in_one_line

GIB = 2**30


def run(steps=300, peak_flops=7.4e12, loss=None, machine_used=12 * GIB, total=20_000):
    """A meter and the last step of a run whose loss falls from 10 to 3."""
    meter, step = Meter(), None
    shape = ("d12", 0, total, 65536, 10**9)
    meter.update(Started(0.0, *shape, peak_flops, "Apple M3 Pro", 186, matmul_flops=5.7e12))
    for index in range(1, steps + 1):
        memory = Memory(3 * GIB, 4 * GIB, GIB // 2, machine_used, 36 * GIB)
        value = 3 + 7 * math.exp(-index / 40) if loss is None else loss
        position = Position(1, 2, 50)
        step = Stepped(28.0 * index, index, value, 0.02, 0.1234, 28.0, position, memory)
        meter.update(step)
    return meter, step


def drawn(renderable, width=80, color=None):
    console = Console(
        width=width,
        height=100,
        file=io.StringIO(),
        force_terminal=color is not None,
        color_system=color,
    )
    console.print(renderable)
    return console.file.getvalue()


SAMPLE = Sampled(0.0, 250, "The capital", " of [red]France[/x]\n\n\x1b[31m is " + "very " * 100)
NUMBERS = (
    "300/20,000",
    "1.5%",
    "2.2",
    "1.3500",
    "1.3000",
    "0.02",
    "0.123",
    "2,341",
    "31.6%",
    "41.1%",
    "2h 20m",
    "6d 09h",
    "epoch 1, shard 3/50",
    "3.2 GB",
    "4.3 GB",
    "536.9 MB",
    "12.9 of 38.7 GB",
)


@pytest.mark.parametrize("width", [160, 120, 80, 60, 40])
@pytest.mark.parametrize("height", [24, 40])
def test_no_number_is_cut_and_every_line_fits(width, height):
    meter, latest = run(loss=2.2)
    for step, bits in ((250, 1.30), (300, 1.35)):
        meter.update(Evaluated(0.0, step, bits, 3.0, 640, 1.0))
    text = drawn(dashboard(meter, latest, width=width, height=height, sample=SAMPLE), width)
    lines = text.splitlines()
    assert {cell_len(line) for line in lines} == {width}
    assert len(lines) <= height
    for number in NUMBERS:
        assert number in text, number
    assert "\x1b" not in text


REWARDED = Rewarded(0.0, 300, 0.43, 0.4, 0.12, 0.25, 31.6, 0.02, 0.081, 8_100, 12_000, 1.5)
JUDGED = Judged(0.0, 300, 200, 8, 0.5, 0.52, 0.44, 0.6, 0.71, 0.61, 0.79, 31.0, 9.0, best=True)


@pytest.mark.parametrize("width", [160, 120, 80, 50, 40])
def test_a_run_by_rewards_shows_them_in_place_of_the_loss(width):
    meter, latest = run(loss=2.2)
    for step in range(1, 300):
        meter.update(replace(REWARDED, step=step))
    meter.update(JUDGED)
    under_way = Drawing(0.0, 300, 64, 256)
    panel = dashboard(meter, latest, width=width, height=40, sample=SAMPLE, under_way=under_way)
    text = drawn(panel, width)
    assert {cell_len(line) for line in text.splitlines()} == {width}
    shown = (
        "sampling answers 64/256",
        "0.430",
        "52.0% (44.0% to 60.0%)" if width >= 50 else "52.0%",
        "71.0% (61.0% to 79.0%)" if width >= 50 else "71.0%",
        "12%",
        "25%",
        "0.081",
    )
    for number in (*shown, "31.6 tokens", "2%", "5,400 tokens/s", "453 tokens/s"):
        assert number in text, number
    assert "2.2000" not in text


@pytest.mark.parametrize("width", [20, 30, 40, 80, 200])
@pytest.mark.parametrize("height", [4, 10, 16, 20])
def test_it_fits_whatever_the_size(width, height):
    meter, latest = run()
    evaluating = Evaluating(0.0, 300, 1, 4)
    panel = dashboard(
        meter, latest, width=width, height=height, sample=SAMPLE, under_way=evaluating
    )
    lines = drawn(panel, width).splitlines()
    assert {cell_len(line) for line in lines} == {width}
    assert len(lines) <= max(height, 5)


def test_the_best_evaluation_is_shown_with_its_step():
    meter, latest = run()
    for step, bits in ((100, 1.3), (200, 1.2), (300, 1.35)):
        meter.update(Evaluated(0.0, step, bits, 3.0, 640, 1.0))
    text = drawn(dashboard(meter, latest))
    assert "1.3500, step 300" in text and "1.2000, step 200" in text


@pytest.mark.parametrize(("width", "shown"), [(40, False), (80, True), (160, True)])
def test_an_evaluation_says_how_long_it_will_take_where_there_is_room(width, shown):
    meter, _ = run()
    under_way = Evaluating(0.0, 0, 50, 200)
    panel = dashboard(meter, None, width=width, height=24, under_way=under_way, left=754.0)
    text = drawn(panel, width)
    assert "evaluating 50/200" in text and "25.0%" in text
    assert ("25.0%  12m 34s left" in text) == shown


def test_an_evaluation_that_is_the_best_is_shown_once_with_its_step():
    meter, latest = run()
    meter.update(Evaluated(0.0, 250, 1.3, 3.0, 640, 1.0))
    text = drawn(dashboard(meter, latest))
    assert "1.3000, step 250" in text and "best" not in text


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (40, "-0.0123 "),
        (50, "-0.0123 (-0.0282 to 0.0036)"),
        (80, "-0.0123 (-0.0282 to 0.0036)"),
        (160, "-0.0123 (-0.0282 to 0.0036)"),
    ],
)
def test_core_is_shown_with_its_interval_where_there_is_room(width, shown):
    meter, latest = run()
    meter.update(CoreMeasured(0.0, 200, -0.0123, 0.0081, 500, 60.0, {}))
    assert shown in drawn(dashboard(meter, latest, width=width), width)


def test_curve_and_sample_appear_where_there_is_room():
    meter, latest = run()
    text = drawn(dashboard(meter, latest, width=80, height=24, sample=SAMPLE))
    assert 'sample after "The capital"' in text
    assert "of [red]France[/x]" in text
    assert "9.8" in text and "⠉" in text
    assert "⠉" not in drawn(dashboard(meter, latest, width=80, height=10, sample=SAMPLE))


def test_unknown_numbers_are_left_out():
    meter, latest = run(peak_flops=None)
    text = drawn(dashboard(meter, latest))
    assert "MFU" not in text
    assert "bits per byte" not in text
    before = drawn(dashboard(Meter()))
    assert "step 0/0" in before and "tokens/s" in before
    fresh = Meter()
    fresh.update(Started(0.0, "d12", 0, 100, 64, 10, 1e12, "chip", 1))
    assert "0/100" in drawn(dashboard(fresh))


def test_clocks_keep_running_during_a_long_step():
    meter, latest = run(steps=4, total=6)
    text = drawn(dashboard(meter, latest, waited=10.0))
    assert "2m 02s" in text and "46s" in text


@pytest.mark.parametrize("width", [160, 80, 40])
def test_a_first_step_that_takes_long_says_why(width):
    meter = Meter()
    meter.update(Started(0.0, "d12", 0, 100, 64, 10, 1e12, "chip", 1))
    text = drawn(dashboard(meter, waited=31.0, width=width), width)
    assert "compiling the first step, 31s so far" in text
    assert {cell_len(line) for line in text.splitlines()} == {width}
    assert "compiling" not in drawn(dashboard(meter, waited=1.0))
    assert "compiling" not in drawn(dashboard(*run(), waited=31.0))


@pytest.mark.parametrize("width", [160, 80, 40])
def test_the_peak_is_shown_beside_its_estimate(width):
    meter, latest = run()
    meter.started = replace(meter.started, estimated_memory=int(4.4 * GIB))
    text = drawn(dashboard(meter, latest, width=width, height=24), width)
    assert "4.3 GB of ~4.7 GB" in text
    assert {cell_len(line) for line in text.splitlines()} == {width}


def test_evaluation_has_a_bar():
    meter, latest = run()
    text = drawn(dashboard(meter, latest, under_way=Evaluating(0.0, 300, 1, 4)))
    assert "evaluating 1/4" in text and "25.0%" in text


def test_a_full_machine_and_a_diverged_run_are_coloured():
    calm = drawn(dashboard(*run(), width=80), color="standard")
    full = drawn(dashboard(*run(machine_used=30 * GIB), width=80), color="standard")
    assert "\x1b[1;33m32.2 of 38.7 GB" in full
    assert "\x1b[1;33m" not in calm
    assert "\x1b[1;31mnan" in drawn(dashboard(*run(loss=math.nan), width=80), color="standard")


def test_curve_goes_from_the_upper_left_to_the_lower_right():
    rows = curve([(0, 1.0), (100, 0.0)], width=10, height=4)
    assert [len(row) for row in rows] == [10] * 4
    assert rows[0][0] != " " and rows[3][9] != " "
    assert rows[0][9] == " " and rows[3][0] == " "
    assert set(curve([(0, 1.0), (9, 1.0)], width=4, height=2)[1]) == {"⣀"}


def test_amounts_have_units_and_text_is_harmless():
    assert amount(95_100_000, "bytes") == "95.1 MB"
    assert amount(512, "bytes") == "512 B"
    assert amount(1234, "documents") == "1,234 documents"
    assert [amount(count, "steps") for count in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    units = ("batches", "questions", "bytes")
    assert [amount(1, unit) for unit in units] == ["1 batch", "1 question", "1 B"]
    assert amount(2, "batches") == "2 batches"
    assert in_one_line("a\n\n b\t\x1b[2Jc\x07\x9b") == "a b [2Jc"
    assert in_one_line("two  blanks\r\x85\u2028 and\u202e \u20691") == "two  blanks and 1"
    assert harmless("a\r\n\tb\x7f\u2066") == "a\n\tb"
    assert harmless("naïve مرحبا 👩‍👩‍👧 \u3000") == "naïve مرحبا 👩‍👩‍👧 \u3000"


def task(name="shard_00003.parquet", done=50_000_000, total=100_000_000, unit="bytes"):
    result = TaskProgress(Progressed(0.0, name, 0, total, unit), 0.0)
    result.update(Progressed(0.0, name, done, total, unit), 10.0)
    return result


def test_bars_show_as_much_as_fits():
    tasks = [task(), task("all shards", done=100_000_000, total=10**9)]
    wide, narrow = (drawn(bars(tasks, width=w, now=10.0), w).splitlines() for w in (120, 40))
    assert wide[0].split()[0] == "shard_00003.parquet"
    for part in ("50%", "10s", "5.0 MB/s", "50.0 MB of 100.0 MB"):
        assert part in wide[0]
    assert "1m 30s" in wide[1]
    assert "50%" in narrow[0] and "MB" not in narrow[0]
    for line in narrow:
        assert cell_len(line) <= 40
        assert line.count("━") + line.count("─") >= LEAST_BAR


def test_a_unit_is_shown_once():
    mmlu = task("mmlu", 900, 14_042, "questions")
    (line,) = drawn(bars([mmlu], width=80, now=10.0), 80).splitlines()
    assert line.endswith("  90 questions/s  900 of 14,042 questions")


def test_the_rate_covers_the_last_seconds():
    slow = task()
    for second in range(11, 40):
        slow.update(Progressed(0.0, "shard_00003.parquet", 50_000_000, 10**8, "bytes"), second)
    assert slow.rate(39.0) is None
    assert task().rate(20.0) == 2_500_000  # a stalled download slows down on the screen


def test_a_task_without_a_total_has_no_share():
    (line,) = drawn(bars([task("words", 500, None, "characters")], width=80, now=10.0)).splitlines()
    assert "%" not in line and "500 characters" in line
