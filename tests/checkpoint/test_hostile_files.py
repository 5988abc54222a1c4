"""Files of a checkpoint that say what no run writes, with checksums that agree with them."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cases import GOLDEN
from support.strange_files import STRANGE, put_strange

from mlxchat.checkpoint import catalog, files, layout
from mlxchat.errors import CheckpointError, DataError, MlxchatError
from mlxchat.home import Home
from mlxchat.runtime import machine
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.train.measure import resources
from mlxchat.train.resume import read_saved, resume
from mlxchat.train.stage import history_of, read_trainer

NESTED = "[" * 200_000
FILES = ("config.json", "trainer.json", "tokenizer.json", "tokenizer_config.json")
VALUES = (None, True, -1, 10**18, 1.5, math.inf, math.nan, "1", "9" * 400, [], {"a": []}, "\ud800")


@pytest.fixture
def step(home: Path) -> Path:
    """A checkpoint of a run in the test's own home."""
    shutil.copytree(GOLDEN / "runs" / "sft", home)
    [folder] = home.glob("chatsft_checkpoints/*/step_*")
    return folder


def change(step: Path, name: str, text: str) -> None:
    """Replace a file of the step, and its checksum."""
    (step / name).write_text(text)
    files.write_checksums(step)


def read_trained(step: Path) -> None:
    """Read all that a run resumes from."""
    state = read_trainer(step)
    saved = read_saved(step.parent, state.stage, state.settings)
    assert saved is not None
    list(resume(state.settings, saved, resources(), SYSTEM_CLOCK))


def read_past(step: Path) -> None:
    history_of(step, Home(step.parent.parent.parent))


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": lambda step: layout.read_model(step, machine().compute_dtype),
    "history.json": read_past,
    "trainer.json": read_trainer,
}


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the values within a value are, of each list only the first."""
    yield path
    for key in value if isinstance(value, dict) else range(isinstance(value, list) and len(value)):
        if key not in range(1, 10**6):
            yield from leaves(value[key], (*path, key))


def with_value(value: Any, path: tuple[str | int, ...], new: object) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = with_value(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", READERS)
def test_any_value_anywhere_is_read_or_refused_by_name(name: str, step: Path) -> None:
    """One of the values at each place."""
    sound, refused = json.loads((step / name).read_text("utf-8")), 0
    for number, path in enumerate(leaves(sound)):
        value = VALUES[number % len(VALUES)]
        change(step, name, json.dumps(with_value(sound, path, value)))
        assert catalog.find(Home(step.parent.parent.parent).stages, None, None) == step
        try:
            READERS[name](step)
        except CheckpointError as error:
            refused += 1
            assert name in error.problem, (path, value)
            assert "\n" not in error.problem and error.remedy
    assert refused > 9  # null is the default of several fields


@pytest.mark.parametrize("text", [NESTED, '{"a": ' * 900, "9" * 5000, "null", "5", "", "\ufeff["])
@pytest.mark.parametrize("name", [*FILES, layout.INDEX])
def test_a_file_that_is_no_object_is_named(name: str, text: str, step: Path) -> None:
    change(step, name, text)
    with pytest.raises((CheckpointError, DataError), match=name):
        read_trained(step)
    assert catalog.saved_steps([step.parent], lambda _: None)[0].trainable == (
        name != "trainer.json"
    )


@pytest.mark.parametrize(
    "header",
    [
        NESTED,
        '{"a": ' * 200_000 + "1" + "}" * 200_000,
        '{"__metadata__": {"a": {"b": 1}}}',
        '{"lm_head.weight": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}',
        '{"lm_head.weight": {"dtype": "F32", "shape": [1e18], "data_offsets": [0, 4]}}',
        '{"lm_head.weight": {"dtype": "F32", "shape": [4294967298], "data_offsets": [0, 8]}}',
        '{"lm_head.weight": {"dtype": 7, "shape": null, "data_offsets": [16, 0]}}',
        "null",
        "{}",
    ],
)
@pytest.mark.parametrize("name", [layout.MODEL, "optimizer.safetensors", "loader.safetensors"])
def test_arrays_with_any_header_are_refused_by_name(name: str, header: str, step: Path) -> None:
    content = header.encode()
    (step / name).write_bytes(len(content).to_bytes(8, "little") + content + bytes(16))
    files.write_checksums(step)
    with pytest.raises(CheckpointError, match=str(step)) as raised:
        read_trained(step)
    of_all_files = "weight is missing" in raised.value.problem  # a model may have several
    assert name in raised.value.problem or (of_all_files and name == layout.MODEL)


@pytest.mark.parametrize("kind", STRANGE)
def test_what_lies_beside_runs_and_steps_takes_none_of_them_down(kind: str, step: Path) -> None:
    for name in ("other", "step_000009", "config.json.old"):
        put_strange(kind, step.parent.parent / name)
    put_strange(kind, step.parent / "stray")
    put_strange(kind, step / "stray")
    stages = Home(step.parent.parent.parent).stages
    faults: list[MlxchatError] = []
    found = catalog.saved_steps(catalog.runs(stages), faults.append)
    assert [saved.path for saved in found] == [step]
    assert len(faults) == (3 if kind == "loop" else 0)
    assert catalog.find(stages, None, None) == step


@pytest.mark.parametrize("kind", [kind for kind in STRANGE if kind != "large"])
@pytest.mark.parametrize("name", [*FILES, layout.MODEL, files.CHECKSUMS])
@pytest.mark.parametrize("checked", [True, False])
def test_what_is_no_file_is_named_at_once(name: str, kind: str, checked: bool, step: Path) -> None:
    put_strange(kind, step / name)
    if not checked and name not in (files.CHECKSUMS, "trainer.json"):
        (step / files.CHECKSUMS).unlink()  # as in a model of another program
    faults: list[MlxchatError] = []
    assert catalog.saved_steps([step.parent], faults.append) and not faults
    with pytest.raises(MlxchatError, match=name):
        layout.read_model(step, machine().compute_dtype)
        read_trained(step)
