"""The estimated time and memory of a run, and their tables."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from mlxchat import runtime
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.counts import round_size
from mlxchat.plan.estimate import Estimate, Room, estimate
from mlxchat.plan.memory import Resources, training_bytes
from mlxchat.plan.plan import Costs, plan
from mlxchat.ui.estimate import GROUP_LABELS, estimate_heading, estimate_sections
from mlxchat.ui.tables import Row, Section, about, show, tables

GIB = 1024**3
RESOURCES = Resources(128 * GIB, 2, "none", 1024)
ROOM = Room(None, 4 * GIB, 192 * GIB)


def estimated(saved_step: int | None = None, **settings: object) -> Estimate:
    config = PretrainConfig.model_validate(settings)
    made = plan(config, 32_768, RESOURCES)
    return estimate(made, config.tag, "default", saved_step, RESOURCES, ROOM, "a chip", 1e12)


def drawn(facts: Estimate, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(tables(estimate_heading(facts), estimate_sections(facts), width))
    return console.file.getvalue()


def test_the_estimated_time_follows_from_the_operations() -> None:
    facts = estimated(depth=12, arch="modern")
    assert facts.tokens == 2520 * 524_288
    assert facts.total_flops == facts.tokens * facts.plan.flops_per_token
    assert facts.seconds == pytest.approx(facts.total_flops / 0.35e12)
    assert Estimate.model_validate_json(facts.model_dump_json()) == facts


@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize("width", [80, 160])
def test_tables_fit_the_terminal_without_truncation(arch: str, width: int) -> None:
    facts = estimated(7, depth=32, arch=arch, device_batch_size=2)
    text = drawn(facts, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "step 7 of" in text
    for name, rate in facts.plan.learning_rates.items():
        assert GROUP_LABELS[name] in text and f"{rate:.4g}" in text
    for count in (*facts.parameters.values(), facts.plan.parameters, facts.plan.num_iterations):
        assert f"{count:,}" in text


def test_a_group_without_a_label_is_shown_by_its_name() -> None:
    facts = estimated(depth=4)
    rates = facts.plan.learning_rates | {"gates": 0.125}
    made = facts.plan.model_copy(update={"learning_rates": rates})
    counts = facts.parameters | {"gates": 77}
    text = drawn(facts.model_copy(update={"plan": made, "parameters": counts}), 80)
    assert text.count("gates") == 2


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_no_note_folds_on_a_wide_terminal(arch: str) -> None:
    facts = estimated(7, depth=32, arch=arch)
    parameters, training, rates, memory = (
        len(section.rows) for section in estimate_sections(facts)
    )
    titles_and_gaps = 2 * 2
    expected = len(estimate_heading(facts)) + titles_and_gaps + max(parameters, training)
    assert len(drawn(facts, 160).splitlines()) == expected + max(rates, memory)


def test_the_estimated_time_of_a_saved_run_is_that_of_the_steps_left() -> None:
    whole, half, done = (estimated(n, depth=4, num_iterations=10) for n in (None, 5, 10))
    assert (half.seconds, done.seconds) == (pytest.approx(whole.seconds / 2), 0.0)
    assert half.total_flops == whole.total_flops
    assert "time left" in drawn(half, 80) and "time left" not in drawn(whole, 80)
    assert "the run is finished" in drawn(done, 80)


def test_the_estimated_time_of_a_budgeted_run_is_the_measured_one() -> None:
    made = plan(PretrainConfig(depth=4, num_iterations=10), 32_768, RESOURCES)
    costs = Costs(step=made.flops_per_token * made.tokens_per_step / 0.5e12)
    made = made.model_copy(update={"costs": costs})
    facts = estimate(made, "auto-1h", "default", None, RESOURCES, ROOM, "a chip", 1e12)
    assert facts.seconds == pytest.approx(10 * costs.step)
    assert facts.utilisation == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arch", "ratio"), [("classic", "20 per parameter"), ("modern", "12 per parameter of")]
)
def test_tokens_are_shown_by_those_parameters_that_the_ratio_counts(arch: str, ratio: str) -> None:
    text = drawn(estimated(depth=4, arch=arch), 80)
    assert ratio in text
    assert ("of matrices and head" in text) == (arch == "modern")


def test_groups_have_the_same_names_wherever_they_are() -> None:
    parts = {
        part.title: [row.label for row in part.rows]
        for part in estimate_sections(estimated(depth=4))
    }
    assert parts["Parameters"][:3] == parts["Learning rates"][:3]


def test_memory_is_shown_by_component_with_its_limit() -> None:
    facts = estimated(depth=4, total_batch_size=2**19)
    text = drawn(facts, 80)
    assert set(facts.memory) == {*training_bytes(facts.plan.model, facts.plan, RESOURCES), "cache"}
    for component, size in facts.memory.items():
        (line,) = (line for line in text.splitlines() if line.startswith(component))
        assert round_size(size) in line
    assert "137.4 GB  what this machine can spare of 206.2 GB" in text
    told = facts.model_copy(update={"memory_limit_given": "least"})
    assert "137.4 GB  --memory-limit least" in drawn(told, 80)


def test_checkpointing_is_shown_and_takes_a_third_longer() -> None:
    plain, twice = (estimated(depth=4, grad_checkpoint=asked) for asked in ("off", "on"))
    assert twice.seconds == pytest.approx(4 / 3 * plain.seconds)

    def line(**settings: object) -> str:
        lines = drawn(estimated(depth=4, **settings), 80).splitlines()
        return " ".join(next(line for line in lines if line.startswith("checkpointing")).split())

    assert line() == "checkpointing off activations are kept"
    assert line(grad_checkpoint="on") == "checkpointing on activations are recomputed"


def test_tables_are_side_by_side_on_a_wide_terminal() -> None:
    def lines(width: int) -> list[str]:
        console = Console(file=io.StringIO(), width=width)
        both = [Section("left", [Row("a", "1")]), Section("right", [Row("b", "2", "a note")])]
        console.print(tables(["model"], both, width))
        return console.file.getvalue().splitlines()

    assert any("left" in line and "right" in line for line in lines(160))
    assert not any("left" in line and "right" in line for line in lines(80))


def test_tables_are_one_below_the_other_in_a_pipe() -> None:
    stream = io.StringIO()
    show(["[model]"], [Section("left", [Row("a", "1")]), Section("right", [Row("b", "2")])], stream)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert lines == ["[model]", "", "left", "a  1", "", "right", "b  2"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "about a second"),
        (90, "about 90 seconds"),
        (125, "about 2.1 minutes"),
        (3 * 3600, "about 3.0 hours"),
        (12.4 * 86_400, "about 12 days"),
        (1e11, "about 3,171 years"),
    ],
)
def test_estimated_durations_are_rounded(seconds: float, said: str) -> None:
    assert about(seconds) == said


def test_matrix_products_are_timed_for_the_given_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def clock() -> float:
        asked.append(len(asked) * 0.01)
        return asked[-1]

    monkeypatch.setattr(runtime.time, "perf_counter", clock)
    assert runtime.matmul_flops(0.1) == pytest.approx(2 * 512**3 / 0.01)
    assert asked[-1] == pytest.approx(0.1)


def test_the_product_of_a_gpu_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []
    monkeypatch.setattr(runtime, "matmul_flops", lambda dtype: measured.append(5e12) or 5e12)
    gpu = runtime.Machine("metal", "Apple M6", runtime.mx.bfloat16, None, 2**34)
    for chip, product, times in ((replace(gpu, backend="cpu"), None, 0), (gpu, 5e12, 1)):
        monkeypatch.setattr(runtime, "machine", lambda chip=chip: chip)
        runtime.product_flops.cache_clear()
        assert [runtime.product_flops(gpu.compute_dtype) for _ in range(2)] == [product] * 2
        assert len(measured) == times
    runtime.product_flops.cache_clear()
