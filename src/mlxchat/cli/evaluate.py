"""What `mlxchat eval chat` does."""

import json as json_format
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer

from mlxchat.checkpoint import catalog, layout
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.cli import chat
from mlxchat.cli.session import ending_soon
from mlxchat.config.inference import TASK_NAMES, ChatEvalConfig, TaskName
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.chats.sources import VALIDATION_SHARE, Source, parse
from mlxchat.errors import ConfigError, MlxchatError, NotFound
from mlxchat.evaluate.answers import Outcome, Score, answer, mean_centered
from mlxchat.evaluate.loss import (
    LONGEST_REPLY,
    HeldOut,
    bits_per_byte,
    builtin_questions,
    held_out,
    replies,
)
from mlxchat.evaluate.tasks import FILES, RUNS_CODE, Exercise, Problem, is_there, problems
from mlxchat.home import Home
from mlxchat.telemetry.events import Evaluated, Evaluating, Noted, Progressed
from mlxchat.tokenizer.messages import Conversation
from mlxchat.train.stage import read_trainer, stage_of
from mlxchat.ui.console import Screen, say, table
from mlxchat.ui.text import amount

SEED = 42  # of the built-in corpus's conversations; what is held out does not depend on it
INTERRUPTED = 130
UNTRAINED = "{} was never trained on conversations: it does not know how they go."
LEFT_OUT = f"{RUNS_CODE} is left out: it runs the model's programs. --allow-code-execution does it."
NO_DATA = "Only spelling: there are no files of tasks in {}. --task-data names their folder."
SHARE_UNKNOWN = (
    "What was held out when the model was fine-tuned is not known: a share of {:g} is taken. "
    "--validation-share gives another."
)
PARTLY_TRAINED = (
    "The model was fine-tuned with a validation share of {:g}: with {:g}, conversations that it "
    "was trained on may count as held out."
)
CUT_SHORT = "Interrupted: only what was complete is told."


@dataclass(frozen=True)
class Asked:
    """All that a model is evaluated on: tasks by name, and what `--data` comes to."""

    tasks: dict[str, Sequence[Problem]]
    builtin: Sequence[Exercise]
    conversations: Sequence[Conversation]


@dataclass
class Found:
    """How a model did, as far as it was asked: ``None`` is what it was not, or not to the end."""

    tasks: list[Score] = field(default_factory=list)
    builtin: Score | None = None
    laid_out: HeldOut | None = None
    loss: Evaluated | None = None
    replies: Score | None = None
    complete: bool = False


def evaluate_chat(
    config: ChatEvalConfig, tag: str | None, step: int | None, checkpoint: Path | None, json: bool
) -> None:
    """Evaluate a model on tasks and on held-out conversations, and tell how it did.

    How far it is goes to standard error. Ctrl-C ends it with exit code 130, after telling what was
    complete.
    """
    folder = config.task_data or Home.from_environment().root / "task_data"
    tasks, notes = selected(config, folder)
    of_tasks: dict[str, Sequence[Problem]] = {
        task: problems(task, folder, config.max_problems) for task in tasks
    }
    sources = [parse(text) for text in config.data or ()]
    model = catalog.locate(Home.from_environment().stages, tag, step, checkpoint)
    saved, name = chat.load(tag, step, checkpoint)
    if not saved.conversational:
        notes.append(UNTRAINED.format(name))
    conversations: list[Conversation] = []
    if sources:
        share, more = validation_share(config, model, saved.conversational)
        notes += more
        conversations = _held_out(sources, share)[: config.max_problems]
    is_builtin = any(source.path is None for source in sources)
    builtin = builtin_questions(config.max_problems) if is_builtin else []
    found = Found()
    with ending_soon(), Screen(stream=sys.stderr) as screen:
        for note in notes:
            screen.show(Noted(time.time(), note))
        try:
            _find(found, saved, Asked(of_tasks, builtin, conversations), config, screen)
        except KeyboardInterrupt:
            screen.show(Noted(time.time(), CUT_SHORT))
    if json:
        say(json_format.dumps(facts(name, saved, found)))
    else:
        _tell(saved, found)
    if not found.complete:
        raise typer.Exit(INTERRUPTED)


def selected(config: ChatEvalConfig, task_data: Path) -> tuple[list[TaskName], list[str]]:
    """The tasks to run, and what there is to say of those that are not.

    Raises:
        MlxchatError: one that was named runs code, which was not allowed; or the folder was named,
            and no task is there.
    """
    if config.named is not None:
        if RUNS_CODE in config.named and not config.allow_code_execution:
            raise ConfigError(
                f"The task {RUNS_CODE} runs the programs that the model writes, on this machine.",
                "Allow it with --allow-code-execution, or name other tasks with --tasks.",
            )
        return list(config.named), []
    if config.data and config.task_data is None:
        return [], []
    there = [task for task in TASK_NAMES if is_there(task, task_data)]
    if not FILES.keys() & there:
        if config.task_data is not None:
            raise NotFound(
                f"There are no files of tasks in {task_data}.",
                f"It holds folders such as {FILES['mmlu'][0]} with parquet files in them; "
                "--tasks spelling needs none.",
            )
        return there, [NO_DATA.format(task_data)]
    if RUNS_CODE in there and not config.allow_code_execution:
        return [task for task in there if task != RUNS_CODE], [LEFT_OUT]
    return there, []


