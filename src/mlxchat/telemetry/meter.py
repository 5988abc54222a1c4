"""Rates, averages and time left, computed from the events of a run."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from mlxchat.telemetry.events import (
    CoreMeasured,
    Count,
    Evaluated,
    Event,
    Judged,
    Measured,
    Replanned,
    Rewarded,
    Seconds,
    Started,
    Stepped,
)

SMOOTHING = 0.9  # of the exponential average of the loss, as in nanochat
RATE_STEPS = 20
LEAST_RECENT_STEPS = 3  # two can land together, and then the second one's seconds are a remainder
MOST_POINTS = 1000


class CorePoint(NamedTuple):
    """CORE after a step, its standard error, and the most examples of a task."""

    step: Count
    core: Measured
    error: Measured
    max_per_task: Count


class MeterState(BaseModel):
    """The fields of a `Meter` that a checkpoint keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Count
    elapsed: Seconds
    peak_memory: Count
    losses: tuple[tuple[Count, Measured], ...]
    evaluations: tuple[tuple[Count, Measured], ...]
    core: tuple[CorePoint, ...] = ()
    loss_sum: Measured
    loss_weight: Measured
    rewards: tuple[tuple[Count, Measured], ...] = ()
    scores: tuple[tuple[Count, Measured], ...] = ()
    reward_sum: Measured = 0.0
    reward_weight: Measured = 0.0
    stride: Annotated[Count, Field(ge=1)]


