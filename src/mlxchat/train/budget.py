"""The plan that a time budget allows: which depth, which batch, how many steps. Pure.

Depth: the deepest model that gets, in that time, as many tokens for each parameter of its matrices
as the recipe's data ratio says (20; modern 12). Embedding and head are left out: in small models
they are most of the parameters, and a budget of minutes would never be enough for a model that is
worth training. The deeper model is the better one only if it sees enough: for short budgets a
shallow one learns more.

Batch: rows by a power of two, as many as leave a thousand steps; the recipe's batch at most, and
not so few tokens that Muon's matrix products take much more than a fifth of a step.
"""

from collections.abc import Callable, Iterator

from mlxchat.config.pretrain import LARGEST_DEPTH, PretrainConfig
from mlxchat.errors import MlxchatError
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import flops_per_token, parameters
from mlxchat.train.fitting import Capacity
from mlxchat.train.pace import AIM, last_step, pauses
from mlxchat.train.plan import plan, recipe_batch, shape
from mlxchat.train.run_plan import Costs, Plan

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
        raise MlxchatError(
            f"Of the budget of {config.budget}, {max(0.0, left):.0f} s are left: no time for depth "
            f"{draft.model.n_layer}, where a step of {draft.tokens_per_step:,} tokens takes about "
            f"{step_seconds:.3g} s and an evaluation {costs.evaluation:.3g} s.",
            "Use a longer --budget, a smaller --depth or --max-seq-len, or fewer --eval-tokens.",
        )
    return draft.model_copy(update={"num_iterations": steps, "costs": costs})
