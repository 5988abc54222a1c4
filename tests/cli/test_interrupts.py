"""Ctrl-C and SIGTERM at every stage of the program: progress is saved, the exit code is right."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.hub_server import Fault, HubServer, address, write_shard
from support.marks import slow

from mlxchat.__main__ import run_program
from mlxchat.checkpoint import store
from mlxchat.cli import app
from mlxchat.data.shards import DATASETS
from mlxchat.home import Home
from mlxchat.telemetry.status import read_status, status_path

TINY = (
    "train --dataset builtin --depth 1 --max-seq-len 32 --device-batch-size 4 --model-tag tiny "
    "--total-batch-size 256 --vocab-size 300 --save-every 0 --sample-every 0 --eval-every 0"
).split()
FETCH = "data fetch --num-shards 1"
STREAM = "train --streaming --depth 1"
AT_ONCE = 10.0  # seconds, of which a busy machine may take most


@pytest.fixture(autouse=True)
def in_a_terminal() -> Iterator[None]:
    """The programs of a test do not ignore SIGHUP, though this one may be run by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@contextmanager
def program(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[dict]]]:
    """The program with ``--json``, and the list that `until` fills with its events."""
    command = [sys.executable, "-m", "mlxchat", *arguments, "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process, []
        finally:
            process.kill()


def until(process: subprocess.Popen[str], events: list[dict], seen: Callable[[dict], bool]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        events.append(json.loads(line))
        if seen(events[-1]):
            return
    raise AssertionError(f"it ended with {events[-1:]}")


def ended(process: subprocess.Popen[str], events: list[dict]) -> int:
    """The exit code; nothing like a traceback was printed."""
    rest, errors = process.communicate(timeout=AT_ONCE)
    events += [json.loads(line) for line in rest.splitlines()]
    assert "Traceback" not in errors, errors
    return process.returncode


@pytest.mark.parametrize(
    ("stage", "number", "code"),
    [
        ("evaluating", signal.SIGINT, 130),
        slow("sample", signal.SIGTERM, 143),
        slow("sample", signal.SIGHUP, 129),
    ],
)
def test_interrupted_while_evaluating_or_sampling_it_saves(
    stage: str, number: int, code: int, prepared_home: Path
) -> None:
    tokens = "400000" if stage == "evaluating" else "128"
    cadence = ["--eval-every", "3", "--eval-tokens", tokens, "--sample-every", "3"]
    with program(*TINY, *cadence, "--num-iterations", "99999") as (process, events):
        # MLX looks for a compiler when it first compiles; a Ctrl-C in those milliseconds is lost
        until(process, events, lambda e: e["event"] == stage and e.get("batch", 20) == 20)
        process.send_signal(number)
        assert ended(process, events) == code
    assert events[-1]["reason"] == "interrupted"
    saved = store.steps(Home(prepared_home).runs / "tiny")
    assert saved == [events[-1]["step"]] if events[-1]["step"] else saved == []


@pytest.mark.slow
def test_interrupted_in_the_first_evaluation_it_ends_at_once(prepared_home: Path) -> None:
    # One batch of so many rows takes minutes, and nothing asks in between whether to stop.
    slow_batch = ["--depth", "8", "--max-seq-len", "2048", "--device-batch-size", "8"]
    large = ["--total-batch-size", "16384", "--eval-every", "9", "--eval-tokens", "400000"]
    with program(*TINY, *slow_batch, *large, "--num-iterations", "99") as (process, events):
        until(process, events, lambda event: event["event"] == "started")
        process.send_signal(signal.SIGINT)
        assert ended(process, events) == 130
    assert any("nothing new to save" in event.get("text", "") for event in events)


@pytest.mark.slow
@pytest.mark.parametrize("supervise", [[], ["--supervise"]])
def test_a_second_interrupt_ends_at_once(supervise: list[str], prepared_home: Path) -> None:
    evaluation = "--depth 2 --device-batch-size 1 --eval-every 1 --eval-tokens 9999999".split()
    with program(*TINY, *supervise, *evaluation, "--num-iterations", "1") as (process, events):
        until(process, events, lambda event: event["event"] == "step")
        process.send_signal(signal.SIGINT)  # the last evaluation is never cut
        until(process, events, lambda event: "Ctrl-C again" in event.get("text", ""))
        process.send_signal(signal.SIGINT)
        assert ended(process, events) == 130
    place = Home(prepared_home)
    assert not store.steps(place.runs / "tiny")
    status = read_status(status_path(place.log("tiny")))
    assert status and status.ended == "interrupted"


WHILE_IMPORTING = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from mlxchat.__main__ import run_program
run_program()
"""


def test_interrupted_while_it_is_imported_it_ends_without_a_word() -> None:
    command = [sys.executable, "-c", WHILE_IMPORTING, "runs", "list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_once_it_is_imported_interrupts_are_python_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[object]()
    monkeypatch.setattr(app, "main", lambda: seen.append(signal.getsignal(signal.SIGINT)))
    run_program()
    assert seen == [signal.getsignal(signal.SIGINT)] != [signal.SIG_DFL]


def test_interrupted_while_a_tokenizer_reads_text_it_leaves_nothing(home: Path) -> None:
    with program("tokenizer", "train", "--dataset", "builtin") as (process, events):
        until(process, events, lambda event: event["event"] == "progress")
        process.send_signal(signal.SIGINT)
        assert ended(process, events) in (130, -signal.SIGINT)  # it may be merging by then
    assert not (home / "tokenizer_builtin").exists()


MERGING = """
import sys, time
import rustbpe
from mlxchat.tokenizer import bpe

class Deaf:
    def train_from_iterator(self, texts, *_, **__):
        for _ in texts:
            pass
        print("merging", flush=True)
        while True:  # as if in Rust, where no Python runs
            try:
                time.sleep(60)
            except BaseException:
                pass

rustbpe.Tokenizer = Deaf
bpe.Tokenizer.train(["some text"], 300)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_a_tokenizer_merges_pairs_it_ends(number: int) -> None:
    command = [sys.executable, "-c", MERGING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "merging\n"
        process.send_signal(number)
        assert process.wait(AT_ONCE) == -number  # to a shell, 130 or 143


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        slow(FETCH, signal.SIGINT, 130),
        (FETCH, signal.SIGTERM, 143),
        (STREAM, signal.SIGINT, 130),
        slow(STREAM, signal.SIGTERM, 143),
    ],
)
def test_interrupted_while_downloading_it_leaves_no_shard(
    command: str, number: int, code: int, home: Path, tmp_path: Path
) -> None:
    dataset = DATASETS["fineweb-edu"]
    names = [*dataset.training(1), dataset.validation]
    files = {address(dataset, name): write_shard(tmp_path / name) for name in names}
    with HubServer(files) as server:
        server.faults = [Fault(cut=100, stall=60, times=9)]
        with program(*command.split(), "--endpoint", server.endpoint) as (process, events):
            gets = 0
            while not gets:
                assert process.poll() is None
                gets = sum(request.method == "GET" for request in list(server.requests))
                time.sleep(0.02)
            process.send_signal(number)
            assert ended(process, events) == code
    assert not list(home.glob("base_data/*.parquet"))