@dataclass
class Meter:
    """Folds the events of a run into its progress, losses and rates.

    The init fields are saved in checkpoints; the rates start over with each `Started`. One thread
    may read while another calls `update`.
    """

    step: int = 0
    elapsed: float = 0.0  # seconds of training, including those before a resume
    peak_memory: int = 0  # bytes, of MLX
    losses: list[tuple[int, float]] = field(default_factory=list)  # (step, smoothed), thinned
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, bits per byte)
    core: list[CorePoint] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    rewards: list[tuple[int, float]] = field(default_factory=list)  # (step, smoothed), thinned
    scores: list[tuple[int, float]] = field(default_factory=list)  # (step, pass@1)
    reward_sum: float = 0.0
    reward_weight: float = 0.0
    stride: int = 1  # `losses` and `rewards` hold the steps that it divides
    started: Started | None = field(default=None, init=False)
    rewarded: Rewarded | None = field(default=None, init=False)  # the last of this process
    judged: Judged | None = field(default=None, init=False)
    _recent: list[float] | None = field(default=None, init=False)  # None until a step is done
    _waited: list[float] = field(default_factory=list, init=False)  # for ranks, in as many steps

    def update(self, event: Event) -> None:
        """Fold in an event; irrelevant events are ignored."""
        match event:
            case Started():
                self.started = event
                self.step = event.step
                self._recent, self._waited = None, []
            case Stepped():
                self._step(event)
            case Replanned() if self.started:
                self.started = replace(self.started, total_steps=event.total_steps)
            case Evaluated() if math.isfinite(event.bits_per_byte):
                self.evaluations.append((event.step, event.bits_per_byte))
            case Rewarded():
                self._reward(event)
            case Judged():
                self.judged = event
                self.scores.append((event.step, event.pass_1))
            case CoreMeasured() if math.isfinite(event.core) and math.isfinite(event.error):
                point = CorePoint(event.step, event.core, event.error, event.max_per_task)
                self.core.append(point)

    def _reward(self, event: Rewarded) -> None:
        self.rewarded = event
        if math.isfinite(event.reward):
            self.reward_sum = SMOOTHING * self.reward_sum + (1 - SMOOTHING) * event.reward
            self.reward_weight = SMOOTHING * self.reward_weight + (1 - SMOOTHING)
        reward = self.reward
        new = not self.rewards or event.step > self.rewards[-1][0]
        if reward is not None and new and event.step % self.stride == 0:
            self.rewards.append((event.step, reward))

    def _step(self, event: Stepped) -> None:
        self.step = event.step
        self.peak_memory = max(self.peak_memory, event.memory.peak)
        if math.isfinite(event.seconds):
            self.elapsed += event.seconds
            if self._recent is None:
                self._recent = []  # the first step compiles, so its time is not typical
            else:
                self._recent = [*self._recent, event.seconds][-RATE_STEPS:]
                if event.waited is not None:
                    self._waited = [*self._waited, event.waited][-RATE_STEPS:]
        if math.isfinite(event.loss):
            self.loss_sum = SMOOTHING * self.loss_sum + (1 - SMOOTHING) * event.loss
            self.loss_weight = SMOOTHING * self.loss_weight + (1 - SMOOTHING)
            self._remember(event.step, self.loss_sum / self.loss_weight)

    def _remember(self, step: int, loss: float) -> None:
        if self.losses and step <= self.losses[-1][0]:
            return  # a damaged log can repeat a step
        if step % self.stride == 0:
            self.losses.append((step, loss))
        if len(self.losses) >= MOST_POINTS:
            self.stride *= 2
            self.losses = [point for point in self.losses if point[0] % self.stride == 0]
            self.rewards = [point for point in self.rewards if point[0] % self.stride == 0]

    @property
    def total_steps(self) -> int:
        """Steps in the whole run; 0 before it starts."""
        return self.started.total_steps if self.started else 0

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.step * self.started.tokens_per_step if self.started else 0

    @property
    def loss(self) -> float | None:
        """Exponential average of the finite step losses in nats, corrected for its bias to zero."""
        return self.loss_sum / self.loss_weight if self.loss_weight else None

    @property
    def reward(self) -> float | None:
        """Exponential average of the steps' mean rewards, corrected for its bias to zero."""
        return self.reward_sum / self.reward_weight if self.reward_weight else None

    @property
    def best_score(self) -> tuple[int, float] | None:
        """The evaluation with the highest pass@1, the first of equal ones: step and pass@1."""
        return max(self.scores, key=lambda point: point[1], default=None)

    def is_best_score(self, pass_1: float) -> bool:
        """Return whether a new pass@1 is higher than any before."""
        return self.best_score is None or pass_1 > self.best_score[1]

    def evaluated(self, step: int) -> bool:
        """Return whether there was an evaluation after so many steps."""
        return any(done == step for done, _ in (*self.evaluations, *self.scores))

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte in the last evaluation."""
        return self.evaluations[-1][1] if self.evaluations else None

    @property
    def best(self) -> tuple[int, float] | None:
        """The evaluation with the lowest bits per byte, the first of equal ones: step and bits."""
        return min(self.evaluations, key=lambda point: point[1], default=None)

    def is_best(self, bits_per_byte: float) -> bool:
        """Return whether a new evaluation is lower than any before."""
        lowest = self.best[1] if self.best else math.inf
        return bits_per_byte < lowest

    @property
    def seconds_per_step(self) -> float | None:
        """Mean of the recent steps; None with fewer than `LEAST_RECENT_STEPS` of them."""
        recent = self._recent or ()
        return sum(recent) / len(recent) if len(recent) >= LEAST_RECENT_STEPS else None

    @property
    def waiting_share(self) -> float | None:
        """The share of the recent steps in which ranks waited for sums; None of one process.

        A step is launched while the one before is still counted, so single steps say little.
        """
        seconds = self.seconds_per_step
        if not seconds or not self._waited:
            return None
        return min(1.0, sum(self._waited) / len(self._waited) / seconds)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second in the recent steps; None if a step has as many as the model draws."""
        seconds = self.seconds_per_step
        if not self.started or not seconds or self.rewarded is not None:
            return None
        return self.started.tokens_per_step / seconds

    @property
    def flops_per_second(self) -> float | None:
        """FLOP/s in the recent steps, counted by the model's formula."""
        rate = self.tokens_per_second
        return self.started.flops_per_token * rate if self.started and rate else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation by the chip's data sheet; None if it is unknown.

        It can exceed 1 if not all units that compute are in the data sheet, as on Apple's M5.
        """
        rate, peak = self.flops_per_second, self.started.peak_flops if self.started else None
        return rate / peak if rate and peak else None

    @property
    def matmul_share(self) -> float | None:
        """The recent FLOP/s as a share of a matrix product's here; None if that is unknown."""
        rate, product = self.flops_per_second, self.started.matmul_flops if self.started else None
        return rate / product if rate and product else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step at the recent rate."""
        seconds = self.seconds_per_step
        return (self.total_steps - self.step) * seconds if seconds is not None else None

    def state(self) -> MeterState:
        """Return the fields that a checkpoint keeps."""
        kept = {name: getattr(self, name) for name in MeterState.model_fields}
        return MeterState.model_validate(kept)

    def restore(self, state: MeterState) -> None:
        """Continue from the state of an earlier meter; the run's `Started` must follow."""
        for name, value in state:
            setattr(self, name, list(value) if isinstance(value, tuple) else value)
