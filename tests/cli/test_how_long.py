"""Before `train` begins, it says how long it will take, and asks if that is more than a day."""

from pathlib import Path

import pytest
import typer
from support.program import Program
from support.thread_ranks import ThreadWorld, in_threads

from mlxchat import runtime
from mlxchat.cli import train as module
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.home import Home
from mlxchat.train.evaluation import never
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.ranks import follow

SHORT = (
    "train --dataset builtin --depth 1 --max-seq-len 32 --total-batch-size 256 --vocab-size 300 "
    "--eval-every 0 --sample-every 0 --num-iterations 1 --model-tag short"
).split()
LONG = "train --dataset builtin --depth 12".split()


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "matmul_flops", lambda *_, **__: 1e11)


@pytest.fixture
def program(
    prepared_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    return Program(monkeypatch, capsys)


def answer(monkeypatch: pytest.MonkeyPatch, said: str | type[BaseException]) -> list[str]:
    """Sit at a terminal and answer, or press a key that raises; returns a list of the questions."""
    asked: list[str] = []

    def typed(question: str) -> str:
        asked.append(question)
        if isinstance(said, str):
            return said
        raise said

    monkeypatch.setattr(module, "can_ask", lambda: True)
    monkeypatch.setattr("builtins.input", typed)
    return asked


@pytest.mark.parametrize("said", ["n", "", "perhaps", EOFError])
def test_a_run_of_more_than_a_day_is_started_only_if_the_user_agrees(
    said: str | type[BaseException],
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    prepared_home: Path,
) -> None:
    asked = answer(monkeypatch, said)
    code, out, err = program(*LONG)
    assert (code, asked, err) == (1, ["Start it? [y/N] "], "")
    assert "The run was not started." in out
    assert "d12: training should take about 416 days on this machine" in out
    assert "--budget 1h" in out
    assert not (prepared_home / "base_checkpoints" / "d12").exists()


def test_ctrl_c_at_the_question_is_no_mistake_of_the_program(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, KeyboardInterrupt)
    code, _, err = program(*LONG)
    assert (code, err) == (130, "")


@pytest.mark.parametrize("said", ["y", " Yes "])
def test_a_user_who_agrees_gets_the_run(
    said: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, said)
    monkeypatch.setattr("mlxchat.train.pretrain.run_pretraining", lambda *_, **__: iter(()))
    monkeypatch.setattr(module, "say_how_to_talk", lambda run: None)
    assert program(*LONG)[0] == 0


def test_a_short_run_is_started_without_a_question(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, "n")
    code, out, _ = program(*SHORT)
    assert (code, asked) == (0, [])
    assert "short: training should take about a second on this machine" in out


@pytest.mark.parametrize("option", ["--yes", "--json", "--budget=2d"])
def test_nobody_is_asked_who_has_answered_or_cannot(
    option: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, "n")
    monkeypatch.setattr("mlxchat.train.pretrain.run_pretraining", lambda *_, **__: iter(()))
    program(*LONG, option)
    assert not asked


def test_rank_0_asks_while_the_others_wait(
    prepared_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answer(monkeypatch, "n")
    config = PretrainConfig(dataset="builtin", depth=12)

    def take_part(world: ThreadWorld) -> None:
        if not world.leads:
            follow(Pretraining, config, Home(prepared_home), world, never)
            return
        with pytest.raises(typer.Exit):
            module._say_how_long(config, Home(prepared_home), world, fresh=False, yes=False)

    in_threads(2, take_part)
    out = capsys.readouterr().out
    assert asked == ["Start it? [y/N] "]
    assert (
        " with 2 ranks." in out
        and "d12: training should take about" in out
        and "The run was not started." in out
    )
