"""The best checkpoint outlives newer ones, whatever else is saved or cannot be read."""

import json
from pathlib import Path

import pytest

from mlxchat.checkpoint import catalog, store
from mlxchat.checkpoint.best import best_step, scored_steps

Evaluations = list[tuple[int, float]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def save(folder: Path, step: int, evaluations: Evaluations) -> None:
    """Save a step that knows these evaluations."""
    state = json.dumps({"format": 4, "meter": {"evaluations": evaluations}})
    store.save(folder, step, lambda unfinished: _write(unfinished / "trainer.json", state))


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize(
    ("bits", "kept"),
    [
        ([3.0, 1.0, 2.0, 2.5, 2.6], [2, 4, 5]),  # the best is older than the newest two
        ([5.0, 4.0, 3.0, 2.0, 1.0], [4, 5]),  # or one of them
        ([2.0, 1.0, 1.0, 3.0, 3.0], [3, 4, 5]),  # or the newest of two that are equal
    ],
)
def test_the_best_step_is_kept_beside_the_newest(
    folder: Path, bits: list[float], kept: list[int]
) -> None:
    evaluations = list(enumerate(bits, start=1))
    for step, _ in evaluations:
        save(folder, step, evaluations[:step])
        store.prune(folder, 2)
        assert len(store.steps(folder)) <= 3
    assert store.steps(folder) == kept


def test_only_saved_steps_count(folder: Path) -> None:
    for step in (1, 2, 3, 4):
        save(folder, step, [(0, 0.1), (2, 1.0), (4, 1.5), (9, 0.1)])
    assert store.prune(folder, 1) == [1, 3]
    assert best_step(store.directory(folder, 4), [3, 4]) == (4, 1.5)
    assert best_step(store.directory(folder, 4), [3]) is None


def test_a_step_evaluated_twice_counts_as_it_was_evaluated_last(folder: Path) -> None:
    for step in (1, 2, 3):
        save(folder, step, [(1, 1.0), (2, 2.0), (3, 3.0), (1, 2.5)])
    assert best_step(store.directory(folder, 3), [1, 2, 3]) == (2, 2.0)


@pytest.mark.parametrize(
    "state",
    [
        "{",
        "{}",
        '{"meter": 3}',
        '{"meter": {"evaluations": [[1, "1.0"]]}}',
        '{"meter": {"evaluations": [[1, NaN]]}}',
        '{"meter": {"evaluations": [[-1, 1.0]]}}',
    ],
)
def test_without_evaluations_that_can_be_read_the_newest_are_kept(folder: Path, state: str) -> None:
    for step in (1, 2, 3):
        save(folder, step, [(1, 1.0)])
    (store.directory(folder, 3) / "trainer.json").write_text(state)
    assert store.prune(folder, 2) == [1]
    (store.directory(folder, 3) / "trainer.json").unlink()
    assert store.prune(folder, 1) == [2]
    assert catalog.better_than_newest(folder) is None


@pytest.mark.parametrize(
    ("last", "better"), [(1.0, False), (0.9, False), (1.005, False), (1.006, True)]
)
def test_a_run_that_ends_clearly_worse_is_found(folder: Path, last: float, better: bool) -> None:
    assert catalog.better_than_newest(folder) is None
    for step in (1, 2):
        save(folder, step, [(1, 1.0), (2, last)])
    found = catalog.better_than_newest(folder)
    assert found == (((1, 1.0), (2, last)) if better else None)


def test_a_last_step_that_was_not_evaluated_is_not_called_worse(folder: Path) -> None:
    for step in (1, 2):
        save(folder, step, [(1, 1.0)])
    assert catalog.better_than_newest(folder) is None


def test_a_run_that_is_judged_keeps_the_step_that_answers_most(folder: Path) -> None:
    scores = [(1, 0.2), (2, 0.5), (3, 0.4), (4, 0.3)]
    for step, _ in scores:
        state = json.dumps({"meter": {"evaluations": [], "scores": scores[:step]}})
        store.save(folder, step, lambda unfinished, s=state: _write(unfinished / "trainer.json", s))
        store.prune(folder, 1)
    assert store.steps(folder) == [2, 4]
    newest = store.directory(folder, 4)
    assert scored_steps(newest, [2, 4]) == [(2, 0.5), (4, 0.3)]
