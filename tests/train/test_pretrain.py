"""A whole run: its events, checkpoints and log; it resumes bit for bit after an interruption."""

import errno
import fcntl
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.marks import slow
from support.run_homes import put_evaluation
from support.runs import CONFIG, OWN, SETTINGS, assert_same, final, logged, run, shards
from support.task_scores import put_results, result

from mlxchat.checkpoint import files, layout, store
from mlxchat.checkpoint.evaluation_files import evaluations_by_run
from mlxchat.checkpoint.task_results import results_of
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.data.loader import Stopped
from mlxchat.data.shards import LocalShards
from mlxchat.errors import DiskError, LockedError, MlxchatError
from mlxchat.home import Home
from mlxchat.locks import Lock
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import scaling_parameters
from mlxchat.optim import gradients, optimizer
from mlxchat.optim.optimizer import Rates
from mlxchat.runtime import mx
from mlxchat.system import python_version, system_version
from mlxchat.telemetry.events import (
    Ended,
    Evaluated,
    Event,
    Noted,
    Sampled,
    Saved,
    Started,
    Stepped,
    event_from_json,
)
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train.loop import Launch, Pending, ShouldStop
from mlxchat.train.pretrain import run_pretraining
from mlxchat.train.step import StepParts


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    home = tmp_path_factory.mktemp("straight")
    return home, run(home)


def test_events_come_in_order(straight: tuple[Path, list[Event]]) -> None:
    home, events = straight
    kinds = (Stepped, Evaluated, Sampled, Saved, Ended)
    order = [(type(e).__name__, e.step) for e in events if isinstance(e, kinds)]
    deduplicated = [entry for i, entry in enumerate(order) if entry not in order[:i]]
    assert deduplicated == [
        ("Evaluated", 0),
        *[("Stepped", step) for step in (1, 2, 3)],
        ("Saved", 3),
        *[("Stepped", step) for step in (4, 5)],
        ("Evaluated", 5),
        ("Stepped", 6),
        ("Sampled", 6),
        ("Saved", 6),
        *[("Stepped", step) for step in (7, 8, 9)],
        ("Saved", 9),
        ("Stepped", 10),
        ("Evaluated", 10),
        *[("Stepped", step) for step in (11, 12)],
        ("Evaluated", 12),
        ("Sampled", 12),
        ("Saved", 12),
        ("Ended", 12),
    ]
    assert store.steps(Home(home).runs / "run") == [9, 12]
    assert logged(home, "step") == list(range(1, 13))
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    assert losses[-1] < losses[0] - 1
    folder = store.latest(Home(home).runs / "run")
    assert folder is not None
    assert not layout.read_model(folder, mx.float32).conversational


def test_the_log_names_python_and_the_system_but_no_machine(
    straight: tuple[Path, list[Event]],
) -> None:
    home, _ = straight
    first = Home(home).log(CONFIG.tag).read_text().splitlines()[0]
    begun = event_from_json(first)
    assert isinstance(begun, Started)
    assert begun.python == python_version() and begun.system == system_version()
    assert begun.software == f"Python {begun.python}, {begun.system}"
    assert socket.gethostname() not in first and str(Path.home()) not in first


@pytest.mark.parametrize("stop_at", [slow(1), 3, slow(8)])
def test_an_interrupted_run_resumes_bit_for_bit(
    straight: tuple[Path, list[Event]], prepared: Path, stop_at: int
) -> None:
    first = run(prepared, stop_at=stop_at)
    assert isinstance(first[-1], Ended)
    assert first[-1].reason == "interrupted"
    second = run(prepared)
    assert second[-1] == Ended(second[-1].time, 12, "finished")
    assert_same(final(prepared), final(straight[0]))
    assert logged(prepared, "step") == list(range(1, 13))
    for event in (*first, *second):
        if isinstance(event, Evaluated):
            match = [e for e in straight[1] if isinstance(e, Evaluated) and e.step == event.step]
            assert event.bits_per_byte == match[0].bits_per_byte


