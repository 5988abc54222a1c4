"""Counts, sizes and durations have one form each, and are written nowhere by hand."""

import ast
import re
from pathlib import Path

import pytest

from mlxchat.config.units import to_bytes
from mlxchat.counts import (
    counted,
    duration,
    flops_per_second,
    part_of_size,
    round_duration,
    round_size,
)

SOURCE = Path(__file__).parent.parent / "src" / "mlxchat"
NOUNS = r"rows|times|steps|runs|files|documents|questions|shards|conversations|samples|problems"
BY_HAND = re.compile(rf" (?:[a-z-]+ ){{0,2}}(?:{NOUNS})\b")


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [
        (0, "steps", "0 steps"),
        (1, "steps", "1 step"),
        (2000, "steps", "2,000 steps"),
        (1, "micro-batches", "1 micro-batch"),
        (1, "held-out questions", "1 held-out question"),
        (1, "rows of 128", "1 row of 128"),
        (2, "rows of 128", "2 rows of 128"),
        (1, "matrices", "1 matrix"),
        (1.2, "tokens", "1 token"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(count: float, unit: str, text: str) -> None:
    assert counted(count, unit) == text


def test_no_message_writes_a_count_with_a_plural_that_could_be_wrong() -> None:
    faults = []
    for path in SOURCE.rglob("*.py"):
        if path.parent.name == "corpus":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            for value, after in zip(node.values, node.values[1:], strict=False):
                if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                    continue
                spec = value.format_spec
                grouped = isinstance(spec, ast.JoinedStr) and "','" in ast.dump(spec)
                if grouped and BY_HAND.match(str(after.value)):
                    faults.append(f"{path.name}:{node.lineno}: {after.value}")
    assert not faults


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.04, "0s"),
        (0.42, "0.4s"),
        (0.96, "1s"),
        (59, "59s"),
        (59.6, "1m 00s"),
        (65, "1m 05s"),
        (3599.6, "1h 00m"),
        (7200, "2h 00m"),
        (55_200, "15h 20m"),
        (273_600, "3d 04h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_tick_of_time_leaves_out_a_unit_that_is_zero() -> None:
    assert [round_duration(n) for n in (30, 60, 90, 7200, 259_200, 36_000)] == [
        "30s",
        "1m",
        "1m 30s",
        "2h",
        "3d",
        "10h",
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (95_100_000, "95.1 MB"),
        (999_960_000, "1.0 GB"),
        (2**34, "17.2 GB"),
        (2.5e12, "2.5 TB"),
        (2e16, "20,000.0 TB"),
    ],
)
def test_a_size_counts_as_the_sizes_of_settings_do(size: float, text: str) -> None:
    assert round_size(size) == text
    if text.endswith(("MB", "GB")):
        assert to_bytes(text) == pytest.approx(size, rel=0.01)


def test_a_part_has_the_unit_of_the_whole() -> None:
    assert part_of_size(5e8, 16e9) == "0.5 of 16.0 GB"
    assert part_of_size(0, 0) == "0.0 of 0 B"


BINARY = re.compile(r"[0-9} ][KMGT]iB\b")
NOT_SHOWN = {"config/run.py", "config/units.py", "runtime.py"}  # what a setting may be, a docstring


def test_no_text_counts_bytes_in_powers_of_two() -> None:
    found = {
        str(path.relative_to(SOURCE))
        for path in (*SOURCE.rglob("*.py"), *SOURCE.rglob("*.js"))
        if any(BINARY.search(line.partition("  # ")[0]) for line in path.read_text().splitlines())
    }
    assert found - NOT_SHOWN == set()


def test_speeds_of_computing_have_units_and_three_digits() -> None:
    assert flops_per_second(430.2e9) == "430 GFLOP/s"
    assert flops_per_second(12.36e12) == "12.4 TFLOP/s"
