"""The best of a run's checkpoints, by the bits per byte of its validation text.

A model learns text that it reads many times by heart in the end, and predicts other text worse
again. Therefore the best checkpoint is kept beside the newest ones (`mlxchat.checkpoint.store`),
and a run that ends worse says so.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from mlxchat.checkpoint.files import TRAINER, read_json
from mlxchat.errors import MlxchatError
from mlxchat.json_text import as_type
from mlxchat.telemetry.events import Count


class EvaluatedStep(NamedTuple):
    """A checkpoint and its bits per byte on validation text."""

    step: int
    bits_per_byte: float


class ScoredStep(NamedTuple):
    """A checkpoint and the share of held-out questions that it answers right."""

    step: int
    pass_1: float


class _Meter(BaseModel):
    evaluations: tuple[tuple[Count, FiniteFloat], ...]
    scores: tuple[tuple[Count, FiniteFloat], ...] = ()


class _Trainer(BaseModel):
    """The part of the trainer's state that is read here (`mlxchat.checkpoint.trainer`)."""

    meter: _Meter


def evaluated_steps(newest: Path, steps: Sequence[int]) -> list[EvaluatedStep]:
    """Return those of some checkpoints that were evaluated, as the newest one records.

    Nothing is known if its trainer's state cannot be read, or is of another version.
    """
    bits = dict(_meter(newest).evaluations)
    return [EvaluatedStep(step, bits[step]) for step in steps if step in bits]


def scored_steps(newest: Path, steps: Sequence[int]) -> list[ScoredStep]:
    """Return those of some checkpoints that answered held-out questions, as `evaluated_steps`."""
    scores = dict(_meter(newest).scores)
    return [ScoredStep(step, scores[step]) for step in steps if step in scores]


def _meter(newest: Path) -> _Meter:
    with suppress(MlxchatError, ValidationError):
        return as_type(read_json(newest / TRAINER), TypeAdapter(_Trainer)).meter
    return _Meter(evaluations=())


def best_step(newest: Path, steps: Sequence[int]) -> EvaluatedStep | None:
    """Return the step with the lowest bits per byte, the newest of equal ones.

    Args:
        newest: the directory of the newest step, which records all evaluations.
        steps: the checkpoints.

    Returns:
        The step; None if nothing is known of any (`evaluated_steps`).
    """
    evaluated = evaluated_steps(newest, steps)
    return min(evaluated, key=lambda one: (one.bits_per_byte, -one.step), default=None)


def step_to_keep(newest: Path, steps: Sequence[int]) -> int | None:
    """Return the best of some checkpoints, the newest of equal ones; None if none is known.

    Reinforcement learning is scored by the questions answered right, other stages by bits per byte.
    """
    scored = scored_steps(newest, steps)
    if scored:
        return max(scored, key=lambda one: (one.pass_1, one.step)).step
    best = best_step(newest, steps)
    return best.step if best else None
