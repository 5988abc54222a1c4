"""Plans a run for a time budget. Pure.

`budgeted_plan` chooses depth, batch and number of steps. With the budget recipe, it also chooses
the context and, if a tokenizer is yet to be trained, the vocabulary, all from the number of tokens
that each depth could process in the time (`mlxchat.config.recipes.scale_for`). With nanochat's
recipes:

- Depth: the deepest model that gets, within the budget, as many tokens for each parameter of its
  matrices as the recipe's data ratio (20; modern 12). Embedding and head are not counted: in small
  models they are most of the parameters, and a budget of minutes would never be enough for a model
  worth training. A deeper model is better only if it sees enough tokens; with a short budget a
  shallow one learns more.
- Batch: a power of two of rows, such that there are about a thousand steps; at most the recipe's
  batch, and not so few tokens that Muon's matrix products take much more than a fifth of a step.

While the run trains, `mlxchat.plan.deadline` keeps it within the budget.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mlxchat.config.pretrain import LARGEST_DEPTH, PretrainConfig
from mlxchat.config.recipes import ENDLESS, MOST_EPOCHS, Scale, Text, scale_for
from mlxchat.config.units import spell_duration
from mlxchat.counts import counted
from mlxchat.errors import ConfigError, MlxchatError
from mlxchat.model.config import ASPECT_RATIO, GPTConfig
from mlxchat.model.size import flops_per_token, parameters, scaling_parameters
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import Costs, Plan, plan, recipe_batch, shape

TARGET_SHARE = 0.995  # of the budget; the rest is for costs not yet seen, as of the first samples

Measure = Callable[[Plan], float | None]
"""Returns the seconds that a step of a plan takes; None when there is no time left to measure."""


# ==== The plan that a budget allows ==============================================================

SHALLOWEST = 2  # one layer cannot learn to repeat what it saw (https://arxiv.org/abs/2209.11895)
TARGET_STEPS = 1000
TOKENS_PER_CHANNEL = 16  # the minimum in a step; Muon costs as much as about 4 tokens per channel
TRAINING_SHARE = 0.9  # of the remaining time; the rest evaluates, samples and saves
SHAPE_ITERATIONS = 3  # in which shape and tokens, each of which determines the other, settle
WARMUP_SHARE = 0.05  # of the steps, at most, with the budget recipe
CORE_TOKENS = 13_000  # that measuring CORE reads for one example of each task, about
FORWARD_SHARE = 1 / 3  # of a training step's time, to evaluate as many tokens


def budgeted_plan(
    config: PretrainConfig,
    vocab_size: int | None,
    resources: Resources,
    left: Callable[[], float],
    flops: float,
    measure: Measure,
    speeds: dict[int, float] | None = None,
    text: Text = ENDLESS,
) -> Plan:
    """Choose what the settings leave open so that training ends when the budget does.

    Depth and batch are chosen by a presumed speed and measured, then chosen again by the measured
    speed, until the choice is one that was measured or there is no time to measure more.

    Args:
        vocab_size: tokens in the tokenizer's vocabulary; None for those of the budget recipe.
        resources: the means of the machine.
        left: returns the seconds left of the budget.
        flops: FLOP/s presumed for training before anything is measured.
        measure: measures the step of a plan.
        speeds: FLOP/s by depth, as they were measured before; what is measured is added.
        text: of which the budget recipe takes no more than it can use.

    Raises:
        MlxchatError: `plan` refuses the settings, or there is no time for a single step.
    """
    speeds = {} if speeds is None else speeds
    measured: set[tuple[GPTConfig, int]] = set()

    def speed(depth: int) -> float:
        return speeds[min(speeds, key=lambda other: abs(other - depth))] if speeds else flops

    while True:
        draft = _draft(config, vocab_size, resources, TRAINING_SHARE * left(), speed, text)
        depth, step_flops = draft.model.n_layer, draft.flops_per_token * draft.tokens_per_step
        choice = (draft.model, draft.tokens_per_step)
        seconds = None if choice in measured else measure(draft)
        if seconds is None:
            return _with_steps_that_fit(config, draft, left(), step_flops / speed(depth))
        measured.add(choice)
        speeds[depth] = step_flops / seconds


def reason(config: PretrainConfig, plan: Plan) -> str:
    """Explain the plan of a run with a time budget in one line."""
    depth, tokens = plan.model.n_layer, plan.tokens / parameters(plan.model)["matrices"]
    enough = config.numbers.target_param_data_ratio
    each = f"{tokens:.3g} tokens for each parameter of its matrices"
    if _scales(config):
        size = scaling_parameters(plan.model)
        each = f"{plan.tokens / size:.2g} tokens"
        why = f"{each} for each of its {size:,} parameters in matrices and head"
    elif config.depth is not None:
        why = f"which gets {each}"
    elif depth > SHALLOWEST or tokens >= enough:
        why = f"the deepest model that gets about {enough:g} (here {each})"
    else:
        why = f"the shallowest model, which still gets only {each} (of {enough:g})"
    speed = f", at {plan.tokens_per_step / plan.costs.step:,.0f} tokens/s" if plan.costs else ""
    said = (
        f"Budget {config.budget}: depth {depth}, {why}; "
        f"{counted(plan.num_iterations, 'steps')} of {plan.tokens_per_step:,} tokens{speed}."
    )
    if plan.costs and plan.num_iterations == plan.most_steps:
        takes = spell_duration(max(1, round(plan.num_iterations * plan.costs.step)))
        said += (
            f" By then the text has been read {MOST_EPOCHS} times, and reading it again would not "
            f"help, so training ends early, after about {takes}. More text would help."
        )
    return said


def _scales(config: PretrainConfig) -> bool:
    """Return whether the budget recipe chooses the size of the model."""
    return config.recipe_name == "budget" and config.target_param_data_ratio is None


def _draft(
    config: PretrainConfig,
    vocab_size: int | None,
    resources: Resources,
    seconds: float,
    speed: Callable[[int], float],
    text: Text,
) -> Plan:
    """Return the plan of the depth that suits ``seconds`` of training, or of the depth given."""

    by_budget = config.recipe_name == "budget"
    if not by_budget:
        text = ENDLESS

    def tokens(model: GPTConfig) -> float:
        seen = max(0.0, seconds) * speed(model.n_layer) / flops_per_token(model)
        return min(seen, MOST_EPOCHS * text.tokens(model.vocab_size))

    def scale(model: GPTConfig) -> Scale:
        return scale_for(tokens(model), text.tokens(model.vocab_size))

    def draft_of(depth: int) -> Plan:
        settled, vocabulary = config, vocab_size or config.numbers.vocabulary
        model = shape(settled, vocabulary, depth)
        for _ in range(SHAPE_ITERATIONS if by_budget else 0):
            # A shorter context and a smaller vocabulary leave time for more tokens.
            suited = scale(model)
            settled, vocabulary = (
                _with_scale(config, depth, suited),
                vocab_size or suited.vocabulary,
            )
            model = shape(settled, vocabulary, depth)
        total = config.total_batch_size or _batch(settled, model, tokens(model), scale(model))
        chosen = {"depth": depth, "total_batch_size": total, "num_iterations": TARGET_STEPS}
        draft = plan(settled.model_copy(update=chosen), vocabulary, resources)
        most = MOST_EPOCHS * text.tokens(vocabulary) / total
        return draft.model_copy(
            update={"most_steps": None if math.isinf(most) else max(1, round(most))}
        )

    if config.depth is not None:
        return draft_of(config.depth)
    drafts = _feasible_drafts(draft_of)
    best = next(drafts)
    for draft in drafts:
        if not _sees_enough(config, draft.model, tokens(draft.model), scale(draft.model)):
            break
        best = draft
    return best


def _with_scale(config: PretrainConfig, depth: int, scale: Scale) -> PretrainConfig:
    """Return the settings with the budget recipe's context and heads where they say nothing."""
    chosen: dict[str, float] = {"max_seq_len": scale.context}
    if ASPECT_RATIO * depth % config.head_dim:
        chosen["head_dim"] = ASPECT_RATIO  # or the width would be rounded up
    given = config.model_fields_set
    chosen = {name: value for name, value in chosen.items() if name not in given}
    if config.dropout is None:
        chosen["dropout"] = round(scale.dropout, 2)
    return config.model_copy(update=chosen)


