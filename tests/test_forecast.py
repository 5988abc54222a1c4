"""What a run will take: the numbers, and how they are shown."""

import io

import pytest
from rich.console import Console

from mlxchat import runtime
from mlxchat.cli.planning import heading, sections
from mlxchat.train.forecast import Forecast, forecast
from mlxchat.train.plan import Capacity, plan
from mlxchat.train.settings import PretrainConfig
from mlxchat.ui.plans import Row, Section, about, flops_per_second, show, tables

CAPACITY = Capacity(128 * 1024**3, 2, True, 1024)


def foreseen(**settings: object) -> Forecast:
    config = PretrainConfig.model_validate(settings)
    made = plan(config, 32_768, CAPACITY)
    return forecast(made, config.tag, "default", 7, CAPACITY, "a chip", 1e12)


def test_the_time_is_that_of_all_floating_point_operations() -> None:
    facts = foreseen(depth=12, arch="modern")
    assert facts.tokens == 2520 * 524_288
    assert facts.total_flops == facts.tokens * facts.plan.flops_per_token
    assert facts.seconds == pytest.approx(facts.total_flops / 0.35e12)
    assert Forecast.model_validate_json(facts.model_dump_json()) == facts


@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize("width", [80, 160])
def test_tables_fit_and_cut_nothing(arch: str, width: int) -> None:
    facts = foreseen(depth=32, arch=arch, device_batch_size=2)
    console = Console(file=io.StringIO(), width=width)
    console.print(tables(heading(facts), sections(facts), width))
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "step 7 of" in text
    for name, rate in facts.plan.learning_rates.items():
        assert name in text and f"{rate:.4g}" in text
    for count in (*facts.parameters.values(), facts.plan.parameters, facts.plan.num_iterations):
        assert f"{count:,}" in text


def test_two_tables_abreast_on_a_wide_terminal() -> None:
    def lines(width: int) -> list[str]:
        console = Console(file=io.StringIO(), width=width)
        both = [Section("left", [Row("a", "1")]), Section("right", [Row("b", "2", "a note")])]
        console.print(tables(["model"], both, width))
        return console.file.getvalue().splitlines()

    assert any("left" in line and "right" in line for line in lines(160))
    assert not any("left" in line and "right" in line for line in lines(80))


def test_nothing_is_abreast_in_a_pipe() -> None:
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
def test_durations_have_no_more_digits_than_they_deserve(seconds: float, said: str) -> None:
    assert about(seconds) == said


def test_speeds() -> None:
    assert flops_per_second(430.2e9) == "430 GFLOP/s"
    assert flops_per_second(12.36e12) == "12.4 TFLOP/s"


def test_a_matrix_product_is_timed_for_as_long_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def clock() -> float:
        asked.append(len(asked) * 0.01)
        return asked[-1]

    monkeypatch.setattr(runtime.time, "perf_counter", clock)
    assert runtime.matmul_flops(0.1) == pytest.approx(2 * 512**3 / 0.01)
    assert asked[-1] == pytest.approx(0.1)
