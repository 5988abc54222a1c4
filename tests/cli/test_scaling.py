"""`mlxchat scaling`: what it refuses, its help, and a small ladder to the end."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support.program import Program

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.home import Home
from mlxchat.plan import scaling
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.telemetry.events import Stepped
from mlxchat.tokenizer.bpe import TOKENIZER_FILE
from mlxchat.train.pretrain import run_pretraining
from mlxchat.train.scaling import plan_ladder, trained_rung

SETTINGS: dict[str, Any] = {
    "recipe": "classic",
    "dataset": "builtin",
    "vocab_size": 300,
    "max_seq_len": 32,
    "device_batch_size": 4,
    "total_batch_size": 256,
    "eval_tokens": 512,
}
SMALL = [
    word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))
]
LADDER = (1, 2, 3)
SECONDS = 28  # of a ladder: 4, 8 and 16
TICK = 0.2  # seconds that pass from one reading of the clock to the next


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys, "scaling")


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        ("--budget 90", "'90' is not a duration", "1h30m"),
        ("--budget 1h --depths 2,2", "--depths 2,2 has depth 2 twice", "once"),
        ("--budget 1h --depths 2,4", "at least 3 runs", "3 depths"),
        ("--budget 1h --depths -1", "'-1' is not a depth of 1 to 64", "2,3,4"),
        ("--budget 1h --depths 2,4,5", "width of 320", "--depth 4 or 6"),
        ("--budget 1h --dataset mine", "no data", "mlxchat data fetch"),
        ("--budget 1h --eval-every 0", "--eval-every 0", "Leave it out"),
        (f"--budget 1h --model-tag {'a' * 99}", "cannot be the name of a run", "--model-tag"),
        ("--budget 1h --preset test", "--num-iterations 2", "one of them"),
        ("--budget 60s --depths 2,3,4", "--budget 1m is too short for 3 runs", "--budget 2m20s"),
        ("--budget 60s", "--budget 1m is too short for 4 runs", "--budget 5m"),
        ("--budget 1h --recipe classic --arch modern", "--recipe classic", "one of them"),
        ("--budget 9d --depths 2,4,40 --memory-limit 1GB", "needs at least", "--depth"),
    ],
)
def test_errors_are_two_lines(
    arguments: str, problem: str, remedy: str, program: Program, prepared_home: Path
) -> None:
    code, _, errors = program(*SMALL, *arguments.split())
    assert code == 1, errors
    first, second = errors.splitlines()
    assert problem in first
    assert remedy in second


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "--budget"),
        ("--budget 1h --depth 4", "--depth"),
        ("--budget 1h --model-tag a/b", "--model-tag"),
    ],
)
def test_usage_errors_name_the_option(arguments: str, said: str, program: Program) -> None:
    code, _, errors = program(*arguments.split())
    assert code == 2
    assert said in errors


def test_the_runs_share_all_but_depth_and_time(prepared_home: Path) -> None:
    config, home = PretrainConfig(**SETTINGS, budget="15m"), Home(prepared_home)
    runs = plan_ladder(config, None, home, lambda _: None)
    assert [run.tag for run in runs] == ["scaling-1m", "scaling-2m", "scaling-4m", "scaling-8m"]
    assert {run.depth for run in runs} == {None}
    named = config.model_copy(update={"model_tag": "x", "budget": "7m"})
    of_depths = plan_ladder(named, (1, 2, 3), home, lambda _: None)
    assert [run.tag for run in of_depths] == ["x-d1-1m", "x-d2-2m", "x-d3-4m"]
    assert [run.depth for run in of_depths] == [1, 2, 3]
    for run in (*runs, *of_depths):
        assert run.eval_tokens == SETTINGS["eval_tokens"]
        assert run.total_batch_size == SETTINGS["total_batch_size"]
        assert run.tokenizer_dir == prepared_home / "tokenizer_builtin"


@pytest.mark.slow
def test_all_runs_share_a_tokenizer_that_is_trained_first(home: Path) -> None:
    config = PretrainConfig(dataset="builtin", budget="1h")
    runs = plan_ladder(config, None, Home(home), lambda _: None)
    [folder] = {run.tokenizer_dir for run in runs}
    assert folder is not None
    assert folder.parent == home / "tokenizer_builtin"  # and named by the size wanted here
    assert (folder / TOKENIZER_FILE).exists()


@pytest.fixture
def _ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time pass with each reading of the clock, however busy the machine is."""
    ticks = count()
    monkeypatch.setitem(vars(SYSTEM_CLOCK), "seconds", lambda: TICK * next(ticks))


@pytest.mark.slow
@pytest.mark.usefixtures("_ticking")
def test_a_ladder_resumes_within_and_between_its_runs(
    prepared_home: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "SHORTEST_RUNG", 1)
    monkeypatch.setattr(scaling, "STEPS_THAT_COUNT", 1)
    config, home = PretrainConfig(**SETTINGS, budget=f"{SECONDS}s"), Home(prepared_home)
    runs = plan_ladder(config, LADDER, home, lambda _: None)
    list(run_pretraining(runs[0], home, lambda _: None))
    steps: list[int] = []
    for event in run_pretraining(runs[1], home, lambda _: None, stop=lambda: len(steps) > 2):
        if isinstance(event, Stepped):
            steps.append(event.step)

    arguments = [*SMALL, "--budget", f"{SECONDS}s", "--depths", "1,2,3"]
    code, printed, errors = program(*arguments, "--json")
    assert code == 0, errors
    events = [json.loads(line) for line in printed.splitlines()]
    started = [(event["tag"], event["step"]) for event in events if event["event"] == "started"]
    assert started == [("scaling-d2-8s", steps[-1]), ("scaling-d3-16s", 0)]

    result = events[-1]
    assert result.keys() == {"event", "runs", "fit", "predictions"}
    assert [run["depth"] for run in result["runs"]] == [1, 2, 3]
    for run, settings in zip(result["runs"], runs, strict=True):
        assert run == trained_rung(settings, home).model_dump()
    assert result["fit"].keys() == {"exponent", "exponent_error", "residual"}

    code, printed, errors = program(*arguments)
    assert code == 0, errors
    assert printed.count("is finished") == 3
    assert "depth  width  parameters" in printed
    best = min(result["runs"], key=lambda run: run["bits_per_byte"])
    assert f"mlxchat chat --model-tag {best['tag']}" in printed

    code, _, errors = program(*arguments, "--seed", "7")
    assert code == 1
    assert "--seed (42 -> 7)" in errors
