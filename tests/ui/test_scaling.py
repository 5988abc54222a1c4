"""What `mlxchat scaling` prints: the table, the chart and the sentences."""

import io
import json
from pathlib import Path

import pytest

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.home import Home
from mlxchat.plan.memory import Resources
from mlxchat.plan.scaling import Law, Prediction, Rung, fitted_law, predict
from mlxchat.telemetry.events import json_line
from mlxchat.ui import dashboard, scaling
from mlxchat.ui.output import LiteralConsole


def rung(depth: int, flops: int, seconds: float, bits: float) -> Rung:
    return Rung(
        tag=f"scaling-d{depth}",
        depth=depth,
        width=64 * depth,
        vocab_size=4096,
        parameters=1_234_567,
        steps=1234,
        tokens=2_345_678,
        flops=flops,
        seconds=seconds,
        bits_per_byte=bits,
    )


CONFIG = PretrainConfig(budget="1h")
RESOURCES = Resources(64 * 2**30, 4, "none", 1024)
RUNGS = [
    rung(2, 10**12, 24, 2.4),
    rung(3, 10**13, 120, 2.0),
    rung(4, 10**14, 450, 1.65),
]


def foretold(rungs: list[Rung]) -> tuple[Law | None, list[Prediction]]:
    law = fitted_law(rungs)
    falls = law is not None and law.falls
    return law, [predict(law, rungs, CONFIG, RESOURCES, 4500)] if falls else []


def printed(rungs: list[Rung], width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    file = io.StringIO()
    console = LiteralConsole(file=file, force_terminal=True, width=width, color_system=None)
    for module in ("console", "scaling"):
        monkeypatch.setattr(f"mlxchat.ui.{module}.console_for", lambda _: console)
    scaling.show_ladder(rungs, *foretold(rungs), Home(Path("/home/ada/mlx chat")))
    return file.getvalue()


@pytest.mark.parametrize("width", [160, 80, 40])
def test_table_and_chart_fit(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(RUNGS, width, monkeypatch)
    drawn = text[: text.index("Bits per byte fall")]
    assert max(map(len, drawn.splitlines())) <= width
    for value in ("1,234,567", "1.00e+14", "0.4", "7.5", "1.6500"):
        assert value in drawn


def test_what_it_says_is_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(printed(RUNGS, 80, monkeypatch).split())
    law, [longer] = foretold(RUNGS)
    assert law is not None
    # log(2.4 / 1.65) / log(100) = 0.0814, and 1 - 10 ** -0.0814 = 17.1%
    assert "Bits per byte fall as FLOPs^-0.081" in text
    assert "lower them by 17.1%" in text
    assert "one standard error, from 3 runs, which is a rough estimate" in text
    said = f"about {longer.bits_per_byte:.3f} ± {longer.error:.3f}"
    assert f"A single run of 1h15m, at about depth {longer.depth} (1.0e+15 FLOPs): {said}" in text
    assert "mlxchat train --budget 1h15m" in text
    assert "mlxchat chat --model-tag scaling-d4" in text
    assert "rm -r '/home/ada/mlx chat/base_checkpoints/scaling-d2'" in text


@pytest.mark.parametrize(
    ("rungs", "said"),
    [
        (RUNGS[:1], "A scaling law needs at least 3 runs of 100 steps: give more --depths"),
        ([RUNGS[0]] * 3, "A scaling law needs at least 3 runs of 100 steps: give more --depths"),
        (RUNGS[:2], "A scaling law needs at least 3 runs of 100 steps: give more --depths"),
        ([*RUNGS[:2], rung(4, 10**14, 450, 3.0)], "More FLOPs did not help"),
    ],
)
def test_it_says_that_there_is_no_law(
    rungs: list[Rung], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said in printed(rungs, 80, monkeypatch)


def test_the_data_are_what_is_shown() -> None:
    law, predictions = foretold(RUNGS)
    data = json.loads(json_line(scaling.ladder_in_json(RUNGS, law, predictions)))
    assert data["runs"] == [rung.model_dump() for rung in RUNGS]
    assert data["fit"]["exponent"] == pytest.approx(0.0814, abs=1e-4)
    assert data["predictions"] == [predictions[0].model_dump()]
    assert scaling.ladder_in_json(RUNGS[:2], None, [])["fit"] is None


def test_a_curve_has_its_own_title_and_ends() -> None:
    points = [(12.0, 2.4), (13.0, 2.0), (14.0, 1.65)]
    lines = dashboard.labelled_curve(points, 40, 6, "bits", lambda x: f"{10**x:.0e}")
    axis = lines[-1].plain
    assert axis.split() == ["1e+12", "bits", "1e+14"]
    assert len(lines) == 6
