"""The 22 tasks of CORE, and the forms of their examples.

CORE, of DCLM (https://arxiv.org/abs/2406.11794), is how nanochat judges base models. Tasks,
examples and baselines are nanochat's (commit 92d63d4, nanochat/core_eval.py and
scripts/base_eval.py).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from mlxchat.errors import ConfigError, DataError
from mlxchat.json_text import as_type, parse_json

BUNDLE_HOST = "https://karpathy-public.s3.us-west-2.amazonaws.com"
BUNDLE_ADDRESS = f"{BUNDLE_HOST}/eval_bundle.zip"
_ORIGINAL = f"Use the original bundle: {BUNDLE_ADDRESS}"
SHUFFLE = 1337  # nanochat's seed: which examples a limit leaves

_ANSWER = "\nAnswer: "  # between a question and its answer, where it is no blank

CoreKind = Literal["multiple choice", "schema", "completion"]


@dataclass(frozen=True)
class CoreTask:
    """A task.

    Attributes:
        file: the path of its examples in the bundle.
        kind: multiple choice has a question and several answers, one of them right; a schema has
            several contexts, one of which fits the continuation; for a completion, the model must
            predict every token.
        shots: the number of solved examples before the one that is scored.
        baseline: the percentage of right answers from guessing.
        gpt2: GPT-2's fractions of right answers, by size as in `GPT2_SIZES`.
        delimiter: the text between a question or context and what follows it.
    """

    file: str
    kind: CoreKind
    shots: int
    baseline: float
    gpt2: tuple[float, float, float, float]
    delimiter: str = " "


# The columns of GPT-2 are from the bundle's own files, as nanochat computed them. Those of 355M and
# more are of at most 1,000 examples a task.
GPT2_SIZES = ("124M", "355M", "774M", "1.56B")
GPT2_CORE = (0.113891, 0.184903, 0.214641, 0.256525)
_MC: CoreKind = "multiple choice"
_LM: CoreKind = "completion"
_READING, _LANGUAGE = "reading_comprehension/", "language_understanding/"
_WORLD, _SENSE, _SYMBOLS = "world_knowledge/", "commonsense_reasoning/", "symbolic_problem_solving/"
CORE_TASKS: dict[str, CoreTask] = {
    "hellaswag_zeroshot": CoreTask(
        f"{_LANGUAGE}hellaswag.jsonl", _MC, 0, 25, (0.308504, 0.39, 0.44, 0.502)
    ),
    "jeopardy": CoreTask(
        f"{_WORLD}jeopardy_all.jsonl", _LM, 10, 0, (0.001889, 0.044, 0.045, 0.092), _ANSWER
    ),
    "bigbench_qa_wikidata": CoreTask(
        f"{_WORLD}bigbench_qa_wikidata.jsonl", _LM, 10, 0, (0.282663, 0.428, 0.48, 0.531)
    ),
    "arc_easy": CoreTask(
        f"{_WORLD}arc_easy.jsonl", _MC, 10, 25, (0.412458, 0.48, 0.535, 0.595), _ANSWER
    ),
    "arc_challenge": CoreTask(
        f"{_WORLD}arc_challenge.jsonl", _MC, 10, 25, (0.221843, 0.262, 0.264, 0.299), _ANSWER
    ),
    "copa": CoreTask(f"{_SENSE}copa.jsonl", _MC, 0, 50, (0.6, 0.66, 0.67, 0.67)),
    "commonsense_qa": CoreTask(
        f"{_SENSE}commonsense_qa.jsonl", _MC, 10, 20, (0.224406, 0.196, 0.27, 0.227)
    ),
    "piqa": CoreTask(f"{_SENSE}piqa.jsonl", _MC, 10, 50, (0.62296, 0.67, 0.698, 0.725), _ANSWER),
    "openbook_qa": CoreTask(f"{_SENSE}openbook_qa.jsonl", _MC, 0, 25, (0.278, 0.308, 0.318, 0.346)),
    "lambada_openai": CoreTask(
        f"{_LANGUAGE}lambada_openai.jsonl", _LM, 0, 0, (0.322919, 0.426, 0.488, 0.523)
    ),
    "hellaswag": CoreTask(
        f"{_LANGUAGE}hellaswag.jsonl", _MC, 10, 25, (0.307907, 0.395, 0.444, 0.512)
    ),
    "winograd": CoreTask(
        f"{_LANGUAGE}winograd_wsc.jsonl", "schema", 0, 50, (0.578755, 0.655678, 0.688645, 0.714286)
    ),
    "winogrande": CoreTask(
        f"{_LANGUAGE}winogrande.jsonl", "schema", 0, 50, (0.486188, 0.521, 0.541, 0.569)
    ),
    "bigbench_dyck_languages": CoreTask(
        f"{_SYMBOLS}bigbench_dyck_languages.jsonl", _LM, 10, 0, (0.155, 0.17, 0.225, 0.247)
    ),
    "agi_eval_lsat_ar": CoreTask(
        f"{_SYMBOLS}agi_eval_lsat_ar.jsonl", _MC, 3, 20, (0.226087, 0.230435, 0.256522, 0.273913)
    ),
    "bigbench_cs_algorithms": CoreTask(
        f"{_SYMBOLS}bigbench_cs_algorithms.jsonl", _LM, 10, 0, (0.419697, 0.456, 0.44, 0.417)
    ),
    "bigbench_operators": CoreTask(
        f"{_SYMBOLS}bigbench_operators.jsonl", _LM, 10, 0, (0.085714, 0.1, 0.114286, 0.157143)
    ),
    "bigbench_repeat_copy_logic": CoreTask(
        f"{_SYMBOLS}bigbench_repeat_copy_logic.jsonl",
        _LM,
        10,
        0,
        (0.03125, 0.0625, 0.0625, 0.09375),
    ),
    "squad": CoreTask(f"{_READING}squad.jsonl", _LM, 10, 0, (0.058278, 0.169, 0.235, 0.309)),
    "coqa": CoreTask(f"{_READING}coqa.jsonl", _LM, 0, 0, (0.133659, 0.227, 0.23, 0.28)),
    "boolq": CoreTask(
        f"{_READING}boolq.jsonl", _MC, 10, 62, (0.552294, 0.606, 0.567, 0.619), _ANSWER
    ),
    "bigbench_language_identification": CoreTask(
        f"{_LANGUAGE}bigbench_language_identification.jsonl",
        _MC,
        10,
        9.1,
        (0.2566, 0.269, 0.261, 0.25),
    ),
}


def core_labels(tasks: str | None) -> list[str]:
    """Return the labels of tasks that are named with commas between them; of all for None.

    Raises:
        ConfigError: there is no such task, or none is named.

    >>> core_labels("Copa, squad")
    ['copa', 'squad']
    """
    if tasks is None:
        return list(CORE_TASKS)
    named = [name.strip().lower() for name in tasks.split(",") if name.strip()]
    unknown = [name for name in named if name not in CORE_TASKS]
    if unknown or not named:
        problem = f"There is no task {unknown[0]!r}." if unknown else "`tasks` names no task."
        raise ConfigError(problem, f"Give any of {', '.join(CORE_TASKS)}.")
    return [label for label in CORE_TASKS if label in named]


# ==== Examples ====


class _Labelled(BaseModel):
    """An item with several texts, one of which is right."""

    gold: Annotated[int, Field(ge=0)]

    def _require(self, options: Sequence[str]) -> None:
        if self.gold >= len(options):
            raise ValueError(f"gold is {self.gold}, and there are {len(options)} to choose from")


class ChoiceItem(_Labelled):
    """A question with its possible answers, and the number of the right one."""

    query: str
    choices: Annotated[list[str], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> "ChoiceItem":
        self._require(self.choices)
        return self


class SchemaItem(_Labelled):
    """A text with several possible beginnings, and the number of the right one."""

    context_options: Annotated[list[str], Field(min_length=1)]
    continuation: str

    @model_validator(mode="after")
    def _consistent(self) -> "SchemaItem":
        self._require(self.context_options)
        return self


class CompletionItem(BaseModel):
    """A text and what follows it."""

    context: str
    continuation: str


CoreItem = ChoiceItem | SchemaItem | CompletionItem

_ITEMS: dict[CoreKind, TypeAdapter[CoreItem]] = {
    _MC: TypeAdapter(ChoiceItem),
    "schema": TypeAdapter(SchemaItem),
    _LM: TypeAdapter(CompletionItem),
}


def core_items(label: str, content: bytes, limit: int | None) -> list[CoreItem]:
    """Return the examples of a task, in nanochat's order.

    Args:
        label: the task's.
        content: its file.
        limit: the most examples; None for all.

    Raises:
        ConfigError: there are too few examples for the task's shots.
        DataError: a line is not an example of the task's kind.
    """
    task = CORE_TASKS[label]
    lines = list(enumerate(content.rstrip(b"\n").split(b"\n"), 1))
    random.Random(SHUFFLE).shuffle(lines)
    kept = lines[:limit]
    if len(kept) <= task.shots:
        remedy = f"Use `max_per_task={task.shots + 1}` or more, or name other tasks with `tasks`."
        raise ConfigError(
            f"Each prompt of {label} contains {task.shots} other examples, but the number of "
            f"examples is {len(kept)}.",
            remedy if len(lines) > task.shots else _ORIGINAL,
        )
    return [_parsed_item(label, task, number, line) for number, line in kept]


def _parsed_item(label: str, task: CoreTask, number: int, line: bytes) -> CoreItem:
    try:
        return as_type(parse_json(line), _ITEMS[task.kind])
    except ValueError as error:  # those of pydantic among them
        reason = str(error)
        if isinstance(error, ValidationError):
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            reason = f"{where}: {fault['msg']}" if where else fault["msg"]
        raise DataError(
            f"Line {number:,} of {Path(task.file).name} is not an example of {label}: {reason}.",
            _ORIGINAL,
        ) from error
