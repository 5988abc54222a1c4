"""A row of each task's files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlxchat.evaluate import tasks

ARC = {
    "id": "Q1",
    "question": "What do cows eat?",
    "choices": {"text": ["grass", "stones", "clouds"], "label": ["1", "2", "3"]},
    "answerKey": "1",
}
MMLU = {"question": "2 + 2", "subject": "sums", "choices": ["1", "2", "3", "4"], "answer": 3}
GSM8K = {"question": "How many?", "answer": "1,200 + 34 = <<1200+34=1234>>1234\n#### 1,234"}
HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\n\ndef twice(x: int) -> int:\n    import os\n",
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(4) == 8\n",
}


def fill(root: Path, task: str, *rows: dict) -> Path:
    folder = root / tasks.TASKS[task].folder
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "00000.parquet")
    return folder
