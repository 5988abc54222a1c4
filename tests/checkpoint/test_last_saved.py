"""Which model is the one saved last: what its steps say counts, not the times of files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import put_step
from support.strange_files import put_strange

from mlxchat.checkpoint import catalog, store
from mlxchat.checkpoint.files import write_checksums
from mlxchat.checkpoint.stamp import STAMP, saved_at
from mlxchat.errors import NotFound
from mlxchat.home import Home
from mlxchat.telemetry.events import Ended, Saved, event_to_json


def put(home: Path, tag: str, saved: float, step: int = 10, of: str | None = None) -> Path:
    """A step of a run, of a fine-tuning if it is ``of`` another one."""
    run = (Home(home).finetuned if of else Home(home).runs) / tag
    return put_step(run, step, saved=saved, began_with=of)


def last(home: Path) -> str:
    return catalog.find(Home(home).stages, None, None).parent.name


def test_a_step_says_when_it_was_saved(home: Path) -> None:
    folder = put(home, "d4", saved=1234.5)
    assert json.loads((folder / STAMP).read_text()) == {"time": 1234.5}
    assert saved_at(folder, 10) == 1234.5
    (saved,) = catalog.saved_steps([folder.parent], lambda _: None)
    assert saved.saved == 1234.5


@pytest.mark.parametrize("other", ["a", "z"])
def test_neither_copies_nor_stray_files_change_it(other: str, home: Path, tmp_path: Path) -> None:
    earlier, later = put(home, other, saved=100.0), put(home, "m", saved=200.0)
    for time in (50.0, 1e9, 4e9):
        (earlier / ".DS_Store").write_text("stray")
        for path in (*earlier.iterdir(), earlier, earlier.parent):
            os.utime(path, (time, time))
        assert last(home) == "m"
    os.utime(later, (1.0, 1.0))
    shutil.copytree(home, tmp_path / "copy", copy_function=shutil.copyfile)
    assert last(tmp_path / "copy") == "m"


def test_a_fine_tuned_model_comes_before_the_one_it_began_with(home: Path) -> None:
    put(home, "d4", saved=100.0)
    put(home, "d4-sft", saved=90.0, of="d4")
    put(home, "d4-other", saved=80.0, of="d4")
    put(home, "d4-more", saved=70.0, of="d4-sft")  # of its own stage
    assert last(home) == "d4-sft"
    put(home, "d6", saved=110.0)
    assert last(home) == "d6"
    put_step(Home(home).runs / "d4-4bit", 10, quantized=True, saved=120.0, began_with="d4")
    assert last(home) == "d4-4bit"


def test_a_run_that_was_started_anew_is_not_the_one_that_was_fine_tuned(home: Path) -> None:
    put(home, "d4", saved=100.0, step=10)
    put(home, "d4-sft", saved=110.0, of="d4", step=10)
    shutil.rmtree(Home(home).runs / "d4")
    put(home, "d4", saved=120.0, step=5)
    assert last(home) == "d4"


def test_of_a_step_and_its_copy_the_run_itself_is_chosen(home: Path) -> None:
    put(home, "d4", saved=100.0)
    assert store.keep_aside(Home(home).runs / "d4", 10).parent.name == "d4.good1"
    assert last(home) == "d4"


def without_stamp(folder: Path, time: float) -> None:
    """Make it as an earlier version left it, with files of that time."""
    (folder / STAMP).unlink()
    write_checksums(folder)
    for path in folder.iterdir():
        os.utime(path, (time, time))


def test_of_steps_of_earlier_versions_the_log_tells_and_then_the_checksums(home: Path) -> None:
    for tag, time in (("a", 300.0), ("b", 100.0)):
        without_stamp(put(home, tag, saved=0.0), time)
    assert last(home) == "a"
    (Home(home).runs / "b" / "step_000010" / "stray").touch()
    assert last(home) == "a"
    log = Home(home).log("b")
    log.parent.mkdir(parents=True)
    events = Saved(500.0, 9, "", 0.0), Saved(400.0, 10, "", 0.0), Ended(600.0, 10, "finished")
    log.write_text("".join(f"{event_to_json(event)}\n" for event in events) + "null\n")
    assert last(home) == "b"
    assert saved_at(Home(home).runs / "b" / "step_000010", 10, log) == 400.0
    put_strange("pipe", log)
    assert last(home) == "a"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text('{"time": 1e18}'),
        lambda path: path.write_text('{"time": NaN}'),
        lambda path: path.write_text('{"time": true}'),
        lambda path: path.write_text("null"),
        lambda path: path.write_text("[" * 200_000),
        lambda path: put_strange("pipe", path),
        lambda path: put_strange("folder", path),
    ],
)
def test_a_damaged_stamp_counts_as_none(damage: Callable[[Path], object], home: Path) -> None:
    folder = put(home, "d4", saved=1e9)
    damage(folder / STAMP)
    os.utime(folder / "SHA256SUMS", (100.0, 100.0))
    assert saved_at(folder, 10) == 100.0
    put(home, "d6", saved=200.0)
    assert last(home) == "d6"


def test_names_that_are_no_steps_do_not_count(home: Path) -> None:
    run = put(home, "d4", saved=1.0).parent
    for name in ("step_0000011", "step_00012", "step_٠٠٠٠١٣", "step_000014 copy", "step_"):
        (run / name).mkdir()
    assert store.steps(run) == [10]


def test_without_a_model_there_is_none(home: Path) -> None:
    assert catalog.last_saved(Home(home).stages) is None
    with pytest.raises(NotFound, match="no trained model in"):
        catalog.find(Home(home).stages, None, None)
    put(home, "d4", saved=1.0)
    with pytest.raises(NotFound, match="no trained model called d5"):
        catalog.find(Home(home).stages, "d5", None)
