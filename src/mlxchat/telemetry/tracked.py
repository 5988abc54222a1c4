"""The settings and numbers of a run that trackers get."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlxchat.telemetry.events import (
    CoreMeasured,
    Evaluated,
    Event,
    Judged,
    Rewarded,
    Sampled,
    Stepped,
)
from mlxchat.telemetry.meter import Meter

TrackerName = Literal["wandb", "trackio", "tensorboard"]

_GIGABYTE = 1e9


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker knows it.

    Attributes:
        tracker: which one.
        name: the run's name.
        folder: of the run's log, where the tracker may leave files.
        step: the number of steps done when the run started or was resumed.
        settings: the settings and the plan, by name.
    """

    tracker: TrackerName
    name: str
    folder: str
    step: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class TrackedSample:
    """A prompt and the text that the model wrote after it."""

    prompt: str
    text: str
    reward: float | None = None


@dataclass(frozen=True)
class TrackedStep:
    """All that a tracker gets about a step, or about the model after it.

    Attributes:
        step: its number.
        values: what was measured, by name.
        samples: what the model wrote.
        time: when the first of it happened, seconds since the epoch; None for the present.
    """

    step: int
    values: dict[str, float]
    samples: list[TrackedSample]
    time: float | None = None


class StepCollector:
    """Collects what a tracker gets of events, step by step.

    Args:
        step: the number of steps done before.
        meter: folds in each event before `add` gets it.
    """

    def __init__(self, step: int, meter: Meter) -> None:
        self._meter = meter
        self._step = TrackedStep(step, {}, [])

    def add(self, event: Event) -> TrackedStep | None:
        """Take an event; returns the step before, if this is the first event of a later one."""
        number = getattr(event, "step", None)
        values = tracked_values(event, self._meter)
        if number is None or not (values or isinstance(event, Sampled)):
            return None
        before = self.rest() if number > self._step.step else None
        if not (self._step.values or self._step.samples):
            self._step = TrackedStep(max(number, self._step.step), {}, [], event.time)
        self._step.values.update(values)
        if isinstance(event, Sampled):
            self._step.samples.append(TrackedSample(event.prompt, event.text, event.reward))
        return before

    def rest(self) -> TrackedStep | None:
        """Return the step that is being collected, which is complete now; None if it is empty."""
        step = self._step
        self._step = TrackedStep(step.step, {}, [])
        return step if step.values or step.samples else None


def tracked_values(event: Event, meter: Meter) -> dict[str, float]:
    """Return the numbers that a tracker gets of an event, by name, those that are finite.

    Args:
        event: the event.
        meter: has folded it in.
    """
    values: dict[str, float | None] = {}
    match event:
        case Stepped():
            values = {
                "train/loss": event.loss,
                "train/learning_rate": event.learning_rate,
                "train/gradient_norm": event.gradient_norm,
                "train/tokens_per_second": meter.tokens_per_second,
                "train/mfu": meter.mfu,
                "train/peak_memory_gb": event.memory.peak / _GIGABYTE,
            }
        case Rewarded():
            values = {
                "reward/mean": event.reward,
                "reward/right": event.right,
                "reward/all_right": event.all_right,
                "reward/all_wrong": event.all_wrong,
            }
        case Evaluated():
            values = {
                "validation/bits_per_byte": event.bits_per_byte,
                "validation/loss": event.loss,
            }
        case Judged():
            values = {
                "validation/reward": event.reward,
                "validation/pass_1": event.pass_1,
                f"validation/pass_{event.samples}": event.pass_k,
            }
        case CoreMeasured():
            values = {"core/core": event.core, "core/standard_error": event.error}
    return {name: v for name, v in values.items() if v is not None and math.isfinite(v)}


def tracked_settings(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as trackers show them, one level deep and without what is not given."""
    flat: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping):
                inner = tracked_settings(value)
                flat |= {f"{name}.{within}": each for within, each in inner.items()}
            elif value is not None:
                flat[name] = value
    return flat
