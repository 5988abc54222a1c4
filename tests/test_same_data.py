"""A run goes on with the files that it began with, wherever they are, and with no others."""

import errno
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_pretrain import CONFIG, OWN, logged, run, shards

from mlxchat.ckpt import checksums, layout, store
from mlxchat.data.fingerprint import fingerprint, fingerprints
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry import Event, JsonLines, Saved, Stepped
from mlxchat.train.inputs import saved_run
from mlxchat.train.settings import PretrainConfig

QUIET = OWN.model_copy(update={"eval_every": 0})


def write(path: Path, texts: list[str]) -> Path:
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", write_statistics=False)
    return path


def test_other_text_has_another_fingerprint(tmp_path: Path) -> None:
    words = ["fox", "hen", "owl"] * 50
    first = fingerprint(write(tmp_path / "a.parquet", words))
    assert fingerprint(write(tmp_path / "again.parquet", words)) == first
    for others in ([*words, "cat"], [*words[:-1], "owls"], ["a fox", *words[1:]]):
        assert fingerprint(write(tmp_path / "b.parquet", others)) != first


def test_only_the_footer_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ["fox"] * 50)
    first, content = fingerprint(path), bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    assert fingerprint(path) == first
    content[-20] ^= 1
    path.write_bytes(content)
    assert fingerprint(path) != first


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\xff" * 7, b"\xff\xff\xff\xffPAR1"])
def test_any_file_has_a_fingerprint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    found = fingerprints(tmp_path, ["a.parquet", "gone.parquet"])
    assert found.keys() == {"a.parquet"}
    assert found["a.parquet"].startswith(f"{len(content)} ")


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
    checksums.write(folder)


@pytest.mark.parametrize("changed", ["shard_00001.parquet", "shard_00002.parquet"])
def test_other_text_under_the_same_name_is_refused(tmp_path: Path, changed: str) -> None:
    data = shards(tmp_path / "data", 0, 1, 2)  # the last one validates
    config = QUIET.model_copy(update={"data_dir": data})
    run(tmp_path, config, stop_at=3)
    began_with = (data / changed).read_bytes()
    write(data / changed, ["Another text, about hens."] * 150)
    for go_on in (lambda: run(tmp_path, config), lambda: saved_run(config, Home(tmp_path))):
        with pytest.raises(MlxchatError) as raised:
            go_on()
        assert f"{data / changed} is not the file of that name that the run run began with" in (
            raised.value.problem
        )
        assert "Put that one back" in raised.value.remedy and "--fresh" in raised.value.remedy
    (data / changed).write_bytes(began_with)
    run(tmp_path, config)
    write(data / changed, ["Another text, about hens."] * 150)
    run(tmp_path, config)  # says that it is finished


def test_what_is_not_known_is_learnt_when_the_run_goes_on(tmp_path: Path) -> None:
    data = shards(tmp_path / "data", 0, 1)
    config = QUIET.model_copy(update={"data_dir": data})
    run(tmp_path, config, stop_at=3)
    forget_fingerprints(tmp_path)
    run(tmp_path, config, stop_at=6)
    names = ["shard_00000.parquet", "shard_00001.parquet"]
    assert layout.read_trainer(newest(tmp_path)).fingerprints == fingerprints(data, names)


def test_data_may_move(tmp_path: Path) -> None:
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
    assert f"began with --data-dir {there}, not with --data-dir {here}" in raised.value.problem
    with pytest.raises(MlxchatError, match="not with the dataset's own folder"):
        run(tmp_path, config.model_copy(update={"data_dir": None}))
    run(tmp_path, moved)


def test_the_built_in_corpus_is_no_folder_of_that_name(tmp_path: Path) -> None:
    run(tmp_path, CONFIG, stop_at=1)
    folder = shards(tmp_path / "data", 0, 1)
    with pytest.raises(MlxchatError, match="began with the dataset's own folder, not with"):
        run(tmp_path, CONFIG.model_copy(update={"data_dir": folder}))


def test_a_home_may_move(tmp_path: Path) -> None:
    def config(home: Path) -> PretrainConfig:
        return CONFIG.model_copy(update={"tokenizer_dir": home / "tokenizer_quickstart"})

    before, after = tmp_path / "before", tmp_path / "after"
    run(before, config(before), stop_at=3)
    before.rename(after)
    run(after, config(after))
    assert store.steps(Home(after).runs / "run")[-1] == 12


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["write", "sync"])
def test_a_log_that_cannot_be_written_ends_the_run_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = CONFIG.model_copy(update={"save_every": 4 if what == "sync" else 0, "eval_every": 0})
    append = JsonLines.write
    seen: list[Event] = []

    def failing(self: JsonLines, event: Event) -> None:
        seen.append(event)
        if isinstance(event, Stepped) and event.step == 4:
            raise FULL
        append(self, event)

    def unsynced(path: Path) -> None:
        raise FULL

    with monkeypatch.context() as patched:
        if what == "write":
            patched.setattr(JsonLines, "write", failing)
        else:
            patched.setattr("mlxchat.train.runlog.sync", unsynced)
        with pytest.raises(MlxchatError) as raised:
            run(tmp_path, config)
    log = Home(tmp_path).log("run")
    assert raised.value.problem.startswith(f"The log {log} could not be written: No space left")
    assert "same command" in raised.value.remedy
    (saved,) = store.steps(Home(tmp_path).runs / "run")
    assert 4 <= saved <= 5
    if what == "write":
        assert [event.step for event in seen if isinstance(event, Saved)] == [saved]
    run(tmp_path, config)
    assert logged(tmp_path, "step")[-1] == 12
