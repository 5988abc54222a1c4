"""Before `train` begins, it says how long it will take, and asks if that is more than a day."""

from pathlib import Path

import pytest
import typer
from support.program import Program

from mlxchat import runtime
from mlxchat.cli import train as module

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


def answer(monkeypatch: pytest.MonkeyPatch, yes: bool) -> list[str]:
    """Sit at a terminal and answer; returns a list of the questions."""
    asked: list[str] = []

    def confirm(text: str) -> bool:
        asked.append(text)
        return yes

    monkeypatch.setattr(module, "_can_ask", lambda: True)
    monkeypatch.setattr(typer, "confirm", confirm)
    return asked


def test_a_run_of_more_than_a_day_is_started_only_if_the_user_agrees(
    program: Program, monkeypatch: pytest.MonkeyPatch, prepared_home: Path
) -> None:
    asked = answer(monkeypatch, yes=False)
    code, out, _ = program(*LONG)
    assert (code, asked) == (1, ["Start it?"])
    assert "d12: about 416 days of training on this machine" in out
    assert "--budget 1h" in out
    assert not (prepared_home / "base_checkpoints" / "d12").exists()


def test_a_short_run_is_started_without_a_question(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, yes=False)
    code, out, _ = program(*SHORT)
    assert (code, asked) == (0, [])
    assert "short: about a second of training on this machine" in out


@pytest.mark.parametrize("option", ["--yes", "--json", "--budget=2d"])
def test_nobody_is_asked_who_has_answered_or_cannot(
    option: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, yes=False)
    monkeypatch.setattr("mlxchat.train.pretrain.run_pretraining", lambda *_, **__: iter(()))
    program(*LONG, option)
    assert not asked
