"""Renaming, copying and removing runs: what moves, what is refused, and what a crash leaves."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkpoints import put_step
from support.places import REPOSITORY
from support.run_homes import MadeRun, put_adapter, put_evaluation
from support.strange_files import STRANGE, put_strange
from support.task_scores import put_results, result

from mlxchat.checkpoint import store
from mlxchat.checkpoint.task_results import results_of
from mlxchat.errors import CheckpointError, ConfigError, DiskError, LockedError, NotFound
from mlxchat.home import Home
from mlxchat.report.moves import copy_run, planned_removals, remove_run, rename_run
from mlxchat.report.places import all_runs, find_run
from mlxchat.ui.runs import removal_in_words


@pytest.fixture
def place(home: Path) -> Home:
    place = Home(home)
    MadeRun("fox").put(place)
    put_evaluation(place, "fox", 40)
    return place


def files(place: Home) -> dict[str, bytes]:
    """The content of every file but locks."""
    return {
        str(path.relative_to(place.root)): path.read_bytes()
        for path in place.root.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def names(place: Home) -> list[str]:
    return [run.name for run in all_runs(place)]


def test_a_rename_moves_everything_and_changes_nothing(place: Home) -> None:
    before = files(place)
    rename_run(place, "fox", "hen")
    assert names(place) == ["hen"]
    run = find_run(place, "hen")
    assert run.folder == place.runs / "hen" and run.log and len(run.evaluations) == 2
    assert files(place) == {name.replace("fox", "hen"): text for name, text in before.items()}
    assert [path.name for path in place.runs.iterdir() if path.is_file()] == [".hen.lock"]
    rename_run(place, "hen", "fox")
    assert files(place) == before


def test_results_on_tasks_go_with_their_run(place: Home) -> None:
    put_results(place, "fox", 40, result())
    rename_run(place, "fox", "hen")
    copy_run(place, "hen", "hen2")
    for name in ("hen", "hen2"):
        folder = place.run(name) / "step_000040"
        assert results_of(place, name, 40, folder) == (result(),)
        remove_run(place, name)
    assert list(place.chat_evaluations.iterdir()) == []


def put_tracked(place: Home, tag: str) -> Path:
    """What trackers leave beside a log."""
    folder = place.log(tag).parent
    (folder / "tracking.json").write_text('{"key": "abc"}')
    (folder / "wandb" / "run-1").mkdir(parents=True)
    (folder / "wandb" / "run-1" / "logs").write_text("x")
    (folder / "wandb" / "latest-run").symlink_to("run-1")
    (folder / "wandb" / "debug.log").symlink_to("gone.log")
    return folder


def test_what_trackers_left_is_renamed_but_not_copied(place: Home) -> None:
    put_tracked(place, "fox")
    rename_run(place, "fox", "hen")
    log = place.log("hen").parent
    assert (log / "wandb" / "latest-run" / "logs").read_text() == "x"
    assert (log / "wandb" / "debug.log").is_symlink() and (log / "tracking.json").exists()
    assert not place.log("fox").parent.exists()
    copy_run(place, "hen", "fox")
    assert {path.name for path in place.log("fox").parent.iterdir()} == {
        "metrics.jsonl",
        "status.json",
    }
    remove_run(place, "hen")
    assert names(place) == ["fox"]


@pytest.mark.parametrize("new", ["../x", "", "a/b", "-x", "x" * 101, "fox"])
def test_names_that_no_run_can_have(place: Home, new: str) -> None:
    for work in (rename_run, copy_run):
        with pytest.raises(ConfigError):
            work(place, "fox", new)
    assert names(place) == ["fox"]


def test_names_of_other_runs_are_refused_also_in_another_case(place: Home) -> None:
    MadeRun("hen", stage="fine-tuning").put(place)
    MadeRun("unsaved", saved=()).put(place)
    before = files(place)
    for new in ("hen", "unsaved", "Hen", "Unsaved", "Fox"):
        for work in (rename_run, copy_run):
            with pytest.raises(ConfigError):
                work(place, "fox", new)
    assert files(place) == before
    with pytest.raises(NotFound):
        rename_run(place, "ox", "cow")


def test_a_run_that_is_being_trained_is_left_alone(place: Home) -> None:
    before = files(place)
    with store.locked(place.runs / "fox"):
        for refused in (
            lambda: rename_run(place, "fox", "hen"),
            lambda: copy_run(place, "fox", "hen"),
            lambda: planned_removals(place, ["fox"]),
            lambda: remove_run(place, "fox"),
        ):
            with pytest.raises(LockedError, match="using the run fox") as error:
                refused()
            assert "Ctrl-C" in error.value.remedy
    with store.locked(place.runs / "hen"), pytest.raises(LockedError):
        rename_run(place, "fox", "hen")
    assert files(place) == before


def test_a_run_that_has_saved_nothing_is_locked_too(place: Home) -> None:
    MadeRun("new", saved=(), steps=3, ended=None).put(place)
    with store.locked(place.runs / "new"), pytest.raises(LockedError):
        remove_run(place, "new")
    remove_run(place, "new")
    assert names(place) == ["fox"]


def test_an_adapter_finds_its_model_under_the_new_name(place: Home) -> None:
    from mlxchat.checkpoint.bases import require_base

    adapter = put_adapter(place, "fox-lora", place.runs / "fox" / "step_000040")
    rename_run(place, "fox", "hen")
    assert require_base(adapter / "step_000005") == place.runs / "hen" / "step_000040"


def test_a_copy_shares_saved_steps_but_not_the_log(place: Home) -> None:
    before = files(place)
    copy_run(place, "fox", "hen")
    run, copy = find_run(place, "fox"), find_run(place, "hen")
    assert run.folder and copy.folder and copy.log and len(copy.evaluations) == 2
    for step in (30, 40):
        a, b = (store.directory(folder, step) for folder in (run.folder, copy.folder))
        assert (a / "model.safetensors").samefile(b / "model.safetensors")
    assert not place.log("fox").samefile(place.log("hen"))
    with place.log("hen").open("a") as file:
        file.write("more\n")
    [planned] = planned_removals(place, ["hen"])
    assert planned.use.shared > 2000 and planned.use.shared < planned.use.bytes
    remove_run(place, "hen")
    assert files(place) == before


def test_a_copy_on_a_disk_without_links_reports_its_progress(
    place: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    told: list[object] = []
    copy_run(place, "fox", "hen", told.append)
    assert len(told) == 10 and told[-1].done == told[-1].total  # type: ignore[attr-defined]
    [planned] = planned_removals(place, ["hen"])
    assert planned.use.shared == 0


@pytest.mark.parametrize("kind", sorted(STRANGE.keys() - {"folder", "large"}))
def test_strange_files_are_not_copied(place: Home, kind: str) -> None:
    step, [evaluation, _] = place.runs / "fox" / "step_000030", find_run(place, "fox").evaluations
    for path in (step / "tokenizer.json", evaluation, place.log("fox")):
        content = path.read_bytes() if path.exists() else None
        put_strange(kind, path)
        with pytest.raises(CheckpointError, match=r"cannot be read") as error:
            copy_run(place, "fox", "hen")
        assert path.name in error.value.problem and not (place.runs / "hen").exists()
        path.unlink()
        if content is not None:
            path.write_bytes(content)


def test_a_full_disk_ends_a_copy(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(DiskError, match="No space left") as error:
        copy_run(place, "fox", "hen")
    assert error.value.remedy.startswith("Free some disk space")
    assert names(place) == ["fox"]


def test_only_what_is_saved_can_be_copied(place: Home) -> None:
    MadeRun("new", saved=(), steps=3).put(place)
    with pytest.raises(ConfigError, match="nothing to copy"):
        copy_run(place, "new", "hen")
    put_step(place.finetuned / "imported", 0)
    copy_run(place, "imported", "hen")
    assert find_run(place, "hen").log is None


def test_a_removal_says_what_it_removes(place: Home) -> None:
    MadeRun("fox-sft", stage="fine-tuning").put(place)
    (place.runs / "fox" / "notes.txt").write_text("mine")
    (place.runs / "fox" / ".unfinished_50").mkdir()
    [planned] = planned_removals(place, ["fox", "fox"])
    assert planned.continued == ("fox-sft",) and planned.others == ("notes.txt",)
    assert planned.run.saved_steps == (30, 40) and planned.use.shared == 0
    of_fox = sum(len(text) for name, text in files(place).items() if "fox-sft" not in name)
    assert planned.use.bytes == of_fox
    remove_run(place, "fox")
    assert names(place) == ["fox-sft"]
    assert not list(place.runs.iterdir())


def test_what_runs_share_goes_when_all_of_them_are_removed(place: Home) -> None:
    copy_run(place, "fox", "hen")
    both = planned_removals(place, ["fox", "hen"])
    assert [removal.use.shared for removal in both] == [0, 0]
    [one] = planned_removals(place, ["fox"])
    assert one.use.shared > 1000


def test_an_adapter_whose_model_a_copy_has_is_named_apart(place: Home) -> None:
    """It has no weights of its own that would make up for those that are removed."""
    put_adapter(place, "fox-lora", place.runs / "fox" / "step_000030")
    copy_run(place, "fox", "hen")
    [removal] = planned_removals(place, ["fox"])
    assert (removal.continued, removal.adapters) == ((), ("fox-lora",))
    assert any(
        "find in another run as well: fox-lora" in line for line in removal_in_words(removal)
    )


def test_the_model_below_an_adapter_stays(place: Home) -> None:
    put_adapter(place, "fox-lora", place.runs / "fox" / "step_000030")
    with pytest.raises(CheckpointError, match="fox-lora is an adapter on fox") as error:
        planned_removals(place, ["fox"])
    assert "runs remove fox fox-lora" in error.value.remedy
    assert len(planned_removals(place, ["fox", "fox-lora"])) == 2
    copy_run(place, "fox", "hen")  # has the same weights
    assert len(planned_removals(place, ["fox"])) == 1
    with pytest.raises(CheckpointError):
        planned_removals(place, ["fox", "hen"])


def test_a_run_on_another_disk(place: Home, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(place.runs / "fox", elsewhere)
    (place.runs / "fox").symlink_to(elsewhere)
    rename_run(place, "fox", "hen")
    assert (place.runs / "hen").readlink() == elsewhere
    remove_run(place, "hen")
    assert not elsewhere.exists() and not os.path.lexists(place.runs / "hen")


def test_a_rename_that_was_cut_short_is_finished(place: Home) -> None:
    """The log has both names, and the checkpoints the old or the new one."""
    for moved in (False, True):
        log = place.log("fox").parent
        shutil.copytree(log, log.with_name("hen"))
        if moved:
            (place.runs / "fox").rename(place.runs / "hen")
            (log / "status.json").unlink()
        rename_run(place, "fox", "hen")
        assert names(place) == ["hen"] and find_run(place, "hen").folder
        rename_run(place, "hen", "fox")


@pytest.mark.slow  # a fork for each of some 80 operations
def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    place = Home(tmp_path / "small" / "home")
    MadeRun("fox", steps=3, saved=(3,)).put(place)
    put_evaluation(place, "fox", 3)
    put_tracked(place, "fox")
    ended = subprocess.run(
        [sys.executable, "-m", "support.killed_moves", str(place.root.parent)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests"), *sys.path])},
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert all(count > 5 for count in json.loads(ended.stdout).values())
