"""What `mlxchat eval chat` does."""

import json as json_format
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlxchat.ckpt.layout import SavedModel
from mlxchat.cli import chatting
from mlxchat.cli.interrupts import ending_soon
from mlxchat.data.chats.documents import ChatDocuments
from mlxchat.data.chats.sources import parse
from mlxchat.data.conversations import Conversation
from mlxchat.errors import MlxchatError
from mlxchat.evaluate.bits import bits_per_byte
from mlxchat.evaluate.conversations import LONGEST_REPLY, HeldOut, held_out, replies
from mlxchat.evaluate.settings import TASK_NAMES, ChatEvalConfig, TaskName
from mlxchat.evaluate.tasks.answers import Outcome, answer
from mlxchat.evaluate.tasks.catalog import RUNS_CODE, is_there, problems
from mlxchat.evaluate.tasks.problems import Problem
from mlxchat.evaluate.tasks.score import Score, mean_centered
from mlxchat.home import Home
from mlxchat.telemetry import Evaluated, Evaluating, Noted, Progressed
from mlxchat.ui.bars import amount
from mlxchat.ui.console import Screen, say, table

SEED = 42  # of the built-in corpus's conversations; what is held out does not depend on it
UNTRAINED = "{} was never trained on conversations: it does not know how they go."
LEFT_OUT = f"{RUNS_CODE} is left out: it runs the model's programs. --allow-code-execution does it."
NO_DATA = "Only spelling: there are no files of tasks in {}. --task-data names their folder."


@dataclass(frozen=True)
class Foreseen:
    """How well held-out conversations are foreseen, and the last replies of them given."""

    laid_out: HeldOut
    loss: Evaluated
    replies: Score | None


def evaluate_chat(
    config: ChatEvalConfig, tag: str | None, step: int | None, checkpoint: Path | None, json: bool
) -> None:
    """Evaluate a model on tasks and on held-out conversations, and tell how it did.

    How far it is goes to standard error.
    """
    folder = config.task_data or Home.from_environment().root / "task_data"
    tasks, notes = selected(config, folder)
    asked = {task: problems(task, folder, config.max_problems) for task in tasks}
    conversations = _held_out(config) if config.data else []
    saved, name = chatting.load(tag, step, checkpoint)
    if not saved.conversational:
        notes.append(UNTRAINED.format(name))
    with ending_soon(), Screen(stream=sys.stderr) as screen:
        for note in notes:
            screen.show(Noted(time.time(), note))
        scores = [
            _score(saved, task, asked[task], config.batch_size, config.max_new_tokens, screen)
            for task in tasks
        ]
        foreseen = (
            _foresee(saved, conversations, config.batch_size, screen) if conversations else None
        )
    if json:
        say(json_format.dumps(facts(name, saved, scores, foreseen)))
    else:
        _tell(saved, scores, foreseen)


def selected(config: ChatEvalConfig, task_data: Path) -> tuple[list[TaskName], list[str]]:
    """The tasks to run, and what there is to say of those that are not.

    Raises:
        MlxchatError: one that was named runs code, which was not allowed.
    """
    if config.named is not None:
        if RUNS_CODE in config.named and not config.allow_code_execution:
            raise MlxchatError(
                f"The task {RUNS_CODE} runs the programs that the model writes, on this machine.",
                "Allow it with --allow-code-execution, or name other tasks with --tasks.",
            )
        return list(config.named), []
    if config.data:
        return [], []
    there = [task for task in TASK_NAMES if is_there(task, task_data)]
    if len(there) == 1:
        return there, [NO_DATA.format(task_data)]
    if RUNS_CODE in there and not config.allow_code_execution:
        return [task for task in there if task != RUNS_CODE], [LEFT_OUT]
    return there, []


def _held_out(config: ChatEvalConfig) -> list[Conversation]:
    """The conversations that fine-tuning on the same data does not see."""
    sources = [parse(text) for text in config.data or ()]
    share = config.validation_share
    return ChatDocuments(sources, seed=SEED, validation_share=share).held_out


def _score(
    saved: SavedModel,
    task: str,
    asked: Sequence[Problem],
    batch_size: int,
    max_tokens: int,
    screen: Screen,
) -> Score:
    """Have a task's problems answered, showing how far it is."""
    outcomes: list[Outcome] = []

    def show() -> None:
        screen.show(Progressed(time.time(), task, len(outcomes), len(asked), "questions"))

    show()
    for outcome in answer(saved, asked, batch_size, max_tokens):
        outcomes.append(outcome)
        show()
    return Score.of(task, outcomes)


def _foresee(
    saved: SavedModel, conversations: Sequence[Conversation], batch_size: int, screen: Screen
) -> Foreseen:
    """The loss on held-out conversations, then their last replies."""
    tokenizer, task = saved.tokenizer, "held-out conversations"
    laid_out = held_out(conversations, tokenizer, saved.model.config.sequence_len)
    batches = len(laid_out.batches)
    for event in bits_per_byte(saved.model.losses, laid_out.batches, batches, tokenizer):
        done = event.batch if isinstance(event, Evaluating) else batches
        screen.show(Progressed(event.time, task, done, batches, "batches"))
    assert isinstance(event, Evaluated)
    exercises = replies(conversations, tokenizer)
    if not exercises:
        return Foreseen(laid_out, event, None)
    given = _score(saved, "last replies", exercises, batch_size, LONGEST_REPLY + 1, screen)
    return Foreseen(laid_out, event, given)


def facts(
    model: str, saved: SavedModel, scores: Sequence[Score], foreseen: Foreseen | None
) -> dict[str, Any]:
    """All that was found, for programs."""
    return {
        "model": model,
        "conversational": saved.conversational,
        "tasks": [_of_score(score) for score in scores],
        "centered": mean_centered(scores) if scores else None,
        "held_out": foreseen
        and {
            "conversations": foreseen.laid_out.conversations,
            "cut": foreseen.laid_out.cut,
            "tokens": foreseen.loss.tokens,
            "loss": foreseen.loss.loss,
            "bits_per_byte": foreseen.loss.bits_per_byte,
            "replies": foreseen.replies and _of_score(foreseen.replies),
        },
    }


def _of_score(score: Score) -> dict[str, Any]:
    derived = {"score": score.share, "error": score.error, "centered": score.centered}
    return {**asdict(score), **derived}


def _tell(saved: SavedModel, scores: Sequence[Score], foreseen: Foreseen | None) -> None:
    context = saved.model.config.sequence_len
    if scores:
        table(
            ["task", "problems", "right", "score", "random", "centered"],
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
            say(
                f"{amount(cut, 'prompts')} did not fit {context:,} tokens: their beginning was cut."
            )
    if foreseen:
        loss, laid_out = foreseen.loss, foreseen.laid_out
        say(
            f"{amount(laid_out.conversations, 'held-out conversations')}: loss {loss.loss:.4f}, "
            f"{loss.bits_per_byte:.4f} bits per byte, on {loss.tokens:,} tokens of answers"
        )
        if laid_out.cut:
            say(f"{laid_out.cut:,} of them did not fit {context:,} tokens: their end was cut.")
        if given := foreseen.replies:
            say(
                f"Last replies of {LONGEST_REPLY} tokens at most, given word for word: "
                f"{given.right:,} of {given.problems:,} ({_percent(given)})"
            )


def _percent(score: Score) -> str:
    return f"{score.share:.1%} ± {score.error:.1%}"
