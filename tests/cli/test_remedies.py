"""What a newcomer types wrongly, and the remedy that names the right thing."""

import json
import shutil
from pathlib import Path

import pytest
from support.api_runs import small_runs
from support.program import Program

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with finished runs."""
    home = tmp_path_factory.mktemp("home")
    small_runs(home, tmp_path_factory.mktemp("texts"))
    return home


@pytest.fixture
def finished_runs(runs: Path, home: Path) -> Path:
    """The test's own home, with those runs."""
    shutil.copytree(runs, home, dirs_exist_ok=True)
    return home


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into a folder with a text and a file of conversations."""
    (tmp_path / "novel.txt").write_text("It was a dark night.")
    (tmp_path / "chats.jsonl").write_text(json.dumps(CHAT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        ("chat d4", "Did you mean: mlxchat chat --model-tag d4?"),
        ("data fetch novel.txt", "Did you mean: mlxchat data fetch --from novel.txt?"),
        ("sft chats.jsonl", "Did you mean: mlxchat sft --data chats.jsonl?"),
        ("sft d4", "Did you mean: mlxchat sft --source d4?"),
        ("train --from novel.txt", "mlxchat data fetch --from PATH"),
        ("train --data novel.txt", "mlxchat data fetch --from PATH"),
        ("chat -p", "See: mlxchat chat --help"),
        ("data fetch --from", "See: mlxchat data fetch --help"),
        ("train --dataset novel.d/x.txt", "mlxchat data fetch --from novel.d/x.txt"),
        ("train --dataset wikitext", "mlxchat data fetch --dataset fineweb-edu"),
        ("train --dataset wikitext", "mlxchat data fetch --from PATH --dataset wikitext"),
        ("train --dataset fineweb", "Did you mean --dataset fineweb-edu?"),
        ("train --dataset climbmix", "mlxchat data fetch --dataset climbmix --num-shards 2"),
        ("train", "mlxchat data fetch --num-shards 2"),
        ("data fetch --from chats.jsonl", "mlxchat sft --data chats.jsonl"),
        ("data fetch --from novel.docx", "to text first"),
        ("sft --source d4 --data novel.txt", "mlxchat data fetch --from novel.txt"),
    ],
)
def test_the_remedy_names_what_was_meant(
    typed: str, remedy: str, program: Program, files: Path
) -> None:
    (files / "novel.docx").write_bytes(b"PK")
    code, _, errors = program(*typed.split())
    assert code in (1, 2)
    assert remedy in errors


def test_datasets_on_disk_are_named(program: Program, files: Path, home: Path) -> None:
    folder = home / "base_data_novels"
    folder.mkdir(parents=True)
    for number in (0, 1):
        (folder / f"shard_{number:05d}.parquet").write_bytes(b"PAR1")
    errors = program("train", "--dataset", "novel")[2]
    assert errors.endswith("\nDid you mean --dataset novels? On disk: novels.\n")


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("sft --source quickstart --data nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("sft --source quickstart --data novel.txt", "novel.txt holds text"),
        ("sft --source quickstart --data chats.jsonl", "was started with other settings"),
        ("sft --source nobody --data builtin", "There is no trained model called nobody"),
        ("train --model-tag quickstart --dataset nowhere --depth 3", "There is no data"),
        ("train --model-tag quickstart --depth 3", "was started with other settings"),
    ],
)
def test_what_is_missing_is_said_before_settings_are_compared(
    typed: str, problem: str, program: Program, files: Path, finished_runs: Path
) -> None:
    code, out, errors = program(*typed.split())
    assert (code, out) == (1, "")
    assert problem in errors


def test_an_automatic_name_that_other_data_has_taken_comes_with_a_free_one(
    program: Program, files: Path, finished_runs: Path
) -> None:
    """The names d3 and quickstart-sft are those of runs on other data."""
    stage = finished_runs / "base_checkpoints"
    shutil.copytree(stage / "quickstart", stage / "d3")
    (files / "novel.txt").write_text("\n\n".join(["It was a dark and stormy night. " * 400] * 3))
    assert program("data", "fetch", "--from", "novel.txt", "--dataset", "poems")[0] == 0
    train = ("train", "--depth", "3", "--dataset", "poems")
    code, _, errors = program(*train)
    assert code == 1 and "The run d3 was started with other settings: " in errors
    assert "Give this run a name of its own: --model-tag d3-poems. Or keep" in errors
    assert "use another name with --model-tag" in program(*train, "--model-tag", "d3")[2]
    errors = program("sft", "--source", "quickstart", "--data", "chats.jsonl")[2]
    assert "a name of its own: --model-tag quickstart-sft-chats. Or keep" in errors


def test_a_copy_that_is_there_can_be_made_again(
    program: Program, files: Path, finished_runs: Path
) -> None:
    again = ("quantize", "--model-tag", "quickstart", "--bits", "4", "--eval-tokens", "64")
    assert program(*again)[0] == 0
    step = finished_runs / "base_checkpoints" / "quickstart-4bit" / "step_000004"
    shutil.rmtree(step)
    step.mkdir()
    code, _, errors = program(*again)
    assert code == 1 and "with --fresh" in errors
    assert program(*again, "--fresh")[0] == 0
    assert (step / "model.safetensors").exists()
    assert [path.name for path in step.parent.iterdir()] == [step.name]
