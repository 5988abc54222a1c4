"""Saving on a failing disk, damaged files, and locks: the newest good step can be loaded."""

import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.disk_faults import Faults, Killed
from support.marks import slow
from support.runs import CONFIG, run

from mlxchat.checkpoint import files, layout, store, trainer
from mlxchat.errors import LockedError, MlxchatError
from mlxchat.home import Home
from mlxchat.locks import Lock
from mlxchat.runtime import machine
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.resume import TrainState, load_state

SAVED = CONFIG.model_copy(
    update={"num_iterations": 4, "eval_every": 0, "sample_every": 0, "save_every": 2}
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a run whose steps 2 and 4 are saved."""
    home = tmp_path_factory.mktemp("trained")
    run(home, SAVED)
    return home


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """One of its own."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))


def load(home: Path) -> TrainState:
    """Read the newest step as a resuming run does."""
    saved = Pretraining(SAVED, Home(home)).saved()
    assert saved is not None
    return load_state(saved.plan, saved, machine().compute_dtype)


def save(home: Path, state: TrainState, step: int) -> None:
    """Save the state as a step and remove the oldest, as a run does."""
    saved = Pretraining(SAVED, Home(home)).saved()
    assert saved is not None
    record = saved.trainer.model_copy(update={"step": step})

    def write(folder: Path) -> None:
        layout.write_model(folder, state.model, state.tokenizer, True)
        trainer.write_state(folder, record, state.optimizer.state, state.loader)

    folder = Home(home).runs / "run"
    store.save(folder, step, write)
    store.prune(folder, 2)


@pytest.mark.parametrize("kind", [slow("once"), slow("full"), "killed"])
def test_the_newest_step_can_be_loaded_whatever_fails_in_a_save(
    kind: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, folder, step = load(copied), Home(copied).runs / "run", 4
    with monkeypatch.context() as patched:
        counting = Faults(10**9, "once")
        counting.patch(patched)
        save(copied, state, step := step + 1)
    assert counting.done > 25
    for at in range(counting.done):
        faults = Faults(at, kind)
        with monkeypatch.context() as patched:
            faults.patch(patched)
            try:
                save(copied, state, step + 1)
            except MlxchatError as error:
                assert "could not be" in error.problem and "intact" in error.remedy
                assert kind != "full" or "No space left" in error.problem
            except Killed:
                assert kind == "killed"
            else:
                assert at >= faults.done - 1  # the last thing of all, or none, failed unnoticed
        newest = load(copied).step
        assert newest in (step, step + 1), at
        if newest == step:
            save(copied, state, step + 1)
        step += 1
        assert load(copied).step == step
        store.prune(folder, 2)
        assert store.steps(folder) == [step - 1, step]


def test_a_full_disk_error_says_what_to_free(copied: Path) -> None:
    state = load(copied)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 5000, 100_000, 250_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(MlxchatError, match=r"Step 5 could .* [MGT]B are free") as raised:
                save(copied, state, 5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "mlxchat checkpoints list" in raised.value.remedy
        assert load(copied).step == 4
        assert not list((Home(copied).runs / "run").glob(".unfinished*"))
    save(copied, state, 5)
    assert load(copied).step == 5


@pytest.mark.slow
def test_every_changed_byte_is_refused_and_its_file_named(copied: Path) -> None:
    order = random.Random(3)
    folder = Home(copied).runs / "run" / "step_000004"
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert len(contents) == 10
    for _ in range(500):
        name = order.choice(list(contents))
        changed = bytearray(contents[name])
        changed[order.randrange(len(changed))] ^= order.randint(1, 255)
        (folder / name).write_bytes(changed)
        with pytest.raises(MlxchatError) as raised:
            load(copied)
        assert str(folder) in raised.value.problem
        assert f"{name} is damaged" in raised.value.problem or name == files.CHECKSUMS
        assert files.CHECKSUMS in raised.value.problem
        assert "earlier checkpoint" in raised.value.remedy
        (folder / name).write_bytes(contents[name])
    assert load(copied).step == 4


def test_a_model_is_verified_when_it_is_loaded_for_chat(copied: Path) -> None:
    folder = Home(copied).runs / "run" / "step_000004"
    for name in (layout.CONFIG, layout.MODEL, layout.GENERATION, "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + b" ")
        with pytest.raises(MlxchatError, match=f"{name} is damaged"):
            layout.read_model(folder, machine().compute_dtype)
        (folder / name).write_bytes(content)
    (folder / files.CHECKSUMS).unlink()  # as of another program's model
    layout.read_model(folder, machine().compute_dtype)
    with pytest.raises(MlxchatError, match=f"{files.CHECKSUMS} is missing"):
        load(copied)


LOCKING = """
import sys, time
from pathlib import Path
from mlxchat.checkpoint import store
with store.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of the run ``run`` in the home ``tmp_path``."""
    command = [sys.executable, "-c", LOCKING, str(Home(tmp_path).runs / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_void(
    number: int, holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = Home(tmp_path).runs / "run"
    for _ in range(2):
        with pytest.raises(MlxchatError, match="Another process is using the run run"):
            run(tmp_path)
        time.sleep(0.01)
    assert not folder.exists()
    holder.send_signal(number)
    holder.wait()
    with store.locked(folder):
        pass


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, MlxchatError("a", "b")])
def test_an_interrupted_save_leaves_nothing(end: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def ended(folder: Path) -> None:
        (folder / "large").write_bytes(bytes(1000))
        raise end

    with pytest.raises(BaseException) as raised:
        store.save(run, 1, ended)
    assert raised.value is end or raised.type is end
    assert not run.exists()
    store.save(run, 1, lambda folder: (folder / "small").touch())
    with pytest.raises(type(raised.value)):
        store.save(run, 2, ended)
    assert [path.name for path in run.iterdir()] == ["step_000001"]


def test_a_run_stays_locked_when_its_lock_file_is_deleted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with store.locked(run):
        (tmp_path / ".run.lock").unlink()
        store.save(run, 1, lambda folder: (folder / "file").touch())
        with pytest.raises(LockedError, match="is using the run run"), store.locked(run):
            pass
        (tmp_path / ".run.lock").unlink()
        store.prune(run, 1)
        with pytest.raises(LockedError), store.locked(run):
            pass


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_run_that_another_process_took_over_is_not_written_to(when: str, tmp_path: Path) -> None:
    run, lock = tmp_path / "run", tmp_path / ".run.lock"
    others: list[Lock] = []

    def take_over() -> None:
        lock.unlink()
        taken = Lock.take(lock)
        assert taken is not None
        others.append(taken)

    def write(folder: Path) -> None:
        (folder / "file").touch()
        if not others:
            take_over()
            (run / ".unfinished_step_000002.theirs").mkdir()

    with store.locked(run):
        store.save(run, 1, lambda folder: (folder / "file").touch())
        if when == "before":
            take_over()
        with pytest.raises(LockedError, match=r"taken over the run run: .*\.run\.lock"):
            store.save(run, 2, write)
        with pytest.raises(LockedError):
            store.prune(run, 1)
    assert store.steps(run) == [1]
    assert (run / ".unfinished_step_000002.theirs").exists() == (when == "meanwhile")
    others[0].release()


def test_a_saved_step_is_never_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    store.save(run, 1, lambda folder: (folder / "file").write_text("first"))
    with pytest.raises(MlxchatError, match="already exists"):
        store.save(run, 1, lambda folder: (folder / "file").write_text("second"))
    assert (run / "step_000001" / "file").read_text() == "first"
