"""Counts are written with their noun, in the singular where they are one; nowhere by hand."""

import ast
import re
from pathlib import Path

import pytest

from mlxchat.counts import counted

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
