"""A run resumes only with the files that it began with, wherever they are now."""

import errno
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hub_server import HubServer, address
from support.marks import slow
from support.runs import (
    CONFIG,
    QUIET,
    assert_same,
    few,
    final,
    logged,
    run,
    shards,
    spoilt,
    write_texts,
)

from mlxchat.checkpoint import files, layout, store
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.data.fingerprint import fingerprint, quick_fingerprint
from mlxchat.data.shards import DATASETS, REVISION, STREAMED, Dataset, shard_name
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Event, Saved, Stepped
from mlxchat.telemetry.log import JsonLines
from mlxchat.train.pretrain import Pretraining, run_pretraining
from mlxchat.train.stage import read_trainer, validation_documents

FIRST, SECOND, THIRD, FOURTH = (shard_name(index) for index in range(4))
TINY = Dataset("fineweb-edu", "someone/tiny", last_shard=3, licence_note="CC0")


def newest(home: Path) -> Path:
    folder = store.latest(Home(home).runs / "run")
    assert folder is not None
    return folder


def forget_fingerprints(home: Path) -> None:
    """As a version saved it that had none."""
    folder = newest(home)
    fields = json.loads((folder / layout.TRAINER).read_text())
    del fields["fingerprints"]
    (folder / layout.TRAINER).write_text(json.dumps(fields))
    files.write_checksums(folder)


@pytest.mark.parametrize("changed", ["shard_00001.parquet", "shard_00002.parquet"])
def test_a_changed_file_is_refused(tmp_path: Path, changed: str) -> None:
    data = shards(tmp_path / "data", 0, 1, 2)  # the last one validates
    config = QUIET.model_copy(update={"data_dir": data})
    run(tmp_path, config, stop_at=3)
    began_with = (data / changed).read_bytes()
    write_texts(data / changed, ["Another text, about hens."] * 150)
    for resume in (
        lambda: run(tmp_path, config),
        lambda: Pretraining(config, Home(tmp_path)).saved(),
    ):
        with pytest.raises(MlxchatError) as raised:
            resume()
        assert f"{data / changed} has changed since the run started" in raised.value.problem
        assert "Restore that file" in raised.value.remedy and "`fresh`" in raised.value.remedy
    (data / changed).write_bytes(began_with)
    run(tmp_path, config)
    write_texts(data / changed, ["Another text, about hens."] * 150)
    run(tmp_path, config)  # says that it is finished


def test_missing_fingerprints_are_added_when_a_run_resumes(tmp_path: Path) -> None:
    data = shards(tmp_path / "data", 0, 1)
    config = QUIET.model_copy(update={"data_dir": data})
    run(tmp_path, config, stop_at=3)
    forget_fingerprints(tmp_path)
    run(tmp_path, config, stop_at=6)
    found = read_trainer(newest(tmp_path)).fingerprints
    assert found[FIRST] == fingerprint(data / FIRST)
    assert found[SECOND] == quick_fingerprint(data / SECOND)  # validation, which is not looked at