@pytest.mark.slow  # test_saved_runs resumes a modern run, too
def test_an_interrupted_modern_run_resumes_bit_for_bit(prepared: Path) -> None:
    modern = CONFIG.model_copy(
        update={
            "arch": "modern",
            "depth": 2,
            "max_seq_len": 160,  # longer than the window of the first layer
            "device_batch_size": 1,
            "total_batch_size": 320,
            "eval_every": 6,
            "sample_every": 0,
            "dropout": 0.2,
        }
    )
    straight = run(prepared, modern.model_copy(update={"model_tag": "straight"}))
    rates = [event.learning_rate for event in straight if isinstance(event, Stepped)]
    full = 0.02 * (320 / 2**19) ** 0.5
    assert rates == pytest.approx([full * step / 40 for step in range(1, 13)])  # it warms up
    first = run(prepared, modern, stop_at=4)
    assert isinstance(first[-1], Ended)
    assert first[-1].reason == "interrupted"
    assert 4 <= first[-1].step < 12
    run(prepared, modern)
    assert_same(final(prepared), final(prepared, "straight"))
    folder = store.directory(Home(prepared).runs / "run", 12)
    assert layout.read_model(folder, mx.float32).model.config.windows == (128, 160)


def step_of(home: Path, config: PretrainConfig) -> StepParts:
    """Return what a run computes its steps with, without computing one."""
    compiled: list[StepParts] = []

    def never(number: int) -> Pending:
        raise Stopped

    def keep(step: StepParts, stop: ShouldStop) -> Launch:
        compiled.append(step)
        return never

    run(home, config, compile=keep)
    return compiled[0]


def assert_rates(rates: Rates, learning: dict[str, float], momentum: float, decay: float) -> None:
    """The rates are these, each an array: a number would recompile the update."""
    assert all(isinstance(rate, mx.array) for rate in (*rates.learning.values(), *rates[1:]))
    found = {group: rate.item() for group, rate in rates.learning.items()}
    assert found == pytest.approx(learning, rel=1e-5)
    assert rates.momentum.item() == pytest.approx(momentum, rel=1e-5)
    assert rates.weight_decay.item() == pytest.approx(decay, rel=1e-5)


def test_the_rates_of_a_classic_run_equal_nanochats(prepared: Path) -> None:
    config = CONFIG.model_copy(update={"num_iterations": 1000, "weight_decay": 0.1})
    step = step_of(prepared, config)
    assert step.grad_clip == 1
    by_width = (64 / 768) ** -0.5
    full = {"embedding": 0.2 * by_width, "unembedding": 0.004 * by_width, "matrix": 0.02}
    for number, multiplier, momentum in (
        (0, 1, 0.85),
        (150, 1, 0.9),
        (800, 1, 0.95),  # the last 200 steps warm down
        (900, 0.5, 0.95),
        (999, 1 / 200, 0.95),
    ):
        learning = {group: rate * multiplier for group, rate in full.items()}
        assert_rates(step.rates(number), learning, momentum, 0.1)


def test_the_rates_of_a_modern_run_equal_nanochats(prepared: Path) -> None:
    config = CONFIG.model_copy(update={"arch": "modern", "num_iterations": 1000})
    step = step_of(prepared, config)
    assert step.grad_clip == 0
    by_width, by_batch = (128 / 768) ** -0.5, (256 / 2**19) ** 0.5
    full = {
        "embedding": 0.3 * by_width * by_batch,
        "unembedding": 0.008 * by_width * by_batch,
        "value_embeds": 0.15 * by_width * by_batch,
        "matrix": 0.02 * by_batch,
        "resid": 0.005 * by_batch,
        "x0": 0.5 * by_batch,
        "smear": 0.2,
    }
    horizons = [
        scaling_parameters(GPTConfig.from_depth(depth, 300, 32, arch="modern")) for depth in (1, 12)
    ]
    decay = 0.28 * by_batch * horizons[1] / horizons[0]
    for number, multiplier, momentum, decaying in (
        (0, 1 / 40, 0.85, 1),
        (19, 0.5, 0.85 + 0.12 * 19 / 400, 0.5 * (1 + math.cos(0.019 * math.pi))),
        (200, 1, 0.91, 0.5 * (1 + math.cos(0.2 * math.pi))),
        (500, 0.05 + 0.95 * 500 / 650, 0.97 - 0.07 * 150 / 650, 0.5),  # 650 warm down
        (999, 0.05 + 0.95 / 650, 0.97 - 0.07 * 649 / 650, 0.5 * (1 + math.cos(0.999 * math.pi))),
    ):
        learning = {group: rate * multiplier for group, rate in full.items()}
        assert_rates(step.rates(number), learning, momentum, decay * decaying)


