"""Launching ranks: what is refused before any is started, and how the launcher ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.program import Program

from mlxchat.cli import ranks
from mlxchat.cli.failures import code_of
from mlxchat.cli.ranks import ended_together, joined, launch_on
from mlxchat.cli.supervise import Forwarding
from mlxchat.config.rl import RlConfig
from mlxchat.errors import ConfigError, MlxchatError
from mlxchat.system import own_command
from mlxchat.train.world import lost

TWO = '[{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, {"ssh": "10.0.0.2", "ips": ["10.0.0.2"]}]'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be read"),
        ("[" * 9999, "cannot be read"),
        ("7", "does not contain a list of hosts"),
        ('{"backend": "ring"}', "does not contain a list of hosts"),
        ("[]", "names no host"),
        ('{"hosts": [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}]}', "names one host"),
    ],
)
def test_a_hostfile_without_two_hosts_is_refused_by_name(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "hosts.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"hosts.json {problem}") as raised:
        launch_on(path)
    assert "docs/ranks.md" in raised.value.remedy


@pytest.mark.parametrize("error", [ConfigError("It hangs.", "Mend it."), lost("It is gone.")])
def test_a_process_that_hangs_says_so_and_ends_with_the_code_of_its_error(
    error: MlxchatError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(ranks, "exit_now", codes.append)
    joined(RlConfig(), patience=1.0).give_up(error)
    assert codes == [code_of(error)]
    assert error.problem in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e12", "0"])
def test_a_time_that_nobody_waits_is_refused(
    seconds: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = Program(monkeypatch, capsys)("train", "--ranks=2", f"--rank-timeout={seconds}")
    assert code == 2
    assert "--rank-timeout" in said


def test_on_hosts_a_rank_that_was_interrupted_at_once_needs_no_explanation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Forwarding, command: list[str]) -> int:
        self.received.append(signal.SIGINT)
        return 0

    monkeypatch.setattr(Forwarding, "run", run)
    path = tmp_path / "hosts.json"
    path.write_text(TWO)
    assert launch_on(path) == 130
    assert capsys.readouterr().err == ""


def test_ranks_that_outlive_rank_0_are_ended_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LAST_WORDS", 0.1)
    monkeypatch.setattr(ranks, "ENDING_GRACE", 0.1)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    begin = f"{deaf}; print(flush=True); time.sleep(60)"
    words = [sys.executable, "-S", "-c", begin]
    others = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(2)]
    for each in others:
        assert each.stdout is not None
        with each.stdout as said:
            said.readline()
    with ended_together(others, Forwarding(), 1.0) as failed:
        pass
    assert (failed, [each.wait(1) for each in others]) == ([], [-signal.SIGKILL] * 2)


@pytest.mark.slow
@pytest.mark.parametrize(  # rank 0 listens, rank 1 calls
    ("number", "rank"), [(signal.SIGINT, 0), (signal.SIGTERM, 1), (signal.SIGALRM, 0)]
)
def test_a_rank_that_waits_for_another_to_start_can_be_ended(
    tmp_path: Path, home: Path, rank: int, number: int
) -> None:
    variables = os.environ | ranks.environment(2, tmp_path) | ranks.own(rank)
    patience = 8 if number == signal.SIGALRM else 300  # it comes by itself
    words = own_command("mlxchat", "train", "--dataset=builtin", f"--rank-timeout={patience}")
    with subprocess.Popen(words, env=variables, stderr=subprocess.DEVNULL) as process:
        try:
            time.sleep(6)  # until it waits in MLX, where Python hears no signal
            if number != signal.SIGALRM:
                process.send_signal(number)
            assert process.wait(5 if number != signal.SIGALRM else 20) == -number
        finally:
            process.kill()
