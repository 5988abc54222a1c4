"""What MLX says when its device fails is recognised by its text, wherever it comes up."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import put_step
from support.runs import CONFIG, run, run_folder

from mlxchat.checkpoint import layout, store, trainer
from mlxchat.cli import failures, supervise
from mlxchat.device_failures import explain
from mlxchat.errors import DeviceError, DiskError
from mlxchat.home import Home
from mlxchat.runtime import mx
from mlxchat.telemetry.status import read_status, status_path
from mlxchat.train.loop import Launch, Pending, ShouldStop
from mlxchat.train.step import StepParts, compile_step

FAILED = "[METAL] Command buffer execution failed: "
BUFFER = "kIOGPUCommandBufferCallbackError"
WATCHDOG = f"{FAILED}Impacting Interactivity (0000000e:{BUFFER}ImpactingInteractivity)"
TIMEOUT = f"{FAILED}Caused GPU Timeout Error (00000002:{BUFFER}Timeout)"
MEMORY = f"{FAILED}Insufficient Memory (00000008:{BUFFER}OutOfMemory)"
TOLD = {
    WATCHDOG: ("because it delayed the display", "Let the display sleep"),
    TIMEOUT: ("waited or ran for seconds", "--device-batch-size"),
    f"{FAILED}Caused GPU Hang Error (00000003:{BUFFER}Hang)": ("waited or ran", "display sleep"),
    f"{FAILED}Innocent Victim (00000005:{BUFFER}InnocentVictim)": ("in another program", "Close"),
    f"{FAILED}Discarded (00000004:{BUFFER}SubmissionsIgnored)": ("earlier error", "Close"),
    MEMORY: ("out of memory", "--memory-limit"),
    "[metal::malloc] Unable to allocate 9 bytes.": ("out of memory", "--memory-limit"),
    "[malloc] Unable to allocate 9 bytes.": ("out of memory", "--memory-limit"),
    "std::bad_alloc": ("out of memory", "--memory-limit"),
    "cudaMallocAsync(&data, size) failed: out of memory": ("out of memory", "--memory-limit"),
    "[metal::malloc] Resource limit (499000) exceeded.": ("as many arrays as", "without any"),
    "[metal::malloc] Attempting to allocate 90 bytes which is greater than the maximum allowed "
    "buffer size of 9 bytes.": ("larger than the GPU's largest buffer", "--max-seq-len"),
    f"{FAILED}Page Fault (0000000b:{BUFFER}PageFault)": ("MLX's device failed", "Repeat"),
    "cuGraphLaunch failed: an illegal memory access": ("MLX's device failed", "Repeat"),
}


@pytest.mark.parametrize("text", TOLD, ids=lambda text: text[-40:])
def test_two_lines_say_what_happened_and_what_helps(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise RuntimeError(text)

    assert failures.exit_code(command) == 70
    problem, remedy = capsys.readouterr().err.splitlines()
    what, helps = TOLD[text]
    assert what in problem and text.rstrip(".") in problem
    assert helps in remedy and "--supervise" in remedy


@pytest.mark.parametrize(
    "text",
    [
        "[save_safetensors] Failed to open file /x/model.safetensors",
        "[load_safetensors] Invalid json header length",
        "[read] Unable to read 9 bytes from file.",
        "[matmul] Last dimension of first input with shape (1,2) must match",
        "",
    ],
)
def test_other_errors_of_mlx_are_not_its_devices(text: str) -> None:
    assert explain(text) is None


def raising(text: str) -> Callable[..., None]:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    return failing


@pytest.mark.parametrize("text", [WATCHDOG, TIMEOUT, MEMORY])
def test_a_save_that_the_device_ends_does_not_ask_for_room(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "run"
    put_step(folder, 2)
    with pytest.raises(DeviceError) as raised:
        store.save(folder, 4, raising(text))
    assert "Free space" not in raised.value.remedy
    assert store.steps(folder) == [2] and store.unfinished(folder) == []
    with pytest.raises(DiskError, match="could not be saved"):
        store.save(folder, 4, raising("[save_safetensors] Failed to open file"))


def test_a_file_is_not_damaged_because_the_device_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "arrays.safetensors"
    mx.save_safetensors(str(path), {"a": mx.array([1.0])})
    for name in ("eval", "load"):
        with monkeypatch.context() as patched:
            patched.setattr(mx, name, raising(MEMORY))
            with pytest.raises(DeviceError):
                layout.read_arrays(path)


def failing_once(at: int, failed: list[int]) -> Callable[[StepParts, ShouldStop], Launch]:
    """A step whose device fails the first time that it is ``at``."""

    def compile(parts: StepParts, stop: ShouldStop = lambda: False) -> Launch:
        launch = compile_step(parts, stop)

        def launch_or_fail(number: int) -> Pending:
            if number == at and not failed:
                failed.append(number)
                raise RuntimeError(WATCHDOG)
            return launch(number)

        return launch_or_fail

    return compile


def test_a_run_says_so_in_its_status_and_resumes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"eval_every": 0, "sample_every": 0})
    compile = failing_once(5, [])
    with pytest.raises(DeviceError, match="because it delayed the display"):
        run(prepared, config, compile=compile)
    status = read_status(status_path(Home(prepared).log("run")))
    assert status and status.ended == "failed"
    assert status.failure and "it delayed the display" in status.failure
    assert store.steps(run_folder(prepared)) == [3]
    write_state = trainer.write_state
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "write_state", raising(TIMEOUT))
        with pytest.raises(DeviceError, match="waited or ran for seconds"):
            run(prepared, config, compile=compile)
    assert trainer.write_state is write_state
    run(prepared, config, compile=compile)
    assert store.steps(run_folder(prepared))[-1] == 12


def test_a_mac_whose_process_aborts_is_told_of_the_watchdog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert supervise._reason(-6) == "SIGABRT"
    monkeypatch.setattr(supervise, "on_mac", lambda: True)
    assert "GPU's watchdog" in supervise._reason(-6)
    assert supervise._reason(-9) == "SIGKILL"
