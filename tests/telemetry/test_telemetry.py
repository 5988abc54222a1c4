import errno
import json
import math
import os
from dataclasses import replace
from itertools import pairwise

import pytest
from support.strange_files import put_strange

from mlxchat.errors import DiskError
from mlxchat.telemetry.events import (
    CoreMeasured,
    Drawing,
    Ended,
    Evaluated,
    Evaluating,
    Judged,
    Memory,
    Noted,
    Position,
    Progressed,
    Replanned,
    Rewarded,
    Sampled,
    Saved,
    Started,
    Stepped,
    event_from_json,
    event_to_json,
)
from mlxchat.telemetry.log import JsonLines, RunLog
from mlxchat.telemetry.meter import LEAST_RECENT_STEPS, MOST_POINTS, RATE_STEPS, Meter, MeterState

MEMORY = Memory(active=1, peak=2, cache=3, machine_used=4, machine_total=8)
POSITION = Position(epoch=1, shard=0, shards=2)


def started(step=0, total=100, peak=1000.0):
    return Started(0.0, "d4", step, total, 64, 10, peak, "a chip", 1000)


def stepped(step, loss=2.0, seconds=1.0, memory=MEMORY):
    return Stepped(float(step), step, loss, 0.02, 0.5, seconds, POSITION, memory)


def test_every_event_is_one_line_of_json_under_its_name():
    events = {
        "started": started(),
        "step": stepped(1),
        "evaluating": Evaluating(0.0, 1, 2, 3),
        "evaluation": Evaluated(0.0, 1, 1.5, 3.0, 640, 2.0),
        "core": CoreMeasured(0.0, 1, -0.01, 0.008, 500, 60.0, {"copa": -0.1, "squad": 0.08}),
        "drawing": Drawing(0.0, 1, 2, 3),
        "rewards": Rewarded(0.0, 1, 0.4, 0.4, 0.1, 0.2, 31.5, 0.0, 0.08, 8100, 12000, 1.5),
        "judgement": Judged(0.0, 1, 200, 8, 0.5, 0.5, 0.4, 0.6, 0.7, 0.6, 0.8, 31.0, 9.0),
        "sample": Sampled(0.0, 1, "Once", "\nupon “a” time\u2028"),
        "saved": Saved(0.0, 1, "/tmp/x", 0.5),
        "replan": Replanned(0.0, 1, 80, 100, "1h"),
        "ended": Ended(0.0, 1, "finished"),
        "note": Noted(0.0, "hello"),
        "progress": Progressed(0.0, "a file", 1, None, "bytes"),
    }
    for name, event in events.items():
        line = event_to_json(event)
        assert len(line.splitlines()) == 1
        assert list(json.loads(line))[:2] == ["event", "time"]
        assert json.loads(line)["event"] == name
    assert json.loads(event_to_json(events["step"]))["memory"]["machine_total"] == 8
    assert json.loads(event_to_json(events["sample"]))["text"] == "\nupon “a” time\u2028"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_null(value):
    assert json.loads(event_to_json(stepped(1, loss=value)))["loss"] is None


def steps_of(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "step"]


def test_a_start_without_the_versions_is_read_as_before():
    told = json.loads(event_to_json(started()))
    assert told["python"] is told["system"] is None
    del told["python"], told["system"]  # as earlier versions wrote it
    begun = event_from_json(json.dumps(told))
    assert begun == started() and begun.software is None
    told |= {"python": "3.12.3", "system": "macOS 26.1, arm64"}
    assert event_from_json(json.dumps(told)).software == "Python 3.12.3, macOS 26.1, arm64"


def test_log_keeps_what_is_stored_and_is_readable_at_once(tmp_path):
    path = tmp_path / "logs" / "d4" / "metrics.jsonl"
    with JsonLines(path) as log:
        log.write(started())
        log.write(Evaluating(0.0, 1, 2, 3))
        log.write(Progressed(0.0, "a file", 1, 2, "bytes"))
        log.write(stepped(1))
        assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == [
            "started",
            "step",
        ]


