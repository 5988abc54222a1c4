"""A supervised run of the whole program: it crashes, is started again and resumes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlxchat.checkpoint import store
from mlxchat.cli.supervise import supervise
from mlxchat.home import Home
from mlxchat.telemetry.status import read_status, status_path

pytestmark = pytest.mark.slow

TRAIN = (
    "train --supervise --dataset builtin --depth 1 --max-seq-len 32 --device-batch-size 4 "
    "--total-batch-size 256 --vocab-size 300 --model-tag tiny --eval-every 0 --sample-every 0 "
    "--save-every 2 --num-iterations 100000 --json"
).split()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxchat.cli.supervise.FIRST_PAUSE", 0.01)


def test_a_killed_run_resumes_and_can_be_interrupted(home: Path) -> None:
    run, log = Home(home).runs / "tiny", Home(home).log("tiny")
    command = [sys.executable, "-m", "mlxchat", *TRAIN]
    events: list[dict] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            events.append(json.loads(line))
            kinds = [event["event"] for event in events]
            if kinds.count("saved") == 2 and kinds.count("started") == 1 and kinds[-1] == "saved":
                status = read_status(status_path(log))
                assert status is not None and status.process.pid != process.pid
                os.kill(status.process.pid, signal.SIGKILL)
            if kinds[-1] == "step" and kinds.count("started") == 2:
                process.send_signal(signal.SIGINT)
                break
        rest, _ = process.communicate(timeout=60)
        events += [json.loads(line) for line in rest.splitlines()]
    assert process.returncode == 130
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert any("ended by SIGKILL" in text and "from step" in text for text in notes)
    assert events[-1] == {**events[-1], "event": "ended", "reason": "interrupted"}
    assert store.steps(run)[-1] == events[-1]["step"]
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [event["step"] for event in logged if event["event"] == "step"]
    assert steps == list(range(1, events[-1]["step"] + 1))


FAILING = """
import sys
from pathlib import Path
from mlxchat.checkpoint import store
from mlxchat.cli.app import main

failed, save = Path(sys.argv.pop(1)), store.save

def failing(run, step, *rest):
    metal, buffer = "[METAL] Command buffer execution failed: ", "kIOGPUCommandBufferCallbackError"
    error = {
        4: RuntimeError(f"{metal}Impacting (0000000e:{buffer}ImpactingInteractivity)"),
        6: RuntimeError(f"{metal}Caused GPU Timeout Error (00000002:{buffer}Timeout)"),
        8: RuntimeError(f"{metal}Insufficient Memory (00000008:{buffer}OutOfMemory)"),
        10: MemoryError("std::bad_alloc"),
    }.get(step)
    if error and not (failed / str(step)).exists():
        (failed / str(step)).touch()
        raise error
    return save(run, step, *rest)

store.save = failing
main()
"""


def test_a_run_resumes_whenever_its_device_fails(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [word for word in TRAIN if word != "--supervise"]
    command = [sys.executable, "-c", FAILING, str(tmp_path), *arguments, "--num-iterations", "12"]
    told: list[str] = []
    assert supervise(lambda _: command, Home(home).runs / "tiny", False, told.append) == 0
    for text, step in zip(told, (2, 4, 6, 8), strict=True):
        assert "a backend error" in text and f"from step {step} in" in text
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 2 * len(told)
    for problem, what in zip(errors[::2], ("display", "seconds", "memory", "memory"), strict=True):
        assert what in problem
    assert store.steps(Home(home).runs / "tiny")[-1] == 12
    logged = [json.loads(line) for line in Home(home).log("tiny").read_text().splitlines()]
    assert [event["step"] for event in logged if event["event"] == "step"] == list(range(1, 13))