SCRIPT = """
import json, sys
from contextlib import closing
from pathlib import Path
from mlxchat.home import Home
from mlxchat.train.pretrain import run_pretraining
from mlxchat.config.pretrain import PretrainConfig
config = PretrainConfig.model_validate(json.loads(sys.argv[2]))
for event in run_pretraining(config, Home(Path(sys.argv[1])), lambda _: None):
    print(type(event).__name__, getattr(event, "step", ""), flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(
    straight: tuple[Path, list[Event]], prepared: Path
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(prepared), json.dumps(SETTINGS)]
    for lines, pause in ((3, 0.0), (9, 0.004), (7, 0.002)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert_same(final(prepared), final(straight[0]))
    assert logged(prepared, "step") == list(range(1, 13))


def test_a_finished_run_is_not_resumed(straight: tuple[Path, list[Event]]) -> None:
    events = run(straight[0])
    assert [type(event) for event in events] == [Noted]
    assert isinstance(events[0], Noted)
    assert "is finished" in events[0].text


def test_other_settings_are_refused_and_named(straight: tuple[Path, list[Event]]) -> None:
    other = CONFIG.model_copy(update={"num_iterations": 20, "keep": 9, "matrix_lr": 0.01})
    with pytest.raises(MlxchatError) as raised:
        run(straight[0], other)
    assert "`num_iterations` (12 -> 20)" in raised.value.problem
    assert "`matrix_lr` (0.02 -> 0.01)" in raised.value.problem
    assert "keep" not in raised.value.problem
    assert "`model_tag`" in raised.value.remedy
    assert "`fresh`" in raised.value.remedy


def test_fresh_sets_the_old_run_aside(prepared: Path) -> None:
    place = Home(prepared)
    run(prepared, stop_at=2)
    [step] = store.steps(place.runs / "run")
    put_results(place, "run", step, result())
    put_evaluation(place, "run", step)
    elsewhere = place.chat_evaluations / "run_000000_0a0b0c0d.json"  # of a folder of that name
    elsewhere.touch()
    events = run(prepared, CONFIG.model_copy(update={"num_iterations": step}), fresh=True)
    now, old = place.runs / "run", place.runs / "run.old1"
    assert store.steps(now) == store.steps(old) == [step]
    assert logged(prepared, "step") == list(range(1, step + 1))
    assert place.log("run.old1").exists()
    assert any(isinstance(e, Noted) and "renamed to run.old1" in e.text for e in events)
    assert results_of(place, "run.old1", step, store.directory(old, step)) == (result(),)
    assert results_of(place, "run", step, store.directory(now, step)) == ()
    kept = evaluations_by_run(place)
    assert [file.path for file in kept.pop("run")] == [elsewhere]
    assert len(kept.pop("run.old1")) == 3 and not kept


def test_fresh_says_why_the_old_run_cannot_be_set_aside(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(prepared, stop_at=2)
    before = store.steps(Home(prepared).runs / "run")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(DiskError, match=r"run\.old1 cannot be stored: Permission denied"):
            run(prepared, fresh=True)
    assert store.steps(Home(prepared).runs / "run") == before


@pytest.mark.slow
def test_fresh_with_settings_that_cannot_work_leaves_the_old_run(prepared: Path) -> None:
    run(prepared, stop_at=3)
    with pytest.raises(MlxchatError, match="not a multiple"):
        run(prepared, CONFIG.model_copy(update={"total_batch_size": 100}), fresh=True)
    assert store.steps(Home(prepared).runs / "run")
    (prepared / "logs" / "run.old1").mkdir()
    (prepared / "logs" / "run.old1" / "metrics.jsonl").touch()
    run(prepared, fresh=True)
    assert Home(prepared).log("run.old2").exists()


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        store.locked(Home(tmp_path).runs / "run"),
        pytest.raises(MlxchatError, match="Another process is using the run run"),
    ):
        run(tmp_path)


def test_a_run_whose_lock_file_is_deleted_is_locked_again_at_the_next_step(prepared: Path) -> None:
    lock = Home(prepared).runs / ".run.lock"
    with closing(run_pretraining(CONFIG, Home(prepared), lambda _: None)) as events:
        for event in events:
            if isinstance(event, Stepped) and event.step == 2:
                lock.unlink()
            elif isinstance(event, Stepped) and event.step == 3:
                assert lock.exists() and Lock.take(lock) is None
                lock.unlink()
                break
        with closing(lock.open("w")) as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(LockedError, match="Another process has taken over the run run"):
                list(events)


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_saved(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(prepared, stop_at=3)
    before = store.steps(Home(prepared).runs / "run")

    def full(*_: object) -> None:
        raise RuntimeError("[write] Unable to write 31798 bytes to file.")

    with monkeypatch.context() as patched:
        patched.setattr(mx, "save_safetensors", full)
        with pytest.raises(MlxchatError, match="could not be saved"):
            run(prepared)
    assert store.steps(Home(prepared).runs / "run") == before
    assert not list((Home(prepared).runs / "run").glob(".unfinished*"))
    run(prepared)


@pytest.mark.slow
def test_a_resumed_run_may_evaluate_more_tokens(prepared: Path) -> None:
    run(prepared, stop_at=3)
    events = run(prepared, CONFIG.model_copy(update={"eval_tokens": 1024}))
    assert {event.tokens for event in events if isinstance(event, Evaluated)} == {1024}


def test_another_vocabulary_than_the_tokenizers_is_refused(prepared: Path) -> None:
    run(prepared, stop_at=1)
    other = CONFIG.model_copy(update={"vocab_size": 400, "model_tag": "other"})
    with pytest.raises(MlxchatError, match="has 300 tokens, not 400"):
        run(prepared, other)


def test_a_single_training_shard_resumes_at_its_end(tmp_path: Path) -> None:
    config = OWN.model_copy(update={"data_dir": shards(tmp_path / "data", 0, 1)})
    for stop_at in (1, 2, 3, 4, 5, 6, 7, 9, 0):
        run(tmp_path, config, stop_at=stop_at)
    assert store.steps(Home(tmp_path).runs / "run")[-1] == 12
    assert logged(tmp_path, "step") == list(range(1, 13))


def test_a_run_resumes_only_with_the_data_it_was_started_with(tmp_path: Path) -> None:
    config = OWN.model_copy(update={"data_dir": shards(tmp_path / "data", 0, 1, 2)})
    run(tmp_path, config, stop_at=3)
    (tmp_path / "data" / "shard_00001.parquet").rename(tmp_path / "shard_00001.parquet")
    shards(tmp_path / "data", 3, 4)
    with pytest.raises(MlxchatError, match=r"files that are missing: shard_00001\.parquet"):
        run(tmp_path, config)
    (tmp_path / "shard_00001.parquet").rename(tmp_path / "data" / "shard_00001.parquet")


def test_progress_is_saved_when_data_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OWN.model_copy(
        update={
            "data_dir": shards(tmp_path / "data", 0, 1, 2),
            "save_every": 0,
            "eval_every": 0,
            "num_iterations": 40,
        }
    )
    acquired: list[str] = []
    acquire = LocalShards.acquire

    def failing(self: LocalShards, name: str) -> Path:
        acquired.append(name)
        if len(acquired) > 10:
            raise MlxchatError("no network", "wait")
        return acquire(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(LocalShards, "acquire", failing)
        with pytest.raises(MlxchatError, match="no network"):
            run(tmp_path, config)
    done = store.steps(Home(tmp_path).runs / "run")
    assert len(done) == 1
    assert logged(tmp_path, "step") == list(range(1, done[0] + 1))
    run(tmp_path, config)
    assert logged(tmp_path, "step") == list(range(1, 41))


def test_the_checkpoint_keeps_its_tokenizer(prepared: Path) -> None:
    run(prepared, stop_at=1)
    kept = Tokenizer.load(prepared / "tokenizer_builtin").byte_lengths()
    (prepared / "tokenizer_builtin" / "tokenizer.json").unlink()
    run(prepared)
    folder = store.directory(Home(prepared).runs / "run", 12)
    assert Tokenizer.load(folder).byte_lengths() == kept


def test_a_missing_file_is_named(prepared: Path) -> None:
    run(prepared, stop_at=3)
    folder = store.latest(Home(prepared).runs / "run")
    assert folder is not None
    for path in sorted(folder.iterdir()):
        if path.name in (layout.GENERATION, "tokenizer.json"):
            continue
        name = path.name
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(MlxchatError, match=f"{name} is missing"):
            run(prepared)
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(MlxchatError, match=f"{name} is damaged"):
            run(prepared)
        (folder / name).write_bytes(content)
    run(prepared)


def test_a_vocabulary_that_does_not_fit_is_refused(
    straight: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    folder = store.latest(Home(straight[0]).runs / "run")
    assert folder is not None
    for path in folder.iterdir():
        if path.name != files.CHECKSUMS:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    fields = json.loads((tmp_path / layout.CONFIG).read_text())
    (tmp_path / layout.CONFIG).write_text(json.dumps({**fields, "vocab_size": 400}))
    with pytest.raises(MlxchatError, match="tokenizer has 300 tokens, the model 400"):
        layout.read_model(tmp_path, mx.float32)
    weights = layout.read_arrays(tmp_path / layout.MODEL)
    (tmp_path / layout.CONFIG).write_text(json.dumps(fields))
    mx.save_safetensors(str(tmp_path / layout.MODEL), {**weights, "extra": mx.zeros(1)})
    with pytest.raises(MlxchatError, match="extra is unexpected"):
        layout.read_model(tmp_path, mx.float32)


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_a_step_is_compiled_once(
    arch: str, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is traced twice (first and later in a step), the update once, in all the steps."""
    traces: list[str] = []

    def count(owner: object, name: str) -> None:
        traced = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            traces.append(name)
            return traced(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    count(gradients, "ordered_loss")
    count(optimizer, "compute_update")
    changed = {"arch": arch, "eval_every": 0, "sample_every": 0, "save_every": 0}
    run(prepared, CONFIG.model_copy(update=changed))
    assert traces.count("ordered_loss") == 2
    assert traces.count("compute_update") == 1


@pytest.mark.slow
def test_an_evaluation_reads_the_same_rows_whatever_the_micro_batch(
    prepared: Path,
) -> None:
    found = []
    for rows in (1, 4, 8):
        config = CONFIG.model_copy(
            update={
                "device_batch_size": rows,
                "eval_tokens": 10 * 32,
                "num_iterations": 1,
                "model_tag": f"rows{rows}",
            }
        )
        first = next(event for event in run(prepared, config) if isinstance(event, Evaluated))
        found.append((first.tokens, first.bits_per_byte))
    assert {tokens for tokens, _ in found} == {320}
    assert [bits for _, bits in found] == pytest.approx([found[0][1]] * 3, rel=1e-6)
