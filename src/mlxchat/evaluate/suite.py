"""The evaluation of a chat model: selects tasks and conversations, and evaluates them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlxchat import __version__
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.checkpoint.task_results import TaskResult
from mlxchat.config.inference import ChatEvalConfig
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.chats.sources import VALIDATION_SHARE, Source
from mlxchat.errors import ConfigError, NotFound
from mlxchat.evaluate.answers import Outcome, Score, answer_problems
from mlxchat.evaluate.loss import (
    LONGEST_REPLY,
    HeldOut,
    bits_per_byte,
    builtin_questions,
    last_replies,
    lay_out,
)
from mlxchat.evaluate.tasks import TASKS, Exercise, Problem, is_available, problems
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Evaluated, Evaluating, Progressed, Report
from mlxchat.tokenizer.messages import Conversation

BUILTIN_TASK = "builtin questions"
BUILTIN_SEED = 42  # of the built-in conversations; which of them are held out does not depend on it

SKIPPED = (
    "{} is skipped because it runs programs that the model writes. Allow it with "
    "`allow_code_execution`."
)
NO_TASK_FILES = (
    "Only spelling is evaluated, because {} has no task files. Name their folder with `task_data`."
)
SHARE_UNKNOWN = (
    "It is unknown what fraction of the conversations was held out when this model was "
    "fine-tuned; using {:g}. Set another with `validation_share`."
)
PARTLY_TRAINED = (
    "The model was fine-tuned with a validation share of {:g}: with {:g}, some of the "
    "conversations it was trained on may count as held out."
)


@dataclass(frozen=True)
class Suite:
    """Everything a model is evaluated on: problems by task, questions and conversations."""

    tasks: dict[str, list[Problem]]
    builtin: Sequence[Exercise]
    conversations: Sequence[Conversation]


@dataclass
class Results:
    """The results of an evaluation; None for each part that was not requested or is incomplete."""

    tasks: list[Score] = field(default_factory=list)
    builtin: Score | None = None
    laid_out: HeldOut | None = None
    loss: Evaluated | None = None
    replies: Score | None = None
    complete: bool = False


def select_tasks(config: ChatEvalConfig, task_data: Path) -> tuple[list[str], list[str]]:
    """Return the tasks to run, and notes about the ones that are skipped.

    Raises:
        ConfigError: a task that was named runs code, which is not allowed.
        NotFound: the folder was named, and holds no task.
    """
    if config.named is not None:
        refused = [] if config.allow_code_execution else _running_code(config.named)
        if refused:
            raise ConfigError(
                f"The task {refused[0]} runs programs that the model writes, on this machine.",
                "Allow it with `allow_code_execution`, or name other tasks with `tasks`.",
            )
        return list(config.named), []
    if config.data and config.task_data is None:
        return [], []
    available = [name for name in TASKS if is_available(name, task_data)]
    if all(TASKS[name].folder is None for name in available):
        if config.task_data is not None:
            raise NotFound(
                f"{task_data} has no task files.",
                f"It should contain folders such as {TASKS['mmlu'].folder} with parquet files in "
                "them. `tasks=spelling` needs none.",
            )
        return available, [NO_TASK_FILES.format(task_data)]
    skipped = [] if config.allow_code_execution else _running_code(available)
    runnable = [name for name in available if name not in skipped]
    return runnable, [SKIPPED.format(name) for name in skipped]


def held_out_share(
    config: ChatEvalConfig, own: float | None, conversational: bool
) -> tuple[float, list[str]]:
    """Return the share of each data source that counts as held out, and notes about it.

    Args:
        own: the share that the model's fine-tuning held out, if it is known.
        conversational: whether the model was trained on conversations.
    """
    given = config.validation_share
    if given and own and given > own:
        return given, [PARTLY_TRAINED.format(own, given)]
    if not (given or own) and conversational:
        return VALIDATION_SHARE, [SHARE_UNKNOWN.format(VALIDATION_SHARE)]
    return given or own or VALIDATION_SHARE, []


def read_problems(
    config: ChatEvalConfig, tasks: Sequence[str], task_data: Path
) -> dict[str, list[Problem]]:
    """Return at most `max_problems` problems of each task.

    Raises:
        MlxchatError: the files of a task are missing or damaged.
    """
    return {name: problems(name, task_data, config.max_problems) for name in tasks}


def select_suite(
    config: ChatEvalConfig,
    tasks: dict[str, list[Problem]],
    sources: Sequence[Source],
    share: float,
) -> Suite:
    """Return what to evaluate on: the tasks, and what fine-tuning on the same sources never sees.

    Args:
        tasks: the problems of each task.
        sources: the conversations, of which at most `max_problems` held-out ones count.
        share: the share of each source that is held out.
    """
    conversations: list[Conversation] = []
    if sources:
        documents = ChatDocuments(sources, seed=BUILTIN_SEED, validation_share=share)
        conversations = documents.held_out[: config.max_problems]
    has_builtin = any(source.is_corpus for source in sources)
    builtin = builtin_questions(config.max_problems) if has_builtin else []
    return Suite(tasks, builtin, conversations)


def run_suite(
    suite: Suite,
    saved: SavedModel,
    config: ChatEvalConfig,
    report: Report,
    results: Results,
    keep: Callable[[TaskResult], None] = lambda result: None,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Evaluate a model on a suite.

    Args:
        suite: what it is evaluated on.
        saved: the model.
        config: the settings.
        report: receives the progress.
        results: filled in part by part, so that an interrupt leaves the complete parts.
        keep: called with the result on a task, or on the built-in questions, once it is complete.
            What is measured on conversations depends on the user's own files, and is not kept.
        clock: stamps the events and the results.
    """

    def keep_score(score: Score, asked: Sequence[Problem], max_tokens: int) -> None:
        limit = config.max_problems if config.max_problems == len(asked) else None
        keep(task_result(score, asked, limit, max_tokens, saved, clock()))

    def score(task: str, asked: Sequence[Problem], max_tokens: int) -> Score:
        outcomes: list[Outcome] = []
        report(Progressed(clock(), task, 0, len(asked), "questions"))
        for outcome in answer_problems(saved, asked, config.batch_size, max_tokens):
            outcomes.append(outcome)
            report(Progressed(clock(), task, len(outcomes), len(asked), "questions"))
        return Score.of(task, outcomes)

    for name, asked in suite.tasks.items():
        results.tasks.append(score(name, asked, config.max_tokens))
        keep_score(results.tasks[-1], asked, config.max_tokens)
    if suite.builtin:
        results.builtin = score(BUILTIN_TASK, suite.builtin, LONGEST_REPLY + 1)
        keep_score(results.builtin, suite.builtin, LONGEST_REPLY + 1)
    if suite.conversations:
        context = saved.model.config.sequence_len
        results.laid_out = lay_out(suite.conversations, saved.tokenizer, context)
        results.loss = _held_out_loss(saved, results.laid_out, report)
        if exercises := last_replies(suite.conversations, saved.tokenizer):
            results.replies = score("last replies", exercises, LONGEST_REPLY + 1)
    results.complete = True


