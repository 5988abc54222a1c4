"""The level of a generated task for reinforcement learning, chosen by what the model gets right."""

from collections.abc import Sequence

import numpy as np

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.rl import RlConfig
from mlxchat.data.questions.choice import TaskChoice
from mlxchat.data.questions.levels import FoundLevel, find_level
from mlxchat.data.questions.question import QuestionSource, TaskQuestion
from mlxchat.engine.rollout import answer_keys
from mlxchat.errors import ConfigError, command
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Noted, Progressed, Report
from mlxchat.train.answer_sampler import AnswerSampler
from mlxchat.train.rewards import rewards_of
from mlxchat.train.rollouts import EVALUATION_SEED

LEVEL_SAMPLES = 4  # answers to each question by which a level is chosen
LEVEL_BATCH_SIZE = 256
MIN_RIGHT = 0.1  # share of right answers below which published runs gained nothing


def suitable_level(
    config: RlConfig, saved: SavedModel, source: QuestionSource, report: Report, clock: Clock
) -> FoundLevel:
    """Return the level of the task that suits a model, which answers questions of each.

    Args:
        config: the settings, which name the task.
        saved: the model.
        source: the task's questions of any level, by which answers are judged.
        report: receives the progress.
        clock: stamps the events.
    """
    sampler = AnswerSampler(
        saved.model,
        saved.tokenizer,
        source,
        rewards_of(None, source.check),
        config.sampling,
        min(config.max_tokens, saved.model.config.sequence_len // 2),
        LEVEL_BATCH_SIZE,
    )
    tried, task = 0, "finding a level"
    report(Noted(clock(), f"Looking for a level of {config.task} that suits the model."))

    def answer(questions: Sequence[TaskQuestion]) -> list[list[str]]:
        nonlocal tried
        tried += 1
        keys = [
            answer_keys(config.seed, EVALUATION_SEED, tried, index, answers=LEVEL_SAMPLES)
            for index in range(len(questions))
        ]
        texts = sampler.sample(questions, np.stack(keys)).texts
        report(Progressed(clock(), task, tried, None, "levels"))
        return [texts[i : i + LEVEL_SAMPLES] for i in range(0, len(texts), LEVEL_SAMPLES)]

    found = find_level(config.task, answer, seed=config.seed, calculator=config.calculator)
    report(Progressed(clock(), task, tried, tried, "levels"))  # ends its bar
    return found


def level_notes(config: RlConfig, found: FoundLevel) -> list[str]:
    """Return what to tell the user of a level that was chosen.

    Raises:
        ConfigError: the model answers nothing right at any level.
    """
    if not found.share:
        raise ConfigError(
            f"The model answers none of the {config.task} questions correctly, at any level, so "
            "there is nothing to reward.",
            "Choose another `task`, or fine-tune the model on this one first: "
            f"{_fine_tuning_command(config)}",
        )
    tried = ", ".join(f"{share:.1%} at level {level}" for level, share in found.shares.items())
    note = f"Level {found.level} of {config.task}, of which the model gets {found.share:.1%} right"
    note += "." if found.suits else f", though 20 to 60% would suit it better ({tried})."
    notes = [note]
    if found.share < MIN_RIGHT:
        notes.append(
            f"With less than {MIN_RIGHT:.0%} right, little is learned. Fine-tune the model on the "
            f"task first: {_fine_tuning_command(config)}"
        )
    return notes


def _fine_tuning_command(config: RlConfig) -> str:
    """Return the command that fine-tunes the model on the easiest questions of its task."""
    easiest = str(TaskChoice(config.task, 1, config.calculator))
    return command("sft", source=config.source, data=easiest, model_tag=config.task)
