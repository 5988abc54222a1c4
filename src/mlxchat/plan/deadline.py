"""Keeps a run within its time budget while it trains. Pure."""

from statistics import mean

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.plan.budget import TARGET_SHARE, last_step, pauses, with_steps
from mlxchat.plan.plan import Costs, Plan
from mlxchat.telemetry.events import (
    CoreMeasured,
    Evaluated,
    Evaluating,
    Event,
    Sampled,
    Saved,
    Stepped,
)

REPLAN_POINTS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)  # of the steps or of the budget
TOLERANCE = 0.005  # of the steps: a plan that is off by less is left alone
LEAST_STEPS_SEEN = 3  # before their mean counts; or a hundredth of all steps
AVERAGED_STEPS = 10  # the most recent ones; or a tenth of all steps
COST_OF: dict[type, str] = {  # the field of `Costs` that an event contributes to
    Evaluating: "evaluation",
    Evaluated: "evaluation",
    Sampled: "sample",
    Saved: "save",
}


class Deadline:
    """Follows the events of a run with a time budget, and corrects its number of steps.

    It does so at `REPLAN_POINTS` and near the end.

    Args:
        config: the settings.
        budget: seconds.
        costs: estimated costs, used until real ones have been measured.
        origin: the moment at which the budget started, in seconds by some timer.
        now: the current time by the same timer, as in the methods.
    """

    def __init__(
        self, config: PretrainConfig, budget: float, costs: Costs, origin: float, now: float
    ) -> None:
        self._config, self._budget, self._costs, self._origin = config, budget, costs, origin
        self._latest = now
        self._occasion: tuple[str, int] | None = None  # the last pause: its cost and step
        self._mark = 0.0  # the last one passed
        self._steps: list[float] | None = None  # seconds of each; None until one has compiled

    @property
    def budget(self) -> str:
        """The time budget, as the settings give it."""
        return self._config.budget or ""

    def costs(self, now: float) -> Costs:
        """Return the costs as they are known, and the time spent until ``now``."""
        return self._costs.model_copy(update={"spent": now - self._origin})

    def follow(self, event: Event, plan: Plan, now: float) -> Plan:
        """Return the plan from ``event`` on, which is mostly the same.

        The times of events do not count: somebody may set the clock.
        """
        took, self._latest = now - self._latest, now
        match event:
            case Stepped():
                if self._steps is None:
                    self._steps = []
                else:
                    self._steps.append(took)
                return self._replanned(event, plan, self._steps, now)
            case Evaluating() | Evaluated() | Sampled() | Saved():
                self._add((COST_OF[type(event)], event.step), took)
            case CoreMeasured():  # its progress comes between
                self._costs = self._costs.model_copy(update={"core": event.seconds})
        return plan

    def _add(self, occasion: tuple[str, int], seconds: float) -> None:
        """Add to the cost of the pause under way, or start to count a new one."""
        cost, _ = occasion
        before = getattr(self._costs, cost) if occasion == self._occasion else 0.0
        self._occasion = occasion
        self._costs = self._costs.model_copy(update={cost: before + seconds})

    def _replanned(self, event: Stepped, plan: Plan, steps: list[float], now: float) -> Plan:
        planned, spent = plan.num_iterations, now - self._origin
        progress = max(spent / self._budget, event.step / planned)
        mark = max((mark for mark in REPLAN_POINTS if mark <= progress), default=0.0)
        due = mark > self._mark or event.step == planned - 1  # is there time for more?
        enough = len(steps) >= max(LEAST_STEPS_SEEN, planned // 100)
        if not (due and enough) or event.step >= planned:
            return plan
        self._mark = max(self._mark, mark)
        step_seconds = mean(steps[-max(AVERAGED_STEPS, planned // 10) :])
        self._costs = self._costs.model_copy(update={"step": step_seconds})
        left = TARGET_SHARE * self._budget - spent
        between = pauses(self._config, self._costs, planned)
        allowed = last_step(event.step, left, step_seconds, between)
        total = max(event.step + 1, min(allowed, plan.most_steps or allowed))  # one is under way
        if abs(total - planned) <= TOLERANCE * planned:
            return plan
        return with_steps(plan, event.step, total)