def test_resumed_log_has_every_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as log:
        log.write(started())
        for step in range(1, 8):
            log.write(stepped(step))
            if step == 4:
                log.write(Saved(0.0, 4, "/tmp/x", 0.1))
        log.write(Noted(0.0, "of the time that is lost"))
    with path.open("a") as file:
        file.write(event_to_json(stepped(8))[:30])  # the process was killed while it wrote
    with JsonLines.resume(path, 4) as log:
        log.write(started(step=4))
        for step in range(5, 8):
            log.write(stepped(step))
    with JsonLines.resume(path, 6) as log:
        log.write(started(step=6))
        log.write(stepped(7))
    assert steps_of(path) == [1, 2, 3, 4, 5, 6, 7]
    text = path.read_text()
    assert text.count('"started"') == 3
    assert text.count('"saved"') == 1
    assert "lost" not in text
    assert [child.name for child in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_log_is_resumed_on_a_disk_that_does_not_sync(tmp_path, monkeypatch):
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    path = tmp_path / "log.jsonl"
    monkeypatch.setattr(os, "fsync", refuse)
    JsonLines.resume(path, 0).close()
    assert [*tmp_path.iterdir()] == [path]


def test_resumed_log_completes_a_line_that_lacks_only_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(event_to_json(stepped(1)))
    with JsonLines.resume(path, 1) as log:
        log.write(stepped(2))
    assert steps_of(path) == [1, 2]


NO_RECORDS = {
    "null": "null",
    "a number": "5",
    "a list": '[{"event": "note"}]',
    "another object": '{"a": 1}',
    "no name": '{"event": 3, "step": 1}',
    "a text": '{"event": "step", "step": "x"}',
    "true": '{"event": "step", "step": true}',
    "infinity": '{"event": "step", "step": 1e999}',
    "a fraction": '{"event": "step", "step": 1.0}',
    "negative": '{"event": "step", "step": -1}',
    "digits": '{"event": "step", "step": ' + "9" * 5000 + "}",
    "nested": "[" * 200_000,
    "long": '{"event": "note", "text": "' + "x" * 2**21 + '"}',
    "NUL": "\0" * 1000,
}


@pytest.mark.parametrize("line", NO_RECORDS.values(), ids=NO_RECORDS)
def test_a_log_with_a_line_that_is_no_record_is_continued_without_it(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    before = [event_to_json(event) for event in (started(), stepped(1), stepped(2), stepped(3))]
    path.write_text("\n".join([*before[:2], line, *before[2:]]) + "\n")
    with JsonLines.resume(path, 2) as log:
        log.write(Noted(0.0, "on"))
    assert path.read_text().splitlines() == [*before[:3], event_to_json(Noted(0.0, "on"))]


def test_a_step_far_ahead_takes_only_its_own_line_and_notes_with_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = map(event_to_json, (stepped(1), stepped(10**15), Noted(0.0, "odd"), stepped(2)))
    path.write_text("".join(f"{line}\n" for line in lines))
    JsonLines.resume(path, 2).close()
    assert path.read_text().splitlines() == [event_to_json(stepped(1)), event_to_json(stepped(2))]


def test_what_another_version_wrote_stays_in_a_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = '{"event": "dreamt", "step": 1, "of": [1.5, null]}\n'
    path.write_text(line)
    JsonLines.resume(path, 2).close()
    assert path.read_text() == line


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_log_is_named(tmp_path, kind):
    path = tmp_path / "metrics.jsonl"
    put_strange(kind, path)
    with pytest.raises(DiskError, match=r"metrics\.jsonl cannot be written"):
        RunLog(path, 2)


def test_log_starts_empty_at_step_0_and_where_there_is_none(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    JsonLines.resume(path, 3).close()
    assert path.read_text() == ""
    path.write_text(f"{event_to_json(started())}\n{event_to_json(stepped(1))}\n")
    JsonLines.resume(path, 0).close()
    assert path.read_text() == ""


def test_meter_computes_rates_from_recent_steps_without_the_first():
    meter = Meter()
    meter.update(started())
    assert (meter.loss, meter.tokens_per_second, meter.seconds_left) == (None, None, None)
    meter.update(stepped(1, seconds=50.0))
    assert meter.tokens_per_second is None
    for step in range(2, 2 + LEAST_RECENT_STEPS):
        assert (meter.tokens_per_second, meter.seconds_left) == (None, None)
        meter.update(stepped(step, seconds=100.0))
    assert meter.tokens_per_second == 0.64
    for step in range(2 + LEAST_RECENT_STEPS, 12):
        meter.update(stepped(step, seconds=100.0))
    for step in range(12, 12 + RATE_STEPS):
        meter.update(stepped(step, seconds=2.0))
    assert meter.tokens_per_second == 32.0
    assert meter.flops_per_second == 320.0
    assert meter.mfu == pytest.approx(0.32)
    assert meter.seconds_left == (100 - 31) * 2.0
    assert meter.elapsed == 50.0 + 1000.0 + 40.0
    assert (meter.step, meter.total_steps, meter.tokens) == (31, 100, 31 * 64)


def test_meter_knows_no_mfu_of_an_unknown_chip():
    meter = Meter()
    for event in (started(peak=None), *map(stepped, range(1, 5))):
        meter.update(event)
    assert meter.flops_per_second == 640.0
    assert (meter.mfu, meter.matmul_share) == (None, None)


def test_meter_compares_with_a_measured_product_where_the_data_sheet_is_no_bound():
    meter = Meter()
    first = replace(started(peak=500.0), matmul_flops=1280.0)  # by accelerators that it leaves out
    for event in (first, *map(stepped, range(1, 5))):
        meter.update(event)
    assert (meter.mfu, meter.matmul_share) == (1.28, 0.5)


def test_smoothed_loss_is_nanochats():
    meter, smooth = Meter(), 0.0
    meter.update(started())
    for index, loss in enumerate([5.0, 4.0, 4.5, 3.0]):
        meter.update(stepped(index + 1, loss=loss))
        smooth = 0.9 * smooth + 0.1 * loss
        assert meter.loss == pytest.approx(smooth / (1 - 0.9 ** (index + 1)))


def test_a_step_that_diverged_does_not_spoil_the_average_nor_the_state():
    meter = Meter()
    for event in (started(), stepped(1, loss=3.0), stepped(2, loss=math.nan)):
        meter.update(event)
    meter.update(Evaluated(0.0, 2, math.inf, math.inf, 640, 1.0))
    assert meter.loss == pytest.approx(3.0)
    assert meter.bits_per_byte is None
    json.dumps(meter.state().model_dump(), allow_nan=False)


def test_meter_keeps_core_as_it_was_measured():
    meter, restored = Meter(), Meter()
    for step, core in ((10, 0.05), (20, math.nan), (30, 0.07)):
        meter.update(CoreMeasured(0.0, step, core, 0.01, 500, 60.0, {}))
    assert meter.core == [(10, 0.05, 0.01, 500), (30, 0.07, 0.01, 500)]
    restored.restore(MeterState.model_validate_json(meter.state().model_dump_json()))
    assert restored.core == meter.core and restored.core[-1].error == 0.01
    before = meter.state().model_dump()  # of a version that did not measure it
    del before["core"]
    assert MeterState.model_validate(before).core == ()


def test_meter_keeps_the_last_and_the_best_evaluation_and_the_peak():
    meter = Meter()
    for bits in (2.0, 1.5, 1.75):
        meter.update(Evaluated(0.0, 1, bits, 3.0, 640, 1.0))
    meter.update(stepped(1, memory=Memory(1, 90, 0, 1, 1)))
    meter.update(stepped(2, memory=Memory(1, 50, 0, 1, 1)))
    assert (meter.bits_per_byte, meter.best) == (1.75, (1, 1.5))
    assert meter.peak_memory == 90


def test_curve_stays_short_and_evenly_spaced_however_long_the_run():
    meter = Meter()
    meter.update(started(total=20_000))
    for step in range(1, 10_001):
        meter.update(stepped(step))
    steps = [step for step, _ in meter.losses]
    assert MOST_POINTS / 2 <= len(steps) < MOST_POINTS
    assert {after - before for before, after in pairwise(steps)} == {16}


def test_a_restored_meter_continues_as_if_never_interrupted():
    whole, first = Meter(), Meter()
    for meter in (whole, first):
        meter.update(started())
    for step in range(1, 1501):
        for meter in (whole, first):
            meter.update(stepped(step, loss=3 + math.sin(step)))
            if step % 500 == 0:
                meter.update(Evaluated(0.0, step, 1.0, 2.0, 64, 1.0))
    second = Meter()
    second.restore(MeterState.model_validate_json(first.state().model_dump_json()))
    second.update(started(step=1500))
    assert second.seconds_left is None
    for step in range(1501, 2500):
        for meter in (whole, second):
            meter.update(stepped(step, loss=3 + math.sin(step)))
    assert second.state() == whole.state()
