"""The command `eval chat`."""

import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from mlxchat.checkpoint import catalog
from mlxchat.cli.chat import load_chosen
from mlxchat.cli.options import (
    Checkpoint,
    DtypeOption,
    Json,
    ModelTag,
    StepNumber,
    require_one_place,
)
from mlxchat.cli.session import checksum_progress, exit_promptly
from mlxchat.config.inference import ChatEvalConfig
from mlxchat.data.chats.sources import parse
from mlxchat.home import Home
from mlxchat.telemetry.events import Noted
from mlxchat.ui.console import Screen, say, say_json, table, warning
from mlxchat.ui.text import amount

if TYPE_CHECKING:
    from mlxchat.evaluate.answers import Score
    from mlxchat.evaluate.suite import Results

UNTRAINED = "{} was never trained on conversations, so it does not know how to answer."
NOT_KEPT = "The results were not kept."
PARTLY_KEPT = "The last results were not kept."
CUT_SHORT = "Interrupted: only complete results are shown."


def eval_chat_command(
    model_tag: ModelTag = None,
    step: StepNumber = None,
    checkpoint: Checkpoint = None,
    dtype: DtypeOption = "auto",
    json: Json = False,
    *,
    config: ChatEvalConfig,
) -> None:
    """Evaluate a chat model on tasks and on held-out conversations.

    In multiple choice, the model's answer is the letter it finds most likely; other answers are
    generated at temperature 0, with the calculator. Each score is shown next to the score of
    guessing. A centered score is 0 for guessing and 1 if every answer is right.

    Tasks are read from local files; spelling and generated questions need none. Their results are
    kept in $MLXCHAT_HOME/chat_eval, where reports and model cards find them. Progress goes to
    standard error. Ctrl-C shows the results that are complete and exits with code 130.
    """
    from mlxchat.checkpoint.history import tag_and_step
    from mlxchat.checkpoint.task_results import KeptResults, results_file
    from mlxchat.evaluate.suite import (
        Results,
        held_out_share,
        read_problems,
        run_suite,
        select_suite,
        select_tasks,
    )

    require_one_place(model_tag, step, checkpoint)
    from mlxchat.train.stage import share_held_out

    home = Home.from_environment()
    task_data = config.task_data or home.task_data
    tasks, notes = select_tasks(config, task_data)
    problems = read_problems(config, tasks, task_data)
    sources = [parse(text, config.encoding, config.skip_bad) for text in config.data or ()]
    model = catalog.locate(home.stages, model_tag, step, checkpoint)
    saved, name = load_chosen(model_tag, step, checkpoint, dtype)
    if not saved.conversational:
        notes.append(UNTRAINED.format(name))
    share = 0.0
    if sources:
        share, more = held_out_share(config, share_held_out(model, home), saved.conversational)
        notes += more
    suite = select_suite(config, problems, sources, share)
    results = Results()
    with exit_promptly(), Screen(stream=sys.stderr) as screen:
        for note in (f"The model: {name}.", *notes):
            screen.show(Noted(time.time(), note))
        progress = checksum_progress(screen.show)
        kept = KeptResults(results_file(home, *tag_and_step(model), model, progress))
        try:
            run_suite(suite, saved, config, screen.show, results, kept.add)
        except KeyboardInterrupt:
            screen.show(Noted(time.time(), CUT_SHORT))
    if json:
        say_json({**_facts(name, saved.conversational, results), "kept": kept.where})
    else:
        _show(results, saved.model.config.sequence_len)
        if kept.where:
            say(f"Results: {kept.where}")
    if kept.fault:
        warning(f"{PARTLY_KEPT if kept.where else NOT_KEPT} {kept.fault.problem}")
    if not results.complete:
        raise typer.Exit(128 + signal.SIGINT)


def _facts(model: str, conversational: bool, results: "Results") -> dict[str, Any]:
    """Return all results, as plain values for JSON."""
    from mlxchat.evaluate.answers import mean_centered

    laid_out, loss = results.laid_out, results.loss
    return {
        "model": model,
        "conversational": conversational,
        "complete": results.complete,
        "tasks": [score.facts() for score in results.tasks],
        "centered": mean_centered(results.tasks) if results.tasks else None,
        "builtin_questions": results.builtin and results.builtin.facts(),
        "held_out": laid_out
        and loss
        and {
            "conversations": laid_out.conversations,
            "cut": laid_out.cut,
            "tokens": loss.tokens,
            "loss": loss.loss,
            "bits_per_byte": loss.bits_per_byte,
            "replies": results.replies and results.replies.facts(),
        },
    }


def _show(results: "Results", context: int) -> None:
    from mlxchat.evaluate.loss import LONGEST_REPLY

    if results.tasks:
        _show_tasks(results.tasks)
    if results.builtin:
        say(f"Built-in questions that appear in no conversation: {_word_for_word(results.builtin)}")
    if results.laid_out and results.loss:
        loss, laid_out = results.loss, results.laid_out
        say(
            f"{amount(laid_out.conversations, 'held-out conversations')}: loss {loss.loss:.4f}, "
            f"{loss.bits_per_byte:.4f} bits per byte, on {amount(loss.tokens, 'tokens')} of answers"
        )
        if laid_out.cut:
            say(f"{laid_out.cut:,} of them did not fit into {context:,} tokens and were truncated.")
    if results.replies:
        shown = _word_for_word(results.replies)
        say(f"Last replies of at most {LONGEST_REPLY} tokens: {shown}")


def _show_tasks(scores: "Sequence[Score]") -> None:
    from mlxchat.evaluate.answers import mean_centered

    table(
        ["task", "problems", "right", "score (95% interval)", "random", "centered"],
        [
            (
                score.task,
                score.problems,
                score.right,
                str(score.interval),
                f"{score.random:.1%}",
                f"{score.centered:.4f}",
            )
            for score in scores
        ],
    )
    if len(scores) > 1:
        say(f"Mean centered score of {len(scores)} tasks: {mean_centered(scores):.4f}")


def _word_for_word(score: "Score") -> str:
    return f"{score.right:,} of {score.problems:,} answered word for word, {score.interval}"
