"""Training keeps a Mac awake: `caffeinate` runs as long as it takes, said once, or not at all."""

import json
from pathlib import Path

import pytest
import typer
from support.macs import FakeCaffeinate, FakeMac
from support.program import Program

import mlxchat.train.sft  # noqa: F401  (MLX is imported before this machine plays a Mac)
from mlxchat.cli import quickstart, stages, supervise

TRAIN = ("train", "--depth", "1")
COMMANDS = [
    TRAIN,
    (*TRAIN, "--supervise"),
    ("sft", "--source", "d1", "--data", "builtin"),
    ("quickstart",),
]


class Training:
    """What trains in place of the commands' own; ``awake`` says of each whether the Mac was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.awake: list[bool] = []
        self.expects_awake = False  # then it waits until `caffeinate` has started
        self.caffeinate: FakeCaffeinate = FakeMac(monkeypatch, {}).caffeinate(folder)
        for module in (stages, quickstart):
            monkeypatch.setattr(module, "watch_run", self._train)
        monkeypatch.setattr(quickstart, "load_chosen", self._end)
        monkeypatch.setattr(supervise, "supervise", self._supervise)

    def _train(self, *_: object) -> int:
        if self.expects_awake:
            self.caffeinate.await_start()
        self.awake.append(bool(self.caffeinate.starts) and self.caffeinate.runs())
        return 0

    def _end(self, *_: object) -> None:
        raise typer.Exit

    def _supervise(self, command: supervise.CommandLine, *_: object) -> int:
        assert command(True)[-2:] == ["--no-stay-awake", "--fresh"]  # its parent does that
        return self._train()


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Training:
    return Training(monkeypatch, tmp_path)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_mac_is_kept_awake_while_it_trains(
    command: tuple[str, ...], program: Program, training: Training
) -> None:
    training.expects_awake = True
    code, out, err = program(*command, "--json")
    assert (code, err) == (0, "")
    assert training.awake and all(training.awake)
    assert len(training.caffeinate.starts) == 1 and not training.caffeinate.runs()
    (note,) = (json.loads(line) for line in out.splitlines())
    assert "stays awake while it trains" in note["text"] and "--no-stay-awake" in note["text"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_it_is_left_alone_on_request(
    command: tuple[str, ...], program: Program, training: Training
) -> None:
    code, out, err = program(*command, "--no-stay-awake", "--json")
    assert (code, out, err) == (0, "", "")
    assert training.awake and not any(training.awake)
    assert training.caffeinate.starts == []
