"""`mlxchat checkpoints`, in a home with a run, a quantized copy and a run that is being trained."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from support.checkpoints import put_step
from support.program import Program

from mlxchat.checkpoint import catalog, files, store
from mlxchat.disk import disk_use
from mlxchat.errors import MlxchatError
from mlxchat.home import Home


@pytest.fixture
def runs(home: Path) -> Path:
    folder = Home(home).runs
    for step in (10, 20, 30):
        put_step(folder / "d4", step)
    put_step(folder / "d4-4bit", 30, quantized=True)
    for step in (1, 2):
        put_step(folder / "busy", step)
    return folder


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys, "checkpoints")


def test_list_shows_every_checkpoint(program: Program, runs: Path) -> None:
    code, said, _ = program("list")
    assert code == 0
    lines = said.splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["busy", "1"], ["busy", "2"], ["d4", "10"], ["d4", "20"], ["d4", "30"], ["d4-4bit", "30"]
    ]  # fmt: skip
    assert "quantized, 4 bits" in lines[6] and "no" in lines[6].split()
    assert lines[-1].startswith("6 checkpoints, ")
    _, said, _ = program("list", "--model-tag", "d4-4bit", "--json")
    (entry,) = json.loads(said)
    folder = runs / "d4-4bit" / "step_000030"
    assert entry == {
        "tag": "d4-4bit",
        "step": 30,
        "path": str(folder),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "saved": json.loads((folder / "saved.json").read_text())["time"],
        "bits": 4,
        "base": None,
        "trainable": False,
    }


@pytest.mark.parametrize(
    ("text", "trainable"),
    [
        ('{"format": 4}', True),
        ('{"format": 3}', True),
        ('{"format": 5}', False),
        ('{"format": 2}', False),
        ('{"format": "4"}', False),
        ("{}", False),
        ("null", False),
        ("[" * 200_000, False),
    ],
)
def test_list_says_that_only_what_this_version_reads_can_be_trained(
    text: str, trainable: bool, program: Program, home: Path
) -> None:
    folder = put_step(Home(home).runs / "d4", 10)
    (folder / "trainer.json").write_text(text)
    code, said, told = program("list", "--json")
    assert (code, told) == (0, "")
    assert json.loads(said)[0]["trainable"] is trainable
    assert ("yes" in program("list")[1].split()) is trainable


def test_an_empty_home_is_no_error(program: Program) -> None:
    assert program("list", "--json")[1] == "[]\n"
    for command in ("list", "verify"):
        assert "There are no checkpoints in" in program(command)[1]
    assert program("prune") == (0, "0 checkpoints removed, 0 B freed.\n", "")
    code, _, said = program("list", "--model-tag", "d9")
    assert code == 1 and "no trained model" in said


def test_verify_names_every_damaged_step(program: Program, runs: Path) -> None:
    code, said, told = program("verify")
    assert code == 0
    assert said.count(" is intact.\n") == 6
    assert "d4-4bit/step_000030: " in told  # the bar's line
    model = runs / "d4" / "step_000020" / "model.safetensors"
    model.write_bytes(bytes(999) + b"\1")
    (runs / "d4" / "step_000010" / "trainer.json").unlink()
    (runs / "busy" / "step_000001" / files.CHECKSUMS).unlink()
    code, said, _ = program("verify", "--json")
    assert code == 1
    faults = {Path(entry["path"]).parts[-2:]: entry["fault"] for entry in json.loads(said)}
    assert f"{model} is damaged" in faults["d4", "step_000020"]
    assert "trainer.json is missing" in faults["d4", "step_000010"]
    assert "SHA256SUMS is missing" in faults["busy", "step_000001"]
    assert [fault for fault in faults.values() if fault is None] == [None] * 3
    assert program("verify", "--model-tag", "d4", "--step", "20")[0] == 1
    assert program("verify", "--model-tag", "d4", "--step", "30")[0] == 0
    assert program("verify", "--checkpoint", str(runs / "d4" / "step_000030"))[0] == 0
    assert program("verify", "--checkpoint", str(runs / "d4"))[0] == 1
    assert program("verify", "--checkpoint", str(runs / "d9"))[0] == 1
    assert program("verify", "--checkpoint", str(runs), "--step", "1")[0] == 2


def test_prune_keeps_the_newest_steps_and_skips_runs_in_use(program: Program, runs: Path) -> None:
    (runs / "d4" / ".unfinished_step_000040").mkdir()
    with store.locked(runs / "busy"):
        code, said, _ = program("prune", "--keep", "2", "--dry-run")
        assert (code, said.splitlines()[0].partition(":")[0]) == (0, "d4, step 10")
        assert store.steps(runs / "d4") == [10, 20, 30]
        code, said, told = program("prune")
        assert code == 0
        assert "Another process is using the run busy." in told
        assert "2 checkpoints removed" in said
        assert store.steps(runs / "d4") == [30]
        assert [path.name for path in (runs / "d4").iterdir()] == ["step_000030"]
        assert store.steps(runs / "busy") == [1, 2]
        code, _, told = program("prune", "--model-tag", "busy")
        assert code == os.EX_TEMPFAIL and "Another process" in told
    code, said, _ = program("prune", "--model-tag", "busy", "--json")
    removed = json.loads(said)
    assert removed["removed"] == [str(runs / "busy" / "step_000001")]
    assert removed["bytes"] > 1000


@pytest.mark.parametrize("options", [[], ["--model-tag", "killed"]])
def test_prune_cleans_up_runs_without_steps(
    program: Program, runs: Path, options: list[str]
) -> None:
    left = runs / "killed" / ".unfinished_step_000001"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(bytes(5000))
    code, said, _ = program("prune", *options, "--dry-run", "--keep", "3")
    assert (code, said) == (
        0,
        "killed, unfinished: 5.0 kB\n0 checkpoints would be removed and 5.0 kB freed.\n",
    )
    with store.locked(runs / "killed"):
        program("prune", *options, "--keep", "3")
    assert left.exists()
    code, said, _ = program("prune", *options, "--keep", "3", "--json")
    assert code == 0 and json.loads(said)["removed"] == [str(left)]
    assert not (runs / "killed").exists()
    assert store.steps(runs / "d4") == [10, 20, 30]


def test_older_steps_are_kept_if_the_newest_is_damaged(program: Program, runs: Path) -> None:
    (runs / "d4" / "step_000030" / "model.safetensors").write_bytes(b"")
    code, _, told = program("prune", "--model-tag", "d4")
    assert code == 1 and "model.safetensors is damaged" in told
    assert store.steps(runs / "d4") == [10, 20, 30]


def test_prune_keeps_the_best_step(program: Program, home: Path) -> None:
    evaluations = json.dumps({"format": 4, "meter": {"evaluations": [[10, 1.0], [30, 1.5]]}})
    run = Home(home).runs / "d4"
    for step in (10, 20, 30):
        folder = put_step(run, step)
        (folder / "trainer.json").write_text(evaluations)
        files.write_checksums(folder)
    code, said, _ = program("prune", "--dry-run")
    assert code == 0 and "d4, step 20: " in said and "1 checkpoint would be removed" in said
    assert program("prune")[0] == 0
    assert store.steps(run) == [10, 30]


def test_a_run_that_cannot_be_pruned_does_not_stop_the_others(program: Program, runs: Path) -> None:
    old = runs / "busy" / "step_000002"
    (old / files.CHECKSUMS).unlink()
    (old / "trainer.json").write_text('{"format": 2}')
    (runs / "d4" / "step_000030" / "model.safetensors").write_bytes(b"")
    for step in (1, 2):
        put_step(runs / "fine", step)
    for arguments, done in ((["--dry-run"], "would be removed"), ([], "removed")):
        code, said, told = program("prune", *arguments)
        assert code == 1
        assert "fine, step 1: " in said and f"1 checkpoint {done}" in said
        assert "model.safetensors is damaged" in told
        told = " ".join(told.split())
        assert "step_000002 was saved by an earlier version of mlxchat" in told
        assert "Remove old checkpoints of that run by hand" in told
    assert [store.steps(runs / name) for name in ("busy", "d4", "fine")] == [
        [1, 2], [10, 20, 30], [2]
    ]  # fmt: skip
    code, said, _ = program("prune", "--json")
    assert code == 1
    assert json.loads(said)["removed"] == []
    assert [entry["path"] for entry in json.loads(said)["left_out"]] == [
        str(runs / "busy"), str(runs / "d4")
    ]  # fmt: skip
    code, _, told = program("prune", "--model-tag", "busy")
    assert code == 1 and "by hand" in told


def test_prune_reports_what_it_removed_before_it_failed(
    program: Program, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prune(run: Path, keep: int) -> None:
        shutil.rmtree(store.directory(run, store.steps(run)[0]))
        raise MlxchatError("Old steps could not be removed.", "See who may write there.")

    monkeypatch.setattr(store, "prune", prune)
    (runs / "busy").rename(runs / "c")
    code, said, told = program("prune", "--json")
    assert code == 1 and "could not be removed" in told
    removed = [Path(path).parts[-2:] for path in json.loads(said)["removed"]]
    assert removed == [("c", "step_000001"), ("d4", "step_000010")]


def test_steps_that_vanish_during_a_command_are_skipped(
    program: Program, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = store.locked

    def vanishing(run: Path) -> AbstractContextManager[None]:
        shutil.rmtree(run)
        return locked(run)

    monkeypatch.setattr(store, "locked", vanishing)
    assert program("prune")[:2] == (0, "0 checkpoints removed, 0 B freed.\n")


def faults(said: str) -> dict[str, str]:
    """What `prune --json` left out, by run."""
    return {Path(entry["path"]).name: entry["fault"] for entry in json.loads(said)["left_out"]}


def test_prune_keeps_a_good_step_if_the_newest_has_a_dangling_link(
    program: Program, runs: Path, tmp_path: Path
) -> None:
    model = runs / "d4" / "step_000030" / "model.safetensors"
    model.rename(tmp_path / "moved")
    model.symlink_to(tmp_path / "unplugged")
    code, said, _ = program("list", "--model-tag", "d4", "--json")
    assert code == 0 and [entry["step"] for entry in json.loads(said)] == [10, 20, 30]
    code, said, _ = program("verify", "--model-tag", "d4")
    assert code == 1 and f"{model} is a link to {tmp_path / 'unplugged'}, which does not" in said
    code, said, _ = program("prune", "--json")
    assert code == 1 and str(model) in faults(said)["d4"]
    assert store.steps(runs / "d4") == [10, 20, 30]
    assert store.steps(runs / "busy") == [2]


@pytest.mark.parametrize("what", ["d4", "d4/step_000030"])
def test_a_run_or_step_on_a_missing_disk_is_named_and_the_others_are_shown(
    what: str, program: Program, runs: Path, tmp_path: Path
) -> None:
    gone = runs / what
    gone.rename(tmp_path / "moved")
    gone.symlink_to(tmp_path / "unplugged")
    code, said, told = program("list", "--json")
    assert code == 1 and f"{gone} is a link to {tmp_path / 'unplugged'}" in told
    assert {entry["tag"] for entry in json.loads(said)} >= {"busy", "d4-4bit"}
    code, said, _ = program("verify")
    assert code == 1 and f"{gone} is a link to" in said
    assert f"{runs / 'busy' / 'step_000002'} is intact" in said
    for command in ("list", "verify", "prune"):
        code, said, told = program(command, "--model-tag", "d4")
        assert code == 1 and str(gone) in said + told
    code, said, _ = program("prune", "--json")
    assert code == 1 and str(gone) in faults(said)["d4"]
    assert store.steps(runs / "busy") == [2]
    if what == "d4":
        assert program("list", "--model-tag", "d4-4bit")[0] == 0
        assert catalog.find([runs], None, None).parent.name in ("busy", "d4-4bit")
    with pytest.raises(MlxchatError, match="is a link to"):
        catalog.find([runs], "d4", None)


def test_prune_removes_only_the_link_to_a_step_on_another_disk(
    program: Program, runs: Path, tmp_path: Path
) -> None:
    old = runs / "d4" / "step_000010"
    old.rename(tmp_path / "moved")
    old.symlink_to(tmp_path / "moved")
    (runs / "d4" / "step_000020" / "more").write_bytes(bytes(10**6))
    of_20 = disk_use([runs / "d4" / "step_000020"]).bytes
    said = program("prune", "--model-tag", "d4", "--dry-run", "--json")[1]
    assert json.loads(said)["bytes"] == of_20
    code, said, _ = program("prune", "--model-tag", "d4")
    assert code == 0 and f"removed, {of_20 / 1e6:.1f} MB freed." in said
    assert [path.name for path in (runs / "d4").iterdir()] == ["step_000030"]
    assert (tmp_path / "moved" / "trainer.json").exists()


def test_files_that_runs_share_count_once_and_are_freed_with_the_last_of_them(
    program: Program, home: Path
) -> None:
    runs = Home(home).runs
    for step in (10, 20):
        (put_step(runs / "a", step) / "more").write_bytes(bytes(10**6))
        shutil.copytree(
            store.directory(runs / "a", step),
            store.directory(runs / "b", step),
            copy_function=os.link,
        )
    said = program("list")[1]
    assert said.endswith("4 checkpoints, 2.0 MB; what copies share counts once\n")
    assert program("list", "--model-tag", "a")[1].endswith("2 checkpoints, 2.0 MB\n")
    for options, freed in (
        (["--model-tag", "a", "--dry-run"], "1 checkpoint would be removed and 0 B freed."),
        (["--dry-run"], "2 checkpoints would be removed and 1.0 MB freed."),
        (["--model-tag", "a"], "1 checkpoint removed, 0 B freed."),
        (["--model-tag", "b"], "1 checkpoint removed, 1.0 MB freed."),
    ):
        assert program("prune", *options)[1].splitlines()[-1] == freed


def test_an_unreadable_run_does_not_stop_the_others(
    program: Program, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("c", "d", "e"):
        for step in (1, 2):
            put_step(runs / name, step)
    (runs / ".c.lock").mkdir()
    (runs / "d" / "step_000002" / files.CHECKSUMS).unlink()
    (runs / "d" / "step_000002" / files.CHECKSUMS).mkdir()
    secret, iterate = runs / "e" / "step_000001", Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path == secret:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterate(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    code, said, told = program("list", "--json")
    assert code == 1 and f"{secret} cannot be read: Permission denied" in told
    assert len(json.loads(said)) == 11
    code, said, told = program("prune", "--json")
    assert code == 1
    assert f"lock {runs / '.c.lock'} cannot be opened" in faults(said)["c"]
    assert "SHA256SUMS is damaged (Is a directory)" in faults(said)["d"]
    assert f"{secret} cannot be read" in faults(said)["e"]
    removed = [Path(path).parts[-2:] for path in json.loads(said)["removed"]]
    assert removed == [("busy", "step_000001"), ("d4", "step_000010"), ("d4", "step_000020")]
    code, said, _ = program("verify", "--model-tag", "d")
    assert code == 1 and "SHA256SUMS is damaged" in said
    secret = runs
    code, _, told = program("list")
    assert code == 1 and f"{runs} cannot be read" in told


def test_a_traceback_does_not_change_the_exit_code(
    program: Program, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXCHAT_DEBUG", "1")
    with store.locked(runs / "busy"):
        code, _, told = program("prune", "--model-tag", "busy")
    assert code == os.EX_TEMPFAIL
    assert "Traceback" in told and told.endswith("use another name with --model-tag.\n")
    code, _, told = program("list", "--model-tag", "d9")
    assert code == 1 and "Traceback" in told


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EACCES, "SHA256SUMS cannot be read: Permission denied"),
        (errno.EIO, r"SHA256SUMS is damaged \(Input/output error\)"),
    ],
)
def test_an_unreadable_checksum_file_is_an_error(
    code: int, said: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_regular(path: Path, most: int) -> bytes:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(files, "read_regular", read_regular)
    with pytest.raises(MlxchatError, match=said):
        files.verify_file(runs / "d4" / "step_000030" / "config.json")


def test_sha256sum_verifies_the_checksums(runs: Path) -> None:
    folder = runs / "d4" / "step_000030"
    lines = (folder / files.CHECKSUMS).read_text().splitlines()
    assert [line[64:] for line in lines] == [
        "  config.json", "  model.safetensors", "  saved.json", "  trainer.json"
    ]  # fmt: skip
    assert lines[1].startswith("541b3e9daa09b20bf85fa273e5cbd3e8")  # of 1,000 zeros


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xff\n", b"no sum  config.json\n", b"0" * 64 + b"  config.json"]
)
def test_a_malformed_checksum_file_is_damaged(runs: Path, content: bytes) -> None:
    folder = runs / "d4" / "step_000030"
    (folder / files.CHECKSUMS).write_bytes(content)
    with pytest.raises(MlxchatError, match="SHA256SUMS is damaged"):
        files.verify_file(folder / "config.json")


def test_a_step_is_kept_aside_even_if_the_disk_has_no_links(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", link)
    kept = store.keep_aside(runs / "d4", 30)
    assert kept == runs / "d4.good1" / "step_000030"
    assert store.keep_aside(runs / "d4", 30) == kept
    shutil.rmtree(runs / "d4")
    for name in files.files_with_checksums(kept):
        files.verify_file(kept / name)
