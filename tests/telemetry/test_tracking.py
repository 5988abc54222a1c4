"""Trackers: what they are told, once, and that nothing they do reaches the run."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.trackers import planted_writer, written

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.sft import SftConfig
from mlxchat.errors import ConfigError
from mlxchat.json_text import parse_json
from mlxchat.telemetry import tracker_child, trackers
from mlxchat.telemetry import tracking as tracking_module
from mlxchat.telemetry.events import (
    CoreMeasured,
    Ended,
    Evaluated,
    Event,
    Judged,
    Memory,
    Noted,
    Position,
    Rewarded,
    Sampled,
    Saved,
    Started,
    Stepped,
)
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.tracked import (
    TrackedRun,
    TrackedSample,
    TrackedStep,
    tracked_settings,
    tracked_values,
)
from mlxchat.telemetry.tracker_child import ENDED, WHERE, follow_run_by_lines
from mlxchat.telemetry.trackers import begin_tracking, require_tracker
from mlxchat.telemetry.tracking import Tracking

MEMORY = Memory(active=1, peak=2 * 10**9, cache=3, machine_used=4, machine_total=8)
STARTED = Started(0.0, "d4", 0, 100, 64, 10, 1000.0, "a chip", 1000)


def stepped(step: int, loss: float = 2.0) -> Stepped:
    return Stepped(float(step), step, loss, 0.02, 0.5, 1.0, Position(1, 0, 2), MEMORY)


def a_run(folder: Path, step: int = 0) -> TrackedRun:
    return TrackedRun("tensorboard", "d4", str(folder), step, {"depth": 4})


# What is told


def test_a_step_is_told_with_its_rates() -> None:
    meter = Meter()
    for event in (STARTED, *(stepped(step) for step in range(1, 6))):
        meter.update(event)
    assert tracked_values(stepped(5), meter) == {
        "train/loss": 2.0,
        "train/learning_rate": 0.02,
        "train/gradient_norm": 0.5,
        "train/tokens_per_second": 64.0,
        "train/mfu": 0.64,
        "train/peak_memory_gb": 2.0,
    }


def test_what_is_not_finite_or_unknown_is_left_out() -> None:
    values = tracked_values(stepped(1, float("nan")), Meter())
    assert values.keys() == {
        "train/learning_rate",
        "train/gradient_norm",
        "train/peak_memory_gb",
    }


def test_evaluations_core_and_rewards_are_told() -> None:
    events: list[Event] = [
        Evaluated(0.0, 1, 1.5, 3.0, 640, 2.0),
        CoreMeasured(0.0, 1, 0.1, 0.008, 500, 60.0, {"copa": -0.1}),
        Rewarded(0.0, 1, 0.4, 0.3, 0.1, 0.2, 31.5, 0.0, 0.08, 8100, 12000, 1.5),
        Judged(0.0, 1, 200, 8, 0.5, 0.6, 0.4, 0.6, 0.7, 0.6, 0.8, 31.0, 9.0),
        Saved(0.0, 1, "/home/ada/x", 0.5),
        Noted(0.0, "of /home/ada"),
        Ended(0.0, 1, "finished"),
    ]
    told: dict[str, float] = {}
    for event in events:
        told |= tracked_values(event, Meter())
    assert told == {
        "validation/bits_per_byte": 1.5,
        "validation/loss": 3.0,
        "core/core": 0.1,
        "core/standard_error": 0.008,
        "reward/mean": 0.4,
        "reward/right": 0.3,
        "reward/all_right": 0.1,
        "reward/all_wrong": 0.2,
        "validation/reward": 0.5,
        "validation/pass_1": 0.6,
        "validation/pass_8": 0.7,
    }


def test_settings_are_told_without_paths_files_and_texts() -> None:
    pretraining = PretrainConfig.model_validate(
        {
            "depth": 4,
            "budget": "1.5h",
            "memory_limit": "7.5GiB",
            "data_dir": "/home/ada/text",
            "tokenizer_dir": "tok",
            "endpoint": "https://mirror.example",
            "init_from": "~/models/mine",
        }
    )
    told = pretraining.for_trackers()
    assert told["depth"] == 4
    assert told["budget"] == "1h30m"
    assert told["memory_limit"] == "7.5GiB"
    assert told["streaming"] is False
    assert not {"data_dir", "tokenizer_dir", "endpoint", "init_from"} & told.keys()
    tuning = SftConfig.model_validate(
        {"source": "d4.2", "data": ["mine.jsonl"], "identity": "name=Ada, made by=Grace"}
    )
    assert tuning.for_trackers()["source"] == "d4.2"
    rewarded = RlConfig.model_validate({"task": "mine.jsonl", "reward": ["rewards.py:brief"]})
    assert not {"task", "reward"} & rewarded.for_trackers().keys()
    everything = json.dumps([told, tuning.for_trackers(), rewarded.for_trackers()])
    assert not [word for word in ("/", "~", "mine", "Ada", "rewards") if word in everything]


def test_settings_are_told_in_one_level() -> None:
    assert tracked_settings({"lora": {"rank": 8, "alpha": None}, "depth": 4}, {"depth": 5}) == {
        "lora.rank": 8,
        "depth": 5,
    }


# A library that is missing


def test_a_missing_library_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.TRACKER_LIBRARIES, "wandb", "no_such_library")
    with pytest.raises(ConfigError) as caught:
        require_tracker("wandb")
    assert caught.value.remedy == 'Install the extra wandb: pip install "mlxchat[wandb]"'
    require_tracker(None)


def test_a_folder_of_its_name_is_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb leaves a folder `wandb` wherever it was used."""
    (tmp_path / "leftover_of_wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(trackers.TRACKER_LIBRARIES, "wandb", "leftover_of_wandb")
    with pytest.raises(ConfigError):
        require_tracker("wandb")


# What each library is told


class Recorder:
    """Stands for a run of wandb or trackio."""

    offline, url, dir, step = False, "https://wandb.example/runs/1", "/x y/run-1/files", 0

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def init(self, **given: object) -> "Recorder":
        self.calls.append(("init", given))
        return self

    def log(self, values: dict[str, object], step: int) -> None:
        self.calls.append(("log", (values, step)))

    def define_metric(self, name: str, step_metric: str) -> None: ...

    def finish(self, exit_code: int = 0) -> None:
        self.calls.append(("finish", exit_code))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    library = SimpleNamespace(
        init=made.init,
        Settings=lambda **given: given,
        Html=lambda page, **_: page,
        Markdown=str,
    )
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setitem(sys.modules, "trackio", library)
    for name in ("WANDB_PROJECT", "WANDB_DIR", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_ERROR_REPORTING", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "set")  # so that what the code sets does not outlive the test
    return made


def test_wandb_gets_no_more_than_it_is_told(recorder: Recorder, tmp_path: Path) -> None:
    run = TrackedRun("wandb", "d4", str(tmp_path), 50, {"depth": 4})
    tracker = begin_tracking(run, "abc", known=True)
    recorder.step = 53  # what it would continue with
    tracker.log(TrackedStep(52, {"train/loss": 2.0}, [TrackedSample("<Once>", "upon")]))
    tracker.finish(failed=True)
    [(_, given), log, end] = recorder.calls
    assert isinstance(given, dict)
    settings = given.pop("settings")
    assert given == {
        "project": "mlxchat",
        "name": "d4",
        "id": "abc",
        "resume": "allow",
        "dir": str(tmp_path),
        "config": {"depth": 4},
    }
    private = ("x_disable_meta", "x_disable_machine_info", "x_disable_stats", "disable_git")
    assert all(settings[name] for name in private)
    assert settings["host"] == "" and not settings["save_code"]
    text = "Prompt:\n\n    &lt;Once&gt;\n\nText:\n\n    upon"
    samples = f"<pre style='white-space: pre-wrap'>{text}</pre>"
    assert log == ("log", ({"train/loss": 2.0, "samples": samples, "step": 52}, 53))
    assert end == ("finish", 1)
    assert tracker.where() == "wandb: https://wandb.example/runs/1"


def test_wandb_offline_says_how_to_send_the_run(recorder: Recorder, tmp_path: Path) -> None:
    recorder.offline = True
    tracker = begin_tracking(TrackedRun("wandb", "d4", str(tmp_path), 0, {}), "abc", known=False)
    assert tracker.where().endswith("wandb sync '/x y'/offline-run-*-abc")


@pytest.mark.parametrize(("known", "resume"), [(False, "never"), (True, "allow")])
def test_trackio_measures_nothing_itself(
    recorder: Recorder, tmp_path: Path, known: bool, resume: str
) -> None:
    run = TrackedRun("trackio", "d4", str(tmp_path), 50, {"depth": 4})
    tracker = begin_tracking(run, "abc", known)
    tracker.log(TrackedStep(52, {"train/loss": 2.0}, [TrackedSample("# Once", "*upon*", 0.5)]))
    tracker.finish(failed=False)
    [(_, given), (_, logged), _] = recorder.calls
    assert given == {
        "project": "mlxchat",
        "name": "d4",
        "resume": resume,
        "config": {"depth": 4},
        "embed": False,
        "auto_log_gpu": False,
        "auto_log_cpu": False,
    }
    text = "Prompt:\n\n    # Once\n\nText (reward 0.5):\n\n    *upon*"
    assert logged == ({"train/loss": 2.0, "samples": text}, 52)


def test_tensorboard_begins_anew_with_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_by: list[dict[str, object]] = []
    writer = SimpleNamespace(write_event=written_by.append)
    summary = SimpleNamespace(scalar=lambda *given: given, text=lambda *given: given)
    for name, module in {
        "tensorboardX": SimpleNamespace(summary=summary),
        "tensorboardX.event_file_writer": SimpleNamespace(EventsWriter=lambda *_: writer),
        "tensorboardX.proto": SimpleNamespace(),
        "tensorboardX.proto.event_pb2": SimpleNamespace(Event=dict),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    ours, other = (tmp_path / f"events.out.tfevents.1.host{end}" for end in (".mlxchat", ""))
    for path in (ours, other):
        path.touch()
    begin_tracking(a_run(tmp_path, 50), "abc", known=True)
    assert ours.exists() and not written_by
    begin_tracking(a_run(tmp_path), "abc", known=False)
    assert other.exists() and not ours.exists()
    table = "| setting | value |\n| --- | --- |\n| depth | 4 |"
    [event] = written_by
    assert (event["summary"], event["step"]) == (("settings", table), 0)


# What is sent, by the process of the tracker


class Follower:
    """A tracker that remembers what it gets."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, bool]] = []
        self.steps: list[TrackedStep] = []
        self.ends: list[bool] = []

    def begin(self, run: TrackedRun, key: str, known: bool) -> "Follower":
        self.begun.append((key, known))
        return self

    def where(self) -> str:
        return "here"

    def log(self, step: TrackedStep) -> None:
        self.steps.append(step)

    def finish(self, failed: bool) -> None:
        self.ends.append(failed)


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> Follower:
    made = Follower()
    monkeypatch.setattr(tracker_child, "begin_tracking", made.begin)
    return made


def lines(run: TrackedRun, *steps: TrackedStep, end: str | None = "done") -> list[bytes]:
    messages = [vars(run), *({**vars(step), "samples": []} for step in steps)]
    return [json.dumps(each).encode() for each in (*messages, *([{ENDED: end}] if end else []))]


def losses(*steps: int) -> list[TrackedStep]:
    return [TrackedStep(step, {"train/loss": float(step)}, []) for step in steps]


def follow(given: list[bytes]) -> list[tuple[str, str]]:
    said: list[tuple[str, str]] = []
    follow_run_by_lines(given, lambda kind, text: said.append((kind, text)))
    return said


def test_a_killed_run_that_is_resumed_sends_no_step_twice(
    tmp_path: Path, follower: Follower
) -> None:
    assert follow(lines(a_run(tmp_path), *losses(1, 2, 3), end=None)) == [(WHERE, "here")]
    evaluated = TrackedStep(3, {"validation/loss": 4.0}, [])
    follow(lines(a_run(tmp_path, 2), *losses(3), evaluated, *losses(4)))
    assert [each.step for each in follower.steps if "train/loss" in each.values] == [1, 2, 3, 4]
    assert evaluated in follower.steps  # the kill came before it
    [(key, known), (again, known_again)] = follower.begun
    assert (key, known) == (again, False) and known_again
    assert follower.ends == [True, False]  # the first was killed


def test_a_run_from_the_beginning_is_a_new_one(tmp_path: Path, follower: Follower) -> None:
    follow(lines(a_run(tmp_path), *losses(1, 2)))
    follow(lines(a_run(tmp_path), *losses(1, 2)))
    assert len(follower.steps) == 4
    [(first, _), (second, known)] = follower.begun
    assert first != second and not known


def test_a_copy_of_a_run_is_a_new_one(tmp_path: Path, follower: Follower) -> None:
    follow(lines(a_run(tmp_path), *losses(1, 2)))
    copy = TrackedRun("tensorboard", "d4-copy", str(tmp_path), 1, {})
    follow(lines(copy, *losses(2)))
    assert [each.step for each in follower.steps] == [1, 2, 2]
    [(first, _), (second, known)] = follower.begun
    assert first != second and not known


def test_each_tracker_remembers_for_itself(tmp_path: Path, follower: Follower) -> None:
    follow(lines(a_run(tmp_path), *losses(1, 2)))
    other = TrackedRun("trackio", "d4", str(tmp_path), 2, {})
    follow(lines(other, *losses(3)))
    follow(lines(a_run(tmp_path, 2), *losses(3)))
    assert [each.step for each in follower.steps] == [1, 2, 3, 3]
    assert [known for _, known in follower.begun] == [False, False, True]


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"wandb": 3}', b"\xff", b"x" * 2**17])
def test_a_damaged_memory_begins_a_new_run(
    tmp_path: Path, follower: Follower, damaged: bytes
) -> None:
    (tmp_path / "tracking.json").write_bytes(damaged)
    follow(lines(a_run(tmp_path, 5), *losses(6)))
    assert [each.step for each in follower.steps] == [6]
    assert parse_json((tmp_path / "tracking.json").read_bytes())


# The run and the process together


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not mention a wait that a busy machine causes."""
    monkeypatch.setattr(tracking_module, "_SILENT_WAIT", 15.0)


def tracked(
    folder: Path,
    steps: int = 5,
    finish_seconds: float = 20.0,
    most_waiting: int = 1000,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[str], float]:
    """Return what the user is told in a run, and the longest time that an event took."""
    folder.mkdir(exist_ok=True)
    told: list[str] = []
    meter, longest = Meter(), 0.0
    tracking = Tracking(a_run(folder), meter, told.append, stop, finish_seconds, most_waiting)
    with tracking as update:
        for step in range(1, steps + 1):
            began = time.perf_counter()
            update(stepped(step))
            update(Sampled(0.0, step, "Once", "upon"))
            longest = max(longest, time.perf_counter() - began)
    return told, longest


def test_a_run_is_sent_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_writer(tmp_path / "library", monkeypatch, at_start="print('hello')")
    folder = tmp_path / "logs"
    told, _ = tracked(folder)
    assert told == [f"To look at the run: tensorboard --logdir {tmp_path}"]
    got = written(folder)
    assert [step for name, _, step in got if name == "train/loss"] == [1, 2, 3, 4, 5]
    assert [step for name, _, step in got if name == "samples"] == [1, 2, 3, 4, 5]
    assert got[-1][0] == "closed"
    assert (folder / "tracking.log").read_text() == "hello\n"  # not in the user's terminal


def test_a_tracker_that_raises_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising = "if step == 3: raise RuntimeError('no disk\\nleft')"
    planted_writer(tmp_path / "library", monkeypatch, at_value=raising)
    told, _ = tracked(tmp_path / "logs", steps=200)
    assert told[1:] == [
        "tensorboard has failed: no disk left. The run continues without it, and its own log "
        f"is complete. The library's output: {tmp_path / 'logs' / 'tracking.log'}"
    ]


def test_a_tracker_that_dies_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_writer(tmp_path / "library", monkeypatch, at_start="import os; os._exit(3)")
    [told], _ = tracked(tmp_path / "logs")
    assert told.startswith("tensorboard has failed: its process has ended (3). ")


def test_a_tracker_that_hangs_costs_the_run_no_more_than_the_wait_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_writer(tmp_path / "library", monkeypatch, at_start="time.sleep(600)")
    began = time.perf_counter()
    told, longest = tracked(tmp_path / "logs", steps=5000, finish_seconds=0.3, most_waiting=10)
    assert time.perf_counter() - began < 10
    assert longest < 1
    assert told == [
        "tensorboard cannot keep up: some steps are missing there.",
        "Waiting for tensorboard to send the rest, at most 0 s. Ctrl-C ends the wait.",
        "tensorboard did not finish; some of the run may be missing there.",
    ]


@pytest.mark.parametrize("silent", [0.0, 15.0])
def test_a_wish_to_end_cuts_the_last_wait_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: float
) -> None:
    monkeypatch.setattr(tracking_module, "_SILENT_WAIT", silent)
    planted_writer(tmp_path / "library", monkeypatch, at_start="time.sleep(600)")
    asked = iter([False, False, False, *[True] * 99])  # before the wait, then while it lasts
    began = time.perf_counter()
    told, _ = tracked(tmp_path / "logs", finish_seconds=60, stop=lambda: next(asked))
    assert time.perf_counter() - began < 30
    assert told[-1].startswith("tensorboard did not finish")


def test_a_run_that_was_asked_to_end_is_sent_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_writer(tmp_path / "library", monkeypatch)
    told, _ = tracked(tmp_path / "logs", stop=lambda: True)
    assert len(told) == 1 and written(tmp_path / "logs")[-1][0] == "closed"


def test_a_process_that_cannot_start_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    [told], _ = tracked(tmp_path / "logs")
    assert told.startswith("tensorboard has failed: No such file or directory. ")
