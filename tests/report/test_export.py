"""The log of a run as CSV and as event files of TensorBoard."""

import csv
import errno
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from support.run_homes import MadeRun

from mlxchat.errors import CheckpointError, ConfigError, DiskError, NotFound
from mlxchat.home import Home
from mlxchat.report.export import COLUMNS, export_log
from mlxchat.telemetry.events import Progressed, Rewarded, event_to_json


@pytest.fixture
def place(home: Path) -> Home:
    MadeRun("fox", resumed=(20,)).put(Home(home))
    return Home(home)


def test_a_line_for_each_step(place: Home, tmp_path: Path) -> None:
    told: list[object] = []
    exported = export_log(place, "fox", "csv", tmp_path / "fox.csv", told.append)
    with exported.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert exported.rows == len(rows) == 41 and rows[0].keys() == set(COLUMNS)
    assert [int(row["step"]) for row in rows] == list(range(41))
    last = rows[-1]
    assert float(last["loss"]) == 3.0 and float(last["bits_per_byte"]) == 1 + 1 / 41
    assert float(last["elapsed"]) == 80.0 and last["tokens"] == str(40 * 1024)
    assert rows[1]["bits_per_byte"] == "" and rows[0]["loss"] == ""
    assert isinstance(told[-1], Progressed) and told[-1].done == told[-1].total


def test_numbers_that_are_none_are_empty(place: Home, tmp_path: Path) -> None:
    log = place.log("fox")
    log.write_text(log.read_text().replace('"loss": 3.0', '"loss": null') + "no event\n{}\n")
    exported = export_log(place, "fox", "csv", tmp_path / "fox.csv")
    with exported.path.open(newline="") as file:
        assert {row["loss"] for row in csv.DictReader(file)} == {""}


def test_steps_of_reinforcement_learning_have_no_fixed_tokens(place: Home, tmp_path: Path) -> None:
    log = place.log("fox")
    rewards = Rewarded(1.0, 40, 0.5, 0.25, 0.1, 0.2, 12.0, 0.0, 1.0, 500, 400, 3.0)
    log.write_text(f"{log.read_text()}{event_to_json(rewards)}\n")
    exported = export_log(place, "fox", "csv", tmp_path / "fox.csv")
    with exported.path.open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["reward"], last["right"], last["tokens"]) == ("0.5", "0.25", "")


def test_what_cannot_be_exported(
    place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigError, match="already exists"):
        export_log(place, "fox", "csv", tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
    MadeRun("silent", log=False).put(place)
    with pytest.raises(NotFound, match="has no log"):
        export_log(place, "silent", "csv", tmp_path / "x")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="not installed") as missing:
        export_log(place, "fox", "tensorboard", tmp_path / "x")
    assert "mlxchat[tensorboard]" in missing.value.remedy
    log = place.log("fox")
    log.write_text(log.read_text().replace('"step": 7', '"step": -7'))
    with pytest.raises(CheckpointError, match="is damaged"):
        export_log(place, "fox", "csv", tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "taken"]


def test_event_files_have_what_was_measured(place: Home, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    exported = export_log(place, "fox", "tensorboard", tmp_path / "events")
    [path] = exported.path.iterdir()
    content, found = path.read_bytes(), {}
    while content:  # the length, its checksum, an event, its checksum
        [length] = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    assert found["train/loss", 7] == 3.0
    assert found["validation/bits_per_byte", 40] == pytest.approx(1 + 1 / 41)
    assert found["train/tokens_per_second", 8] == 512
    assert ("samples/text_summary", 20) in found
    assert exported.rows == len(found)


def test_a_full_disk_ends_an_export(
    place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = pytest.importorskip("tensorboardX.event_file_writer")

    write = writer.EventsWriter.write_event

    def full(self: object, event: Any) -> None:
        if event.step > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, event)

    monkeypatch.setattr(writer.EventsWriter, "write_event", full)
    with pytest.raises(DiskError, match="No space left"):
        export_log(place, "fox", "tensorboard", tmp_path / "events")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