def task_result(
    score: Score,
    asked: Sequence[Problem],
    limit: int | None,
    max_tokens: int,
    saved: SavedModel,
    time: float,
) -> TaskResult:
    """Return what is kept of a score.

    Args:
        score: the score on all the problems.
        asked: these problems.
        limit: the limit that left out others of the task; None if it left out none.
        max_tokens: the most tokens of a written answer.
        saved: the model.
        time: when the last of them was answered.
    """
    written = any(isinstance(problem, Exercise) for problem in asked)
    return TaskResult(
        task=score.task,
        right=score.right,
        asked=score.problems,
        low=score.interval.low,
        high=score.interval.high,
        random=score.random,
        max_problems=limit,
        max_tokens=max_tokens if written else None,
        temperature=0.0 if written else None,
        dtype=str(saved.model.dtype).removeprefix("mlx.core."),
        time=time,
        mlxchat=__version__,
    )


def _held_out_loss(saved: SavedModel, laid_out: HeldOut, report: Report) -> Evaluated:
    task, batches = "held-out conversations", len(laid_out.batches)
    for event in bits_per_byte(saved.model.losses, laid_out.batches, batches, saved.tokenizer):
        done = event.batch if isinstance(event, Evaluating) else batches
        report(Progressed(event.time, task, done, batches, "batches"))
    assert isinstance(event, Evaluated)
    return event


def _running_code(names: Sequence[str]) -> list[str]:
    return [name for name, task in TASKS.items() if name in names and task.runs_code]
