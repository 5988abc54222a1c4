"""`--config` and `--resume`: settings below those of the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from support.program import Program

import mlxchat
from mlxchat.checkpoint import store
from mlxchat.cli import stages
from mlxchat.cli.layers import flat
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.settings_file import SettingsFile
from mlxchat.home import Home
from mlxchat.telemetry.events import Started
from mlxchat.telemetry.meter import Meter
from mlxchat.train.world import ALONE

TINY = """# A tiny model
depth = 1
dataset = "builtin"
max_seq_len = 32
device_batch_size = 4
total_batch_size = 256
vocab_size = 300
num_iterations = 2
eval_every = 0
sample_every = 0
model_tag = "tiny"
"""


@pytest.fixture
def program(
    prepared_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Program:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(TINY)
    return Program(monkeypatch, capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, builtin_tokenizer: Path) -> Path:
    """A home with the run that the file describes, and its steps 1 and 2."""
    home = tmp_path_factory.mktemp("trained")
    shutil.copytree(builtin_tokenizer, home / builtin_tokenizer.name)
    path = home / "run.toml"
    path.write_text(TINY)
    file = SettingsFile.read(path, PretrainConfig)
    list(mlxchat.pretrain(**file.values, save_every=1, home=home))
    return home


@pytest.fixture
def tiny(trained: Path, program: Program, home: Path) -> Program:
    """The program in a copy of that home."""
    shutil.copytree(trained, home, dirs_exist_ok=True)
    return program


def settings(program: Program, *arguments: str) -> dict[str, Any]:
    code, out, err = program(*arguments, "--json")
    assert code == 0, err
    return dict(json.loads(out)["settings"])


def test_the_command_line_goes_before_the_file(program: Program) -> None:
    shown = settings(program, "info", "--config", "run.toml", "--depth", "2")
    assert (shown["depth"], shown["max_seq_len"], shown["seed"]) == (2, 32, 42)
    _, out, _ = program("train", "--dry-run", "--config=run.toml", "--depth", "2")
    rows = [line.split() for line in out.splitlines()]
    assert ["depth", "2", "command", "line"] in rows
    assert ["max_seq_len", "32", "run.toml"] in rows
    assert "Settings" not in program("info", "--depth", "1")[1]
    _, out, _ = program(
        "info", "--config", "run.toml", "--endpoint", "http://me:secret@127.0.0.1:9/models"
    )
    assert "http://127.0.0.1:9/models (command line)" in out


def test_info_on_a_run_with_other_settings_in_a_file_suggests_another_name(tiny: Program) -> None:
    code, _, err = tiny("info", "--config", "run.toml", "--depth", "2")
    assert code == 1
    assert "give another --model-tag for a new run" in err


def test_a_file_may_say_auto_and_the_command_line_may_say_it_after_a_number(
    program: Program,
) -> None:
    shown = settings(program, "info", "--config", "run.toml", "--depth", "auto")
    assert shown["depth"] is None


@pytest.mark.parametrize(
    ("added", "arguments", "problem", "remedy"),
    [
        ("dept = 1", [], "run.toml, line 12: there is no setting 'dept'", "Did you mean depth?"),
        ('keep = "2"', [], 'run.toml, line 12: keep = "2": input should be', "keep"),
        ("supervise = true", [], "there is no setting 'supervise'", "command line: --supervise"),
        ('memory_limit = "12"', [], "run.toml, line 12: '12' is not an amount", "12GB"),
        ("", ["--budget", "1h"], "--num-iterations 2 cannot be given as well", "one of them"),
        ("[lora]\nrank = 2", [], "--lora trains an adapter on an existing model", "--init-from"),
    ],
)
def test_a_fault_of_the_file_is_named(
    program: Program, added: str, arguments: list[str], problem: str, remedy: str
) -> None:
    Path("run.toml").write_text(f"{TINY}{added}\n")
    code, out, err = program("train", "--config", "run.toml", *arguments)
    assert (code, out) == (1, "")
    first, second = err.splitlines()
    assert problem in first and remedy in second


def test_the_settings_of_an_adapter_are_a_table(tiny: Program) -> None:
    Path("lora.toml").write_text('init_from = "tiny"\ndropout = 0.5\n[lora]\nrank = 2\nscale = 4\n')
    lora = settings(tiny, "info", "--config", "lora.toml", "--scale", "8")["lora"]
    assert (lora["rank"], lora["scale"], lora["dropout"]) == (2, 8, 0.5)
    _, out, _ = tiny("info", "--config", "lora.toml", "--scale", "8")
    rows = [line.split() for line in out.splitlines()]
    assert ["lora.rank", "2", "lora.toml"] in rows
    assert ["lora.scale", "8.0", "command", "line"] in rows
    assert flat({"lora": False}) == {"lora": False}


def test_a_run_is_resumed_by_its_name(tiny: Program, home: Path) -> None:
    saved = Home(home).runs / "tiny"
    last = store.latest(saved)
    assert last
    state = json.loads((last / "trainer.json").read_text())
    assert (state["settings"]["depth"], state["settings"]["save_every"]) == (1, 1)
    last.rename(home / "moved")  # as if it had been stopped after the first step
    code, out, _ = tiny("train", "--resume", "tiny", "--memory-limit", "2GB", "--dry-run")
    assert code == 0
    assert "newest checkpoint is step 1 of 2" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["memory_limit", "2GB", "command", "line"] in rows
    assert ["max_seq_len", "32", "as", "saved", "in", "tiny"] in rows
    assert not any(row[:1] == ["seed"] for row in rows)  # left to its default
    assert tiny("train", "--resume", "tiny")[0] == 0
    assert store.steps(saved)[-1] == 2
    code, out, _ = tiny("train", "--resume", "tiny")
    assert code == 0 and "The run tiny is finished" in out


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--depth", "2"], 1, "--depth (1 -> 2)"),
        (["--num-iterations", "9"], 1, "--num-iterations (2 -> 9)"),
        (["--config", "other.toml"], 1, "--seed (42 -> 7)"),
        (["--fresh"], 2, "--resume cannot be combined with --fresh"),
        (["--model-tag", "other"], 1, "--resume tiny already names the run"),
    ],
)
def test_other_settings_are_refused_when_a_run_is_resumed(
    tiny: Program, arguments: list[str], code: int, problem: str
) -> None:
    Path("other.toml").write_text('seed = 7\nmodel_tag = "tiny"')
    found, _, err = tiny("train", "--resume", "tiny", *arguments)
    assert found == code
    assert problem in err


@pytest.mark.parametrize("stage", ["mid", "sft", "rl"])
def test_a_run_of_another_stage_is_resumed_by_its_own_command(tiny: Program, stage: str) -> None:
    code, _, err = tiny(stage, "--resume", "tiny")
    assert code == 1
    assert "tiny is a run of pretraining" in err
    assert "mlxchat train --resume tiny" in err


def supervised(monkeypatch: pytest.MonkeyPatch, program: Program, *arguments: str) -> list[str]:
    """The arguments of the process that a supervisor starts; a file of settings as its text."""
    seen: list[str] = []

    def train(given: list[str], run: Path, fresh: bool, json: bool) -> int:
        assert run.name == "tiny"
        for word in given:
            name = word.removeprefix("--config=")
            seen.append(Path(name).read_text() if name != word else word)
        return 0

    monkeypatch.setattr(stages, "train_supervised", train)
    code, _, err = program("train", "--supervise", *arguments)
    assert code == 0, err
    return seen


@pytest.mark.parametrize("option", [["--config", "run.toml"], ["--config=run.toml"]])
def test_a_supervised_run_keeps_its_settings_file(
    program: Program, monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    given = supervised(monkeypatch, program, *option, "--keep", "2")
    assert given == ["train", TINY, "--keep", "2", "--no-stay-awake"]
    with stages.with_own_settings_file(["train", *option]) as words:
        copy = Path(words[1].removeprefix("--config="))
        assert copy.read_text() == TINY and copy != Path("run.toml")
    assert not copy.exists()
    with stages.with_own_settings_file(["train", *option, "--hosts", "h.json"]) as words:
        assert words == ["train", "--config=run.toml", "--hosts", "h.json"]


def test_a_run_is_supervised_by_its_name(tiny: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    given = supervised(monkeypatch, tiny, "--resume", "tiny")
    assert given == ["train", "--resume", "tiny", "--no-stay-awake"]


@pytest.mark.parametrize(
    ("step", "json", "said"),
    [(1, False, "Or resume it with: mlxchat train --resume tiny\n"), (1, True, ""), (2, False, "")],
)
def test_an_interrupted_run_says_how_to_resume_it(
    tiny: Program,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    json: bool,
    said: str,
) -> None:
    """A run that has made its last step is not interrupted, whatever key is pressed then."""

    def watch(begin: Callable[..., object], json: bool) -> None:
        meter = Meter()
        meter.update(Started(0.0, "tiny", step, 2, 64, 10, None, "a chip", 1))
        begin(lambda event: None, meter, lambda: False)
        raise typer.Exit(130)

    monkeypatch.setattr(stages, "watch_run", watch)
    config = PretrainConfig(model_tag="tiny")
    with pytest.raises(typer.Exit):
        stages.lead(
            lambda *_, **__: iter(()), config, ALONE, fresh=False, stay_awake=False, json=json
        )
    assert capsys.readouterr().out == said
