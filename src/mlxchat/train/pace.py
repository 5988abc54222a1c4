"""Holding a time budget: how many steps fit into what is left, asked again as a run goes on. Pure.

The number of steps is planned from a measured speed, and speed changes: a laptop gets warm, another
program starts. So at some marks the rest is planned anew from what steps, evaluations, samples and
checkpoints were seen to take. The learning rate does not jump by that: before it cools down it
is the same for any number of steps, and from then on only its slope changes.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.telemetry.events import Evaluated, Evaluating, Event, Sampled, Saved, Stepped
from mlxchat.train.run_plan import Costs, Plan

AIM = 0.995  # of the budget; the rest is for what nobody has seen yet, such as the first samples
MARKS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)  # of the steps or of the budget
TOLERANCE = 0.005  # of the steps: a plan that is off by less stays
LEAST_STEPS_SEEN = 3  # or a hundredth of all, for their mean to count
RECENT_STEPS = 10  # or a tenth of all: those whose mean it is
KINDS: dict[type, str] = {
    Evaluating: "evaluation",
    Evaluated: "evaluation",
    Sampled: "sample",
    Saved: "save",
}


class Pause(NamedTuple):
    """What is done every so many steps (0: never) and after the last one, and what it takes."""

    every: int
    seconds: float


def pauses(config: PretrainConfig, costs: Costs) -> list[Pause]:
    """Those of a run; what has no cadence isn't done, but for the last checkpoint."""
    optional = (
        Pause(config.eval_every, costs.evaluation),
        Pause(config.sample_every, costs.sample),
    )
    return [
        Pause(config.save_every, costs.save),
        *(pause for pause in optional if pause.every),
    ]


def seconds_needed(step: int, total: int, step_seconds: float, pauses: Sequence[Pause]) -> float:
    """From the end of ``step`` to the end of a run of ``total`` steps."""
    needed = (total - step) * step_seconds
    for every, seconds in pauses:
        times = total // every - step // every + (total % every > 0) if every else 1
        needed += times * seconds
    return needed


def last_step(step: int, left: float, step_seconds: float, pauses: Sequence[Pause]) -> int:
    """The most steps in all that ``left`` seconds allow after ``step``; ``step`` if not even one is
    possible.
    """
    following = range(step + 1, step + 1 + math.ceil(max(0.0, left) / step_seconds))
    fitting = bisect_right(
        following, left, key=lambda total: seconds_needed(step, total, step_seconds, pauses)
    )
    return step + fitting


def with_steps(plan: Plan, step: int, total: int) -> Plan:
    """The plan with another number of steps, ``step`` of them done.

    The learning rate after ``step`` is what it was: a warm-down that has begun goes on from there
    to the new end, and one that should have begun begins now.
    """
    warmdown = round(plan.warmdown_ratio * plan.num_iterations)
    before, left = plan.num_iterations - step, total - step
    if before < warmdown:
        rescaled = math.ceil(warmdown * left / before)
    else:
        rescaled = min(round(plan.warmdown_ratio * total), left)
    return plan.model_copy(update={"num_iterations": total, "warmdown_ratio": rescaled / total})


class Pace:
    """Follows a budgeted run by its events; plans the rest anew at `MARKS`, and near the end.

    Args:
        config: the settings.
        budget: seconds.
        costs: what things are thought to take, until they are seen.
        origin: when nothing of the budget was used, by the events' clock.
        now: time.
    """

    def __init__(
        self, config: PretrainConfig, budget: float, costs: Costs, origin: float, now: float
    ) -> None:
        self._config, self._budget, self._costs, self._origin = config, budget, costs, origin
        self._latest = now
        self._occasion: tuple[str, int] | None = None  # of the last pause: its kind and step
        self._mark = 0.0  # the last one passed
        self._steps: list[float] | None = None  # seconds of each; None until one has compiled

    @property
    def budget(self) -> str:
        """The time budget, as it was said."""
        return self._config.budget or ""

    def costs(self, now: float) -> Costs:
        """What is used of the budget, and what things take."""
        return self._costs.model_copy(update={"spent": now - self._origin})

    def follow(self, event: Event, plan: Plan) -> Plan:
        """The plan from ``event`` on: mostly the same."""
        took, self._latest = event.time - self._latest, event.time
        match event:
            case Stepped():
                if self._steps is None:
                    self._steps = []
                else:
                    self._steps.append(took)
                return self._replanned(event, plan, self._steps)
            case Evaluating() | Evaluated() | Sampled() | Saved():
                occasion = (KINDS[type(event)], event.step)
                self._count(occasion, took)
        return plan

    def _count(self, occasion: tuple[str, int], seconds: float) -> None:
        """Add to what the last pause of its kind took, or begin with this one."""
        kind, _ = occasion
        before = getattr(self._costs, kind) if occasion == self._occasion else 0.0
        self._occasion = occasion
        self._costs = self._costs.model_copy(update={kind: before + seconds})

    def _replanned(self, event: Stepped, plan: Plan, steps: list[float]) -> Plan:
        planned, spent = plan.num_iterations, event.time - self._origin
        progress = max(spent / self._budget, event.step / planned)
        mark = max((mark for mark in MARKS if mark <= progress), default=0.0)
        due = mark > self._mark or event.step == planned - 1  # is there time for more?
        seen = len(steps) >= max(LEAST_STEPS_SEEN, planned // 100)
        if not (due and seen) or event.step >= planned:
            return plan
        self._mark = max(self._mark, mark)
        step_seconds = mean(steps[-max(RECENT_STEPS, planned // 10) :])
        self._costs = self._costs.model_copy(update={"step": step_seconds})
        left = AIM * self._budget - spent
        allowed = last_step(event.step, left, step_seconds, pauses(self._config, self._costs))
        total = max(event.step + 1, allowed)  # the next step may be under way
        if abs(total - planned) <= TOLERANCE * planned:
            return plan
        return with_steps(plan, event.step, total)
