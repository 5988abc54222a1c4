"""The names of files of evaluations, and of whose model each is."""

import os
from pathlib import Path

import pytest
from support.run_homes import BEGAN, MadeRun

from mlxchat.checkpoint import store
from mlxchat.checkpoint.digests import model_digest, own_evaluations
from mlxchat.checkpoint.evaluation_files import (
    evaluation_file,
    evaluations_by_run,
    evaluations_of,
    rename_evaluations,
)
from mlxchat.errors import CheckpointError
from mlxchat.home import Home


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("d12_003225_1a2b3c4d.jsonl", ("d12", 3225, None)),
        ("d12_003225_12345678_of_87654321.csv", ("d12", 3225, "87654321")),
        ("d12_003225_5_per_task_1a2b3c4d_of_5e6f7a8b_2_tasks.csv", ("d12", 3225, "5e6f7a8b")),
        ("d12-sft_000200_9c0d1e2f.json", ("d12-sft", 200, "9c0d1e2f")),
        ("d_000001_12345678_of_000040_1a2b3c4d.csv", ("d_000001_12345678_of", 40, None)),
        ("d12_000200_of_9c0d1e2f.jsonl", None),
        ("notes.txt", None),
    ],
)
def test_a_name_tells_run_step_and_model(name: str, told: tuple[str, int, str | None]) -> None:
    found = evaluation_file(Path(name))
    assert (found and found[1:]) == told


def put(folder: Path, name: str, time: float = BEGAN + 1000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("x")
    os.utime(path, (time, time))
    return path


def test_evaluations_are_of_the_weights_or_where_they_do_not_say_newer(home: Path) -> None:
    place = Home(home)
    step = MadeRun("fox").put(place) / "step_000040"
    digest = model_digest(step)
    own = [
        put(place.base_evaluations, f"fox_000040_1a2b3c4d_of_{digest}.jsonl", 0),
        put(place.base_evaluations, "fox_000040_9a2b3c4d.jsonl"),
        put(place.chat_evaluations, f"fox_000040_{digest}.json", 0),
    ]
    for name in ("fox_000040_1a2b3c4d_of_00000000.jsonl", "fox_000030_9a2b3c4d.jsonl"):
        put(place.base_evaluations, name)
    put(place.base_evaluations, "fox_000040_8a2b3c4d.jsonl", BEGAN)  # when it had not been saved
    put(place.chat_evaluations, "fox_000040_00000000.json")
    every = [file.path for file in evaluations_by_run(place)["fox"]]
    assert len(every) == 7 and own_evaluations(every, step, 40) == own
    (step / "SHA256SUMS").write_text("x")
    assert own_evaluations([own[1]], step, 40) == [own[1]]
    with pytest.raises(CheckpointError, match="SHA256SUMS is damaged"):
        own_evaluations(every, step, 40)


def test_a_directory_elsewhere_keeps_its_evaluations_whatever_happens_to_a_run_of_its_name(
    home: Path,
) -> None:
    place = Home(home)
    run = MadeRun("fox").put(place)
    elsewhere = put(place.chat_evaluations, "fox_000000_0a0b0c0d.json")
    of_run = put(place.chat_evaluations, "fox_000040_0a0b0c0d.json")
    files = evaluations_by_run(place)["fox"]
    assert evaluations_of(files, run) == (of_run,) == evaluations_of(files, None)
    store.directory(run, 0).mkdir()  # as an imported model has
    assert evaluations_of(files, run) == (elsewhere, of_run)


def test_no_file_is_replaced_by_one_that_gets_another_name(home: Path) -> None:
    folder = Home(home).chat_evaluations
    moved, stays = (put(folder, f"fox_0000{step}_0a0b0c0d.json") for step in (30, 40))
    there = put(folder, "hen_000040_0a0b0c0d.json")
    there.write_text("hens")
    rename_evaluations([moved, stays], "fox", "hen")
    assert there.read_text() == "hens" and stays.exists() and not moved.exists()
    assert (folder / "hen_000030_0a0b0c0d.json").exists()
