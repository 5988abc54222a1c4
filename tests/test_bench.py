"""The measurements of `mlxchat bench`, on a fake clock, and their tables."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from rich.console import Console
from support.marks import slow

from mlxchat import runtime
from mlxchat.bench import Bench, measure, planned
from mlxchat.cli.bench import bench_heading, bench_sections
from mlxchat.config.inference import BenchConfig
from mlxchat.errors import MlxchatError
from mlxchat.model.size import flops_per_token, parameters
from mlxchat.plan.memory import Resources
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Progressed
from mlxchat.ui.tables import Row, Section, markdown, tables

GIB = 1024**3
RESOURCES = Resources(24 * GIB, 4, "all", 1024)
TINY = {"depth": 1, "max_seq_len": 16, "device_batch_size": 2, "vocab_size": 300, "steps": 4}
OPTIONS = [part for name, n in TINY.items() for part in (f"--{name.replace('_', '-')}", str(n))]
PROGRAM = [sys.executable, "-c", "from mlxchat.cli.app import main; main()", "bench"]


def ticking() -> Clock:
    """A clock that is a second further each time it is asked, while its time of day goes back."""
    now, back = count(1000), count(10**9, -3600)
    return Clock(lambda: float(next(back)), lambda: float(next(now)))


def measured(reported: list[Progressed] | None = None, **settings: object) -> Bench:
    config = BenchConfig.model_validate({**TINY, **settings})
    report = [].append if reported is None else reported.append
    return measure(config, report, ticking(), started_at=990.0)


@pytest.fixture(scope="module")
def facts() -> Bench:
    return measured()


def test_speeds_follow_from_the_clock(facts: Bench) -> None:
    training, generation = facts.training, facts.generation
    assert training.startup_seconds == 10.0
    assert training.first_step_seconds == 1.0
    assert training.step_seconds == [1.0] * 4
    assert training.tokens_per_step == training.tokens_per_second == 32
    assert training.flops_per_second == 32 * facts.flops_per_token
    ratio = training.flops_per_second / facts.environment.matmul_flops
    assert training.matmul_share == pytest.approx(ratio)
    assert training.peak_memory > 4 * facts.parameters
    assert generation.tokens_per_second == 1.0
    assert (generation.prefill_tokens, generation.prefill_tokens_per_second) == (16, 16.0)
    assert generation.prompt_tokens + generation.decoded_tokens <= 16


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_the_model_is_the_one_that_training_would_have(arch: str) -> None:
    config = BenchConfig(arch=arch, depth=3, max_seq_len=100, device_batch_size=7)
    made = planned(config, RESOURCES)
    assert made.model.arch == arch
    assert made.tokens_per_step == 700
    assert made.accumulation == 1
    assert made.parameters == sum(parameters(made.model).values())
    assert made.flops_per_token == flops_per_token(made.model)


@pytest.mark.slow
def test_the_modern_architecture_is_measured() -> None:
    assert measured(arch="modern", steps=3).training.tokens_per_second == 32


def test_utilisation_is_measured_against_a_known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = replace(runtime.machine(), peak_flops=1e12)
    monkeypatch.setattr(runtime, "machine", lambda: chip)
    facts = measured(steps=3)
    assert facts.environment.peak_flops == 1e12
    assert facts.training.mfu == pytest.approx(facts.training.flops_per_second / 1e12)


@pytest.mark.slow
def test_no_step_starts_when_time_is_up() -> None:
    events: list[Progressed] = []
    facts = measured(events, steps=1000, seconds=5)
    assert len(facts.training.step_seconds) == 5
    assert len(measured(steps=1000, seconds=0.001).training.step_seconds) == 3
    last = {event.task: event for event in events}
    assert set(last) == {"training", "prefill", "decoding"}
    assert all(event.done == event.total for event in last.values())


def test_impossible_settings_are_an_error() -> None:
    with pytest.raises(MlxchatError) as caught:
        planned(BenchConfig(depth=5), RESOURCES)
    assert "320" in caught.value.problem and "`head_dim`" in caught.value.remedy
    with pytest.raises(MlxchatError) as caught:
        planned(BenchConfig(device_batch_size=10_000), RESOURCES)
    assert "10,000 rows of 512" in caught.value.problem and "25.8 GB" in caught.value.problem
    assert "`device_batch_size" in caught.value.remedy
    with pytest.raises(MlxchatError, match="8 rows of 512 tokens only fit into mem") as caught:
        planned(BenchConfig(), RESOURCES._replace(memory=GIB // 2))
    assert "`device_batch_size" in caught.value.remedy
    with pytest.raises(MlxchatError) as caught:
        planned(BenchConfig(depth=64, vocab_size=65_536), RESOURCES)
    assert "`depth" in caught.value.remedy


def with_peak(facts: Bench) -> Bench:
    """As on a chip in the table."""
    chip = {"device": "NVIDIA H100 80GB HBM3", "peak_flops": 989e12, "matmul_flops": 640.2e12}
    changed = {
        "environment": facts.environment.model_copy(update=chip),
        "training": facts.training.model_copy(update={"mfu": 0.4123}),
    }
    return facts.model_copy(update=changed)


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("of", [lambda facts: facts, with_peak])
def test_tables_fit_and_cut_nothing(facts: Bench, of: Callable[[Bench], Bench], width: int) -> None:
    facts = of(facts)
    console = Console(file=io.StringIO(), width=width)
    console.print(tables(bench_heading(facts), bench_sections(facts), width))
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for said in (facts.environment.device, facts.environment.mlx, f"{facts.parameters:,}"):
        assert said in text
    mfu = next(line for line in text.splitlines() if "MFU" in line)
    assert ("41.2%" in mfu and "989.0 TFLOP/s" in mfu) if facts.training.mfu else "unknown" in mfu


def test_more_than_the_data_sheet_counts_is_explained(facts: Bench) -> None:
    """As on an M5, whose accelerators it leaves out."""
    facts = with_peak(facts)
    faster = facts.training.model_copy(update={"mfu": 2.3})
    (of, passed), (_, usual) = (
        next((row.value, row.note) for row in bench_sections(each)[0].rows if row.label == "MFU")
        for each in (facts.model_copy(update={"training": faster}), facts)
    )
    assert of == "230.0%" and "counting only its ALUs" in passed and "ALUs" not in usual


def test_markdown_is_one_table(facts: Bench) -> None:
    lines = markdown(bench_heading(facts), bench_sections(facts)).splitlines()
    assert lines[0] == f"**{bench_heading(facts)[0]}**"
    table = lines[lines.index("") + 1 :]
    assert table[:2] == ["| | |", "|---|---|"]
    assert all(line.count("|") == 3 for line in table)
    for label in ("device", "mlx", "mlxchat", "python", "system", "peak memory"):
        assert any(line.startswith(f"| {label} | ") for line in table)
    assert "| tokens/s | 32 (median of 4 steps) |" in table


def test_markdown_keeps_its_cells_apart() -> None:
    drawn = markdown(["a model"], [Section("s|t", [Row("a", "1", "of x|y\nand z")])])
    assert drawn.splitlines()[-2:] == [r"| **s\|t** | |", r"| a | 1 of x\|y and z |"]


def test_json_is_one_object() -> None:
    result = subprocess.run(
        [*PROGRAM, *OPTIONS, "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    said = json.loads(result.stdout)
    assert Bench.model_validate(said).config == BenchConfig.model_validate(TINY)
    assert said["training"]["startup_seconds"] > 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--json", "--markdown"], 2, "--markdown"),
        slow(["--max-seq-len", "8"], 2, "--max-seq-len"),
        (["--depth", "5"], 1, "Error: A depth of 5"),
        slow(["--device-batch-size", "1000000000"], 1, "parameters, 1,000,000,000 rows"),
    ],
)
def test_errors_come_before_any_work(options: list[str], code: int, said: str) -> None:
    result = subprocess.run([*PROGRAM, *options], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (code, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_ends_it_quietly(handler: Any) -> None:
    """It does so too where a shell has its background jobs ignore Ctrl-C."""
    options = ["--steps", "3", "--device-batch-size", "1", "--vocab-size", "300"]
    with subprocess.Popen(
        [*PROGRAM, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("training: ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err and "decoding" not in err