def validation_share(
    config: ChatEvalConfig, model: Path, conversational: bool
) -> tuple[float, list[str]]:
    """Of --data, the share that counts as held out, and what there is to say of it.

    Args:
        model: its directory.
        conversational: whether it was trained on conversations.
    """
    own, given = _fine_tuned_with(model), config.validation_share
    if given and own and given > own:
        return given, [PARTLY_TRAINED.format(own, given)]
    if not (given or own) and conversational:
        return VALIDATION_SHARE, [SHARE_UNKNOWN.format(VALIDATION_SHARE)]
    return given or own or VALIDATION_SHARE, []


def _fine_tuned_with(model: Path) -> float | None:
    """The share that was held out of a model's fine-tuning; None where that is not known."""
    if not (model / layout.TRAINER).exists():
        return None
    try:
        state = read_trainer(model)
    except MlxchatError:  # of another version: nothing of it is needed to evaluate
        return None
    return stage_of(state, Home.from_environment()).held_out_share


def _held_out(sources: Sequence[Source], share: float) -> list[Conversation]:
    """The conversations that fine-tuning on the same data does not see."""
    return ChatDocuments(sources, seed=SEED, validation_share=share).held_out


def _find(
    found: Found, saved: SavedModel, asked: Asked, config: ChatEvalConfig, screen: Screen
) -> None:
    """Ask everything; what is complete is in ``found`` if it is interrupted."""
    for task, of_task in asked.tasks.items():
        found.tasks.append(_score(saved, task, of_task, config, config.max_new_tokens, screen))
    if asked.builtin:
        task, most = "builtin questions", LONGEST_REPLY + 1
        found.builtin = _score(saved, task, asked.builtin, config, most, screen)
    if asked.conversations:
        context = saved.model.config.sequence_len
        found.laid_out = held_out(asked.conversations, saved.tokenizer, context)
        found.loss = _foresee(saved, found.laid_out, screen)
        if exercises := replies(asked.conversations, saved.tokenizer):
            task, most = "last replies", LONGEST_REPLY + 1
            found.replies = _score(saved, task, exercises, config, most, screen)
    found.complete = True


def _score(
    saved: SavedModel,
    task: str,
    asked: Sequence[Problem],
    config: ChatEvalConfig,
    max_tokens: int,
    screen: Screen,
) -> Score:
    """Have a task's problems answered, showing how far it is."""
    outcomes: list[Outcome] = []

    def show() -> None:
        screen.show(Progressed(time.time(), task, len(outcomes), len(asked), "questions"))

    show()
    for outcome in answer(saved, asked, config.batch_size, max_tokens):
        outcomes.append(outcome)
        show()
    return Score.of(task, outcomes)


def _foresee(saved: SavedModel, laid_out: HeldOut, screen: Screen) -> Evaluated:
    """The loss on held-out conversations."""
    task, batches = "held-out conversations", len(laid_out.batches)
    for event in bits_per_byte(saved.model.losses, laid_out.batches, batches, saved.tokenizer):
        done = event.batch if isinstance(event, Evaluating) else batches
        screen.show(Progressed(event.time, task, done, batches, "batches"))
    assert isinstance(event, Evaluated)
    return event


def facts(model: str, saved: SavedModel, found: Found) -> dict[str, Any]:
    """All that was found, for programs."""
    return {
        "model": model,
        "conversational": saved.conversational,
        "complete": found.complete,
        "tasks": [_of_score(score) for score in found.tasks],
        "centered": mean_centered(found.tasks) if found.tasks else None,
        "builtin_questions": found.builtin and _of_score(found.builtin),
        "held_out": found.laid_out
        and found.loss
        and {
            "conversations": found.laid_out.conversations,
            "cut": found.laid_out.cut,
            "tokens": found.loss.tokens,
            "loss": found.loss.loss,
            "bits_per_byte": found.loss.bits_per_byte,
            "replies": found.replies and _of_score(found.replies),
        },
    }


def _of_score(score: Score) -> dict[str, Any]:
    derived = {"score": score.share, "error": score.error, "centered": score.centered}
    return {**asdict(score), **derived}


def _tell(saved: SavedModel, found: Found) -> None:
    context = saved.model.config.sequence_len
    if found.tasks:
        _tell_tasks(found.tasks, context)
    if found.builtin:
        say(f"Built-in questions that no conversation asks: {_word_for_word(found.builtin)}")
    if found.laid_out and found.loss:
        loss, laid_out = found.loss, found.laid_out
        say(
            f"{amount(laid_out.conversations, 'held-out conversations')}: loss {loss.loss:.4f}, "
            f"{loss.bits_per_byte:.4f} bits per byte, on {loss.tokens:,} tokens of answers"
        )
        if laid_out.cut:
            say(f"{laid_out.cut:,} of them did not fit {context:,} tokens: cut at the end.")
    if found.replies:
        say(f"Last replies of {LONGEST_REPLY} tokens at most: {_word_for_word(found.replies)}")


def _tell_tasks(scores: Sequence[Score], context: int) -> None:
    table(
        ["task", "problems", "right", "score ± error", "random", "centered"],
        [
            (
                score.task,
                score.problems,
                score.right,
                _percent(score),
                f"{score.random:.1%}",
                f"{score.centered:.4f}",
            )
            for score in scores
        ],
    )
    if len(scores) > 1:
        say(f"Centered, mean over {len(scores)} tasks: {mean_centered(scores):.4f}")
    if cut := sum(score.cut for score in scores):
        say(f"{amount(cut, 'prompts')} did not fit {context:,} tokens: cut at the beginning.")


def _word_for_word(score: Score) -> str:
    return f"{score.right:,} of {score.problems:,} answered word for word ({_percent(score)})"


def _percent(score: Score) -> str:
    return f"{score.share:.1%} ± {score.error:.1%}"
