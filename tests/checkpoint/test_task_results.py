"""Results on tasks are kept for the weights that gave them, whole or not at all."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.adapted import adapter_run, base_run
from support.models import network, saved_in
from support.run_homes import MadeRun
from support.task_scores import put_results, result

from mlxchat.checkpoint import digests, files, task_results
from mlxchat.checkpoint.task_results import (
    KeptResults,
    best_known,
    read_results,
    results_file,
    results_of,
)
from mlxchat.errors import CheckpointError, DiskError, LockedError
from mlxchat.home import Home


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat_eval" / "fox_000040_0a1b2c3d.json"


def test_the_newest_of_equal_settings_stays(path: Path) -> None:
    kept = KeptResults(path)
    assert read_results(path) == () and kept.where is None
    first, other = result(right=50), result("mmlu", right=30)
    limited = result(right=4, asked=10, max_problems=10)
    for each in (first, other, limited, result("counting"), again := result(right=60)):
        kept.add(each)
    assert read_results(path)[:3] == (again, limited, other) and kept.where == path
    KeptResults(path).add(exact := result(right=61, dtype="bfloat16"))
    assert read_results(path) == (again, limited, exact, other, result("counting"))
    assert best_known(read_results(path)) == (exact, other, result("counting"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_answer_of_another_length_is_another_result(path: Path) -> None:
    long, short = (result("gsm8k", max_tokens=most, temperature=0.0) for most in (512, 256))
    KeptResults(path).add(long)
    KeptResults(path).add(short)
    assert read_results(path) == (long, short)


def test_results_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"right": 101},
        {"asked": 0, "right": 0},
        {"low": -0.1},
        {"high": float("nan")},
        {"task": "x" * 101},
        {"random": 1.0},
    ):
        with pytest.raises(ValidationError):
            result().model_validate({**result().model_dump(), **wrong})


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"{}", b'{"format": 2, "results": []}', b'{"format": 1, "results": [{}]}'],
)
def test_a_file_that_cannot_be_read_stays_as_it_is(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="fox_000040_0a1b2c3d"):
        read_results(path)
    kept = KeptResults(path)
    kept.add(result())
    assert isinstance(kept.fault, CheckpointError) and kept.where is None
    assert path.read_bytes() == content


def test_what_a_later_version_adds_is_ignored(path: Path) -> None:
    KeptResults(path).add(result())
    content = json.loads(path.read_text())
    content["results"][0]["examples"] = 3
    path.write_text(json.dumps(content | {"note": "x"}))
    assert read_results(path) == (result(),)


def test_a_full_disk_keeps_the_earlier_results_and_later_writes_what_it_could_not(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptResults(path)
    kept.add(result())
    with monkeypatch.context() as patched:

        def write_text(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patched.setattr(Path, "write_text", write_text)
        kept.add(result("mmlu"))
        assert isinstance(kept.fault, DiskError) and "No space left" in kept.fault.problem
        assert read_results(path) == (result(),) and len(list(path.parent.iterdir())) == 1
    kept.add(result("gsm8k"))
    assert kept.fault is None
    assert [each.task for each in read_results(path)] == ["arc-easy", "mmlu", "gsm8k"]


def test_where_no_folder_can_be_made_that_is_said(path: Path) -> None:
    path.parent.write_text("in the way")
    kept = KeptResults(path)
    kept.add(result())
    assert isinstance(kept.fault, DiskError) and str(path) in kept.fault.problem


def test_several_at_once_lose_nothing(path: Path) -> None:
    tasks = [f"task-{number}" for number in range(8)]
    threads = [
        threading.Thread(target=KeptResults(path).add, args=[result(task)]) for task in tasks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.task for each in read_results(path)} == set(tasks)


def test_a_folder_that_stays_locked_is_not_waited_for_forever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_results, "LONGEST_WAIT", 0.05)
    kept = KeptResults(path)
    with task_results.Lock.take(path.parent, folder=True):  # type: ignore[union-attr]
        kept.add(result())
    assert isinstance(kept.fault, LockedError)


# Whose they are


def test_results_are_those_of_the_weights(home: Path) -> None:
    place = Home(home)
    run = MadeRun("fox").put(place)
    step = run / "step_000040"
    put_results(place, "fox", 40, result())
    assert results_of(place, "fox", 40, step) == (result(),)
    assert results_of(place, "fox", 30, run / "step_000030") == ()
    (step / "model.safetensors").write_bytes(b"trained anew")
    files.write_checksums(step)
    assert results_of(place, "fox", 40, step) == ()


def test_a_directory_without_checksums_is_read(tmp_path: Path) -> None:
    place, seen = Home(tmp_path / "home"), list[tuple[int, int]]()
    folder = saved_in(tmp_path / "model", network())
    path = results_file(place, "model", 0, folder, lambda *read: seen.append(read))
    assert path.name.startswith("model_000000_") and path.parent == place.chat_evaluations
    done, total = seen[-1]
    assert done == total > (folder / "model.safetensors").stat().st_size
    files.write_checksums(shutil.copytree(folder, tmp_path / "model2"))
    assert results_file(place, "model", 0, tmp_path / "model2") == path
    other = saved_in(tmp_path / "other", network(seed=2))
    assert results_file(place, "model", 0, other) != path
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        results_file(place, "model", 0, folder)


def test_an_adapter_has_its_own_results_and_those_of_another_model_below_others(
    home: Path,
) -> None:
    place = Home(home)
    base = base_run(place, network())
    adapter = adapter_run(place, base, "tuned")
    other = adapter_run(place, base, "tuned-again", seed=1)
    on_another = adapter_run(place, base_run(place, network(seed=2), "d2-b"), "on-b")
    names = {results_file(place, "x", 1, folder) for folder in (base, adapter, other, on_another)}
    assert len(names) == 4


def test_nothing_is_read_where_nothing_is_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved_in(tmp_path / "model", network())
    monkeypatch.setattr(digests, "sha256_of", None)
    assert results_of(Home(home), "model", 0, folder) == ()
