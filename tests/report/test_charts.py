"""Charts: valid SVG whatever the values, and axes that can be read."""

import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from mlxchat.report.charts import AxisScale, Chart, Level, Line, Mark, line_style, scale, svg, ticks
from mlxchat.report.page import LOOK


def chart(values: list[float], **more: object) -> Chart:
    step = np.arange(1.0, len(values) + 1)
    line = Line("run", 0, {"step": step, "tokens": step * 512, "time": step**1.5}, np.array(values))
    return Chart("loss", "Loss <of> training", "number", [line], series=("loss",), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        [3.0, 2.0, 1.0],
        [5.0],
        [0.0, 0.0],
        [1e-38, 1e38],
        [-1e40, 1e40],
        [2.0, math.nan, 3.0, math.inf],
        list(np.linspace(1e15, 1e15 + 1, 50)),
    ],
)
@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize("unit", ["number", "bytes", "share", "count"])
def test_any_values_make_a_valid_picture(values: list[float], log_y: bool, unit: str) -> None:
    mark = Mark(0, {"step": 1.0, "tokens": 512.0, "time": 1.0}, "a <mark>")
    picture = svg(
        chart(values, log_y=log_y, marks=[mark], levels=[Level(1.0, "GPT-2")])._replace(unit=unit)
    )
    ElementTree.fromstring(picture)
    assert not re.search(r"\b(nan|inf)\b", picture)
    assert len(picture) < 20_000


def test_nothing_finite_makes_no_picture() -> None:
    assert svg(chart([math.nan, math.inf])) == ""
    assert svg(chart([])) == ""


def test_what_is_the_same_for_several_kinds_of_axis_is_drawn_once() -> None:
    root = ElementTree.fromstring(svg(chart([3.0, 2.0, 1.5])))
    kinds = [group.get("class", "") for group in root if "kind" in group.get("class", "")]
    assert "kind step-lin tokens-lin" in kinds
    named = sorted(kind for classes in kinds for kind in classes.split()[1:])
    assert len(named) == 2 * 6  # axis and lines of three axes, linear and logarithmic


def test_values_stand_where_the_scales_say() -> None:
    root = ElementTree.fromstring(svg(chart([1.0, 10.0, 100.0], log_y=True)))
    scales = json.loads(root.get("data-scales", ""))
    assert scales["x"]["step-lin"] == [0, 3]
    first, last, log = scales["y"]
    assert log and first < 1 and last > 100
    [path] = [
        element.get("d", "")
        for group in root
        if "step-lin" in group.get("class", "").split()
        for element in group
        if element.get("class", "").startswith("line")
    ]
    heights = [float(number) for number in re.findall(r"[\d.]+ ([\d.]+)", path)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


@pytest.mark.parametrize(
    ("first", "last", "log", "unit", "expected"),
    [
        (0, 240, False, "number", [0, 50, 100, 150, 200]),
        (0, 0.02, False, "number", [0, 0.005, 0.01, 0.015, 0.02]),
        (0, 3.2e9, False, "bytes", [0, 1e9, 2e9, 3e9]),
        (0, 7200, False, "time", [0, 1800, 3600, 5400, 7200]),
        (0, 10 * 86_400, False, "time", [0, 2 * 86400, 4 * 86400, 6 * 86400, 8 * 86400, 864_000]),
        (1, 1e6, True, "number", [1, 10, 100, 1000, 1e4, 1e5, 1e6]),
        (2, 12, True, "number", [2, 3, 4, 6, 8, 10]),
        (0.9, 1.5, True, "number", [0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]),
    ],
)
def test_ticks_are_round(
    first: float, last: float, log: bool, unit: str, expected: list[float]
) -> None:
    assert ticks(AxisScale(first, last, log, 100), unit) == pytest.approx(expected)


def test_there_is_nothing_between_two_steps() -> None:
    assert ticks(AxisScale(0, 2, False, 100), "step") == [0, 1, 2]
    assert ticks(AxisScale(0, 2, False, 100), "number") == [0, 0.5, 1, 1.5, 2]


def test_a_point_alone_is_a_dot() -> None:
    """As a path it would not be seen: a run of one step has a single one."""

    def dots(*values: float) -> set[int]:
        paths = re.findall(r'class="dots c0 d0" d="([^"]*)"', svg(chart(list(values))))
        return {path.count("h0") for path in paths}

    assert dots(3.0) == {1}
    assert dots(3.0, 2.0) == set()
    assert dots(3.0, math.nan, 2.0, 1.0, math.nan, 1.0) == {2}


def test_a_scale_of_one_value_has_room() -> None:
    found = scale([np.array([5.0])], 100)
    assert found is not None and found.first < 5 < found.last


def test_no_two_of_many_lines_look_the_same() -> None:
    looks = [line_style(number) for number in range(36)]
    assert len(set(looks)) == 36
    style = (LOOK / "report.css").read_text("utf-8")
    for number in range(6):
        assert f".c{number} {{ --c: var(--c{number})" in style