def test_a_run_resumes_with_data_that_moved(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    config = QUIET.model_copy(update={"data_dir": shards(here, 0, 1)})
    moved = config.model_copy(update={"data_dir": there})
    run(tmp_path, config, stop_at=3)
    here.rename(there)
    run(tmp_path, moved, stop_at=6)
    forget_fingerprints(tmp_path)
    shutil.copytree(there, here)
    with pytest.raises(MlxchatError) as raised:
        run(tmp_path, config)
    assert f"started with `data_dir={there}`, not with `data_dir={here}`" in raised.value.problem
    with pytest.raises(MlxchatError, match="not with the dataset's own folder"):
        run(tmp_path, config.model_copy(update={"data_dir": None}))
    run(tmp_path, moved)


def test_a_run_resumes_though_a_disk_changed_the_form_of_a_files_name(tmp_path: Path) -> None:
    """As when a home goes from a Mac to Linux: ü as one character, or as u and a mark."""
    data = shards(tmp_path / "data", 0, 1, 2)
    for path in data.iterdir():
        path.rename(path.with_name(f"Fü{path.name}"))
    config = QUIET.model_copy(update={"data_dir": data})
    run(tmp_path, config, stop_at=4)
    for path in data.iterdir():
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    run(tmp_path, config)
    assert logged(tmp_path, "step") == list(range(1, 13))
    saved = read_trainer(newest(tmp_path))
    assert saved.data == sorted(path.name for path in data.iterdir())
    assert saved.fingerprints.keys() == set(saved.data)
    for path in data.iterdir():
        path.rename(path.with_name(unicodedata.normalize("NFC", path.name)))
    validation_documents(newest(tmp_path), Home(tmp_path)).close()


def test_the_built_in_corpus_is_not_a_folder_of_that_name(prepared: Path) -> None:
    run(prepared, CONFIG, stop_at=1)
    folder = shards(prepared / "data", 0, 1)
    with pytest.raises(MlxchatError, match="was started with the dataset's own folder, not with"):
        run(prepared, CONFIG.model_copy(update={"data_dir": folder}))


@pytest.mark.slow
def test_a_run_resumes_in_a_home_that_moved(tmp_path: Path) -> None:
    def config(home: Path) -> PretrainConfig:
        return CONFIG.model_copy(update={"tokenizer_dir": home / "tokenizer_quickstart"})

    before, after = tmp_path / "before", tmp_path / "after"
    run(before, config(before), stop_at=3)
    before.rename(after)
    run(after, config(after))
    assert store.steps(Home(after).runs / "run")[-1] == 12


def test_data_of_a_revision_may_move_without_its_record(tmp_path: Path) -> None:
    here, there = shards(tmp_path / "here", 0, 1), tmp_path / "there"
    (here / REVISION).write_text(f"{'a' * 40}\n")
    run(tmp_path, QUIET.model_copy(update={"data_dir": here}), stop_at=3)
    there.mkdir()
    for path in here.glob("*.parquet"):
        path.rename(there / path.name)
    run(tmp_path, QUIET.model_copy(update={"data_dir": there}), stop_at=6)
    assert read_trainer(newest(tmp_path)).revision == "a" * 40


@pytest.mark.slow
def test_an_additional_shard_changes_nothing(tmp_path: Path) -> None:
    straight, going_on = tmp_path / "straight", tmp_path / "going_on"
    config = QUIET.model_copy(update={"data_dir": few(tmp_path / "data", 0, 1, 2)})
    run(straight, config)
    run(going_on, config, stop_at=3)
    few(tmp_path / "data", 3)
    Pretraining(config, Home(going_on)).saved()
    run(going_on, config)
    assert read_trainer(newest(going_on)).data == [FIRST, SECOND, THIRD]
    assert_same(final(going_on), final(straight))


@pytest.mark.parametrize("change", [spoilt, lambda path: path.read_bytes()[:-1]])
def test_a_run_saves_and_ends_if_a_shard_is_replaced(
    tmp_path: Path, change: Callable[[Path], bytes]
) -> None:
    straight, ended = tmp_path / "straight", tmp_path / "ended"
    data = few(tmp_path / "data", 0, 1, 2)
    config = QUIET.model_copy(update={"data_dir": data, "save_every": 0})
    run(straight, config)
    began_with = (data / SECOND).read_bytes()
    with pytest.raises(MlxchatError, match=f"{data / SECOND} (is|has) "):
        for event in run_pretraining(config, Home(ended), lambda _: None):
            if isinstance(event, Stepped) and event.step == 1:
                (tmp_path / SECOND).write_bytes(change(data / SECOND))
                (tmp_path / SECOND).replace(data / SECOND)
    assert 1 <= read_trainer(newest(ended)).step < 12
    with pytest.raises(MlxchatError, match=f"{data / SECOND} (is|has) "):
        run(ended, config)
    (data / SECOND).write_bytes(began_with)
    run(ended, config)
    assert_same(final(ended), final(straight))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A dataset of the hub, of four shards."""
    monkeypatch.setitem(DATASETS, TINY.name, TINY)
    return TINY


def at_hub(folder: Path) -> dict[str, Path]:
    """The shards in a folder by their address at the hub."""
    return {address(TINY, path.name): path for path in folder.iterdir()}


@pytest.mark.slow
def test_streamed_shards_are_the_same_as_those_on_disk(tmp_path: Path, tiny: Dataset) -> None:
    straight, going_on = tmp_path / "straight", tmp_path / "going_on"
    same, other = few(tmp_path / "same", 0, 1, 2, 3), few(tmp_path / "other", 0, 1, 2, text="hens")
    few(other, 3)
    for home in (straight, going_on):
        shutil.copytree(same, Home(home).data(tiny.name))
    run(straight, QUIET)
    run(going_on, QUIET, stop_at=3)
    data = Home(going_on).data(tiny.name)
    for name in (FIRST, SECOND, THIRD):
        (data / name).unlink()
    with HubServer(at_hub(other)) as server:
        streamed = QUIET.model_copy(update={"streaming": True, "endpoint": server.endpoint})
        with pytest.raises(MlxchatError, match="has changed since the run started") as raised:
            run(going_on, streamed)
        assert f"{data / STREAMED}/shard_" in raised.value.problem
        assert "if it was streamed, delete it" in raised.value.remedy
        assert read_trainer(newest(going_on)).step == 3
        for path in (data / STREAMED).glob("*.parquet*"):
            path.unlink()
        (data / REVISION).unlink()
        server.files = at_hub(same)
        run(going_on, streamed)
    assert_same(final(going_on), final(straight))


@pytest.mark.slow
def test_a_shard_streamed_again_must_be_the_same(tmp_path: Path, tiny: Dataset) -> None:
    same, other = few(tmp_path / "same", 0, 1, 2, 3), few(tmp_path / "other", 0, 1, 2, text="hens")
    few(other, 3)
    with HubServer(at_hub(same)) as server:
        server.commit = ""  # a mirror that tells of none
        endpoint = server.endpoint.replace("//", "//me:secret@")
        config = QUIET.model_copy(
            update={"streaming": True, "endpoint": endpoint, "max_cached_shards": 2}
        )
        run(tmp_path, config, stop_at=3)
        state = read_trainer(newest(tmp_path))
        assert state.settings.endpoint == server.endpoint  # what logs in is not stored
        assert state.revision is None
        assert state.fingerprints == {
            name: fingerprint(same / name) for name in (FIRST, SECOND, THIRD)
        }
        shutil.rmtree(Home(tmp_path).data(tiny.name))
        server.files = at_hub(other)
        with pytest.raises(MlxchatError, match="has changed since the run started"):
            run(tmp_path, config)
        shutil.rmtree(Home(tmp_path).data(tiny.name))
        server.files = at_hub(same)
        run(tmp_path, config)
    assert read_trainer(newest(tmp_path)).step == 12


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["write", slow("sync")])
def test_a_run_saves_and_ends_if_its_log_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = CONFIG.model_copy(update={"save_every": 4 if what == "sync" else 0, "eval_every": 0})
    log, append = Home(tmp_path).log("run"), JsonLines.write
    seen: list[Event] = []

    def failing(self: JsonLines, event: Event) -> None:
        seen.append(event)
        if isinstance(event, Stepped) and event.step == 4:
            raise FULL
        append(self, event)

    def unsynced(path: Path) -> None:
        if path == log:
            raise FULL

    with monkeypatch.context() as patched:
        if what == "write":
            patched.setattr(JsonLines, "write", failing)
        else:
            patched.setattr("mlxchat.telemetry.log.sync", unsynced)
        with pytest.raises(MlxchatError) as raised:
            run(tmp_path, config)
    assert raised.value.problem.startswith(f"The log {log} could not be written: No space left")
    assert "repeat the command" in raised.value.remedy
    (saved,) = store.steps(Home(tmp_path).runs / "run")
    assert 4 <= saved <= 5
    if what == "write":
        assert [event.step for event in seen if isinstance(event, Saved)] == [saved]
    run(tmp_path, config)
    assert logged(tmp_path, "step")[-1] == 12