def _sees_enough(config: PretrainConfig, model: GPTConfig, tokens: float, scale: Scale) -> bool:
    """Return whether a shallower model would not learn more from so many tokens."""
    if _scales(config):
        return scaling_parameters(model) <= scale.parameters
    return tokens >= config.numbers.target_param_data_ratio * parameters(model)["matrices"]


def _feasible_drafts(draft_of: Callable[[int], Plan]) -> Iterator[Plan]:
    """Yield the drafts of all depths that are possible; if none is, raise the last one's error."""
    none = True
    for depth in range(SHALLOWEST, LARGEST_DEPTH + 1):
        try:
            draft = draft_of(depth)
        except MlxchatError:  # the heads cannot divide the width, or it needs too much memory
            if none and depth == LARGEST_DEPTH:
                raise
            continue
        none = False
        yield draft


def _batch(config: PretrainConfig, model: GPTConfig, tokens: float, scale: Scale) -> int:
    """Return the tokens of a step of a run of ``tokens``."""
    unit = (config.device_batch_size or 1) * config.max_seq_len
    least = TOKENS_PER_CHANNEL * model.n_embd
    if config.recipe_name == "budget":
        times = scale.batch / unit
        return unit << max(0, round(math.log2(times)))
    wanted = min(recipe_batch(config, model), max(least, tokens / TARGET_STEPS))
    return unit << max(1, int(wanted // unit)).bit_length() - 1


def _with_steps_that_fit(
    config: PretrainConfig, draft: Plan, left: float, step_seconds: float
) -> Plan:
    """Return the plan with as many steps as fit into ``left`` seconds.

    Raises:
        ConfigError: not even one does.
    """
    evaluation = FORWARD_SHARE * step_seconds * draft.eval_rows / draft.rows_per_step
    core = CORE_TOKENS * config.core_max_per_task / draft.tokens_per_step
    costs = Costs(
        step=step_seconds,
        evaluation=evaluation if config.eval_every else 0.0,
        core=FORWARD_SHARE * step_seconds * core if config.core_every else 0.0,
    )
    # The first evaluation is before the first step.
    training = TARGET_SHARE * left - costs.evaluation
    between = pauses(config, costs, draft.num_iterations)
    steps = last_step(0, training, step_seconds, between)
    if steps < 1:
        raise ConfigError(
            f"The budget of {config.budget} has {max(0.0, left):.0f} s left, which is too short "
            f"for depth {draft.model.n_layer}: a step of {draft.tokens_per_step:,} tokens takes "
            f"about {step_seconds:.3g} s, an evaluation {costs.evaluation:.3g} s and CORE "
            f"{costs.core:.3g} s.",
            "Use a longer `budget`, a smaller `depth` or `max_seq_len`, fewer `eval_tokens`, or a "
            "smaller `core_max_per_task`.",
        )
    steps = min(steps, draft.most_steps or steps)
    warmup = draft.warmup_steps
    if config.recipe_name == "budget" and config.warmup_steps is None:
        warmup = min(warmup, int(WARMUP_SHARE * steps))
    return draft.model_copy(
        update={"num_iterations": steps, "costs": costs, "warmup_steps": warmup}
    )


# ==== How many steps fit =========================================================================


class Pause(NamedTuple):
    """A periodic pause of training: its interval in steps and its duration in seconds.

    Every pause is also due after the last step; with an interval of 0, only then.
    """

    every: int
    seconds: float


def pauses(config: PretrainConfig, costs: Costs, total_steps: int) -> list[Pause]:
    """Return the pauses of a run of about so many steps.

    An evaluation or a sample with an interval of 0 never happens; the last checkpoint always does.
    """
    optional = (
        Pause(config.eval_every, costs.evaluation),
        Pause(config.core_every, costs.core),
        Pause(config.sampling_interval(total_steps), costs.sample),
    )
    return [
        Pause(config.save_every, costs.save),
        *(pause for pause in optional if pause.every),
    ]


def seconds_needed(step: int, total: int, step_seconds: float, pauses: Sequence[Pause]) -> float:
    """Return the time from the end of ``step`` to the end of a run of ``total`` steps."""
    needed = (total - step) * step_seconds
    for every, seconds in pauses:
        times = total // every - step // every + (total % every > 0) if every else 1
        needed += times * seconds
    return needed


def last_step(step: int, left: float, step_seconds: float, pauses: Sequence[Pause]) -> int:
    """Return the last step that can end within ``left`` seconds after ``step``, or ``step``."""
    following = range(step + 1, step + 1 + math.ceil(max(0.0, left) / step_seconds))
    fitting = bisect_right(
        following, left, key=lambda total: seconds_needed(step, total, step_seconds, pauses)
    )
    return step + fitting


def with_steps(plan: Plan, step: int, total: int) -> Plan:
    """Return the plan with another total number of steps, after ``step`` of them are done.

    The learning rate does not jump: a warm-down under way continues from its present rate to the
    new end, and one that should have started by the new total starts now.
    """
    warmdown = round(plan.warmdown_ratio * plan.num_iterations)
    before, left = plan.num_iterations - step, total - step
    if before < warmdown:
        rescaled = math.ceil(warmdown * left / before)
    else:
        rescaled = min(round(plan.warmdown_ratio * total), left)
    return plan.model_copy(update={"num_iterations": total, "warmdown_ratio": rescaled / total})
