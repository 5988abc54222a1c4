"""The plan that a time budget allows: which depth, which batch, how many steps. Pure.

Depth: the deepest model that gets, in that time, as many tokens for each parameter of its matrices
as the recipe's data ratio says (20; modern 12). Embedding and head are left out: in small models
they are most of the parameters, and a budget of minutes would never be enough for a model that is
worth training. The deeper model is the better one only if it sees enough: for short budgets a
shallow one learns more.

Batch: rows by a power of two, as many as leave a thousand steps; the recipe's batch at most, and
not so few tokens that Muon's matrix products take much more than a fifth of a step.

Holding a time budget: how many steps fit into what is left, asked again as a run goes on. Pure.

The number of steps is planned from a measured speed, and speed changes: a laptop gets warm, another
program starts. So at some marks the rest is planned anew from what steps, evaluations, samples and
checkpoints were seen to take. The learning rate does not jump by that: before it cools down it
is the same for any number of steps, and from then on only its slope changes.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import NamedTuple

from mlxchat.config.pretrain import LARGEST_DEPTH, PretrainConfig
from mlxchat.errors import ConfigError, MlxchatError
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import flops_per_token, parameters
from mlxchat.plan.memory import Capacity
from mlxchat.plan.plan import Costs, Plan, plan, recipe_batch, shape
from mlxchat.telemetry.events import Evaluated, Evaluating, Event, Sampled, Saved, Stepped

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


SHALLOWEST = 2  # one layer cannot learn to repeat what it saw (https://arxiv.org/abs/2209.11895)
STEPS = 1000
TOKENS_A_CHANNEL = 16  # in a step at least; Muon costs as much as some 4 tokens for each
TRAINING_SHARE = 0.9  # of the time that is left; the rest evaluates, samples and saves
FORWARD_SHARE = 1 / 3  # of a training step's time, that an evaluation takes for as many tokens

Measure = Callable[[Plan], float | None]


def budgeted_plan(
    config: PretrainConfig,
    vocab_size: int,
    capacity: Capacity,
    left: Callable[[], float],
    flops: float,
    measure: Measure,
) -> Plan:
    """Choose what the settings leave open so that training ends when the time does.

    A depth and batch are chosen by a presumed speed and measured; by the speed measured they are
    chosen again, until the choice is one that was measured, or there is no time to measure more.

    Args:
        vocab_size: of the tokenizer.
        capacity: of the machine.
        left: seconds of the budget.
        flops: FLOP/s presumed of training, before anything is measured.
        measure: seconds that a step of a plan takes; None where there is no time to measure it.

    Raises:
        MlxchatError: as of `plan`, or there is not the time for a step.
    """
    speeds: dict[int, float] = {}  # FLOP/s by depth
    seen: set[tuple[int, int]] = set()

    def speed(depth: int) -> float:
        return speeds[min(speeds, key=lambda other: abs(other - depth))] if speeds else flops

    while True:
        draft = _draft(config, vocab_size, capacity, TRAINING_SHARE * left(), speed)
        depth, step_flops = draft.model.n_layer, draft.flops_per_token * draft.tokens_per_step
        choice = (depth, draft.tokens_per_step)
        seconds = None if choice in seen else measure(draft)
        if seconds is None:
            return _filled(config, draft, left(), step_flops / speed(depth))
        seen.add(choice)
        speeds[depth] = step_flops / seconds


def reason(config: PretrainConfig, made: Plan) -> str:
    """Why a budgeted run is what it is, in a line."""
    depth, tokens = made.model.n_layer, made.tokens / parameters(made.model)["matrices"]
    enough = config.recipe.target_param_data_ratio
    each = f"{tokens:.3g} tokens for each parameter of its matrices"
    if config.depth is not None:
        why = f"it gets {each}"
    elif depth > SHALLOWEST or tokens >= enough:
        why = f"the deepest that gets about {enough:g}, here {each}"
    else:
        why = f"the shallowest; even so it gets only {each} (of {enough:g})"
    measured = f", at {made.tokens_per_step / made.costs.step:,.0f} a second" if made.costs else ""
    return (
        f"Budget {config.budget}: depth {depth}, {why}; {made.num_iterations:,} steps of "
        f"{made.tokens_per_step:,} tokens{measured}."
    )


def _draft(
    config: PretrainConfig,
    vocab_size: int,
    capacity: Capacity,
    seconds: float,
    speed: Callable[[int], float],
) -> Plan:
    """The plan of the depth that suits ``seconds`` of training, or of the one given."""

    def tokens(model: GPTConfig) -> float:
        return max(0.0, seconds) * speed(model.n_layer) / flops_per_token(model)

    def drafted(depth: int) -> Plan:
        model = shape(config, vocab_size, depth)
        total = config.total_batch_size or _batch(config, model, tokens(model))
        chosen = {"depth": depth, "total_batch_size": total, "num_iterations": STEPS}
        return plan(config.model_copy(update=chosen), vocab_size, capacity)

    if config.depth is not None:
        return drafted(config.depth)
    drafts = _possible(drafted)
    best = next(drafts)
    for draft in drafts:
        needed = config.recipe.target_param_data_ratio * parameters(draft.model)["matrices"]
        if tokens(draft.model) < needed:
            break
        best = draft
    return best


def _possible(drafted: Callable[[int], Plan]) -> Iterator[Plan]:
    """Those of all depths that can be; where none can, the last one's fault is raised."""
    none = True
    for depth in range(SHALLOWEST, LARGEST_DEPTH + 1):
        try:
            draft = drafted(depth)
        except MlxchatError:  # heads cannot share out the width, or too much memory
            if none and depth == LARGEST_DEPTH:
                raise
            continue
        none = False
        yield draft


def _batch(config: PretrainConfig, model: GPTConfig, tokens: float) -> int:
    """Tokens of a step."""
    unit = (config.device_batch_size or 1) * config.max_seq_len
    least = TOKENS_A_CHANNEL * model.n_embd
    wanted = min(recipe_batch(config, model), max(least, tokens / STEPS))
    times = max(1, int(wanted // unit))
    return unit << times.bit_length() - 1


def _filled(config: PretrainConfig, draft: Plan, left: float, step_seconds: float) -> Plan:
    """The plan with the steps that there is time for.

    Raises:
        MlxchatError: that is none.
    """
    evaluation = FORWARD_SHARE * step_seconds * draft.eval_rows / draft.rows
    costs = Costs(step=step_seconds, evaluation=evaluation if config.eval_every else 0.0)
    training = AIM * left - costs.evaluation  # the first one is before the first step
    steps = last_step(0, training, step_seconds, pauses(config, costs))
    if steps < 1:
        raise ConfigError(
            f"Of the budget of {config.budget}, {max(0.0, left):.0f} s are left: no time for depth "
            f"{draft.model.n_layer}, where a step of {draft.tokens_per_step:,} tokens takes about "
            f"{step_seconds:.3g} s and an evaluation {costs.evaluation:.3g} s.",
            "Use a longer `budget`, a smaller `depth` or `max_seq_len`, or fewer `eval_tokens`.",
        )
    return draft.model_copy(update={"num_iterations": steps, "costs": costs})
