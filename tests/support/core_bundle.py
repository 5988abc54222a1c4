"""A bundle of CORE's tasks whose examples were written for the tests: a task of each kind."""

import json
from pathlib import Path
from typing import Any

from mlxchat.evaluate.core_tasks import CORE_TASKS

MADE = ("copa", "winograd", "bigbench_operators")
EXAMPLES = 14


def made_bundle(folder: Path) -> Path:
    """Write ``eval_bundle`` into a folder, as nanochat's zip file unpacks."""
    for label in MADE:
        path = folder / "eval_bundle" / "eval_data" / CORE_TASKS[label].file
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [_row(CORE_TASKS[label].kind, number) for number in range(EXAMPLES)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return folder / "eval_bundle"


def _row(kind: str, number: int) -> dict[str, Any]:
    gold = number % 2
    if kind == "multiple choice":
        choices = [f"it was wet {number}.", "nothing came of it."]
        return {"query": f"The rain fell {number} times, so", "choices": choices, "gold": gold}
    if kind == "schema":
        contexts = [f"The cow saw the calf {number} times because the {who}" for who in ("a", "b")]
        return {"context_options": contexts, "continuation": "was there.", "gold": gold}
    return {"context": f"{number} op {number} = ", "continuation": str(2 * number)}
