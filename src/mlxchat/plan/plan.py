"""What a run does, as numbers, whatever is trained. Pure: no arrays, no files.

The plan that follows from pretraining's settings: nanochat's rules. Pure: no arrays, no files.

The modern architecture's batch, learning rates and weight decay are carried over from depth 12,
for which nanochat tuned them (base_train at commit 92d63d4).
"""

import math
from collections.abc import Iterator
from contextlib import suppress

from pydantic import BaseModel, ConfigDict, ValidationError

from mlxchat.config.pretrain import DEFAULT_DEPTH, LARGEST_DEPTH, PretrainConfig
from mlxchat.config.recipes import Recipe
from mlxchat.config.run import RunConfig
from mlxchat.errors import ConfigError, MlxchatError
from mlxchat.model.config import ASPECT_RATIO, GPTConfig
from mlxchat.model.size import flops_per_token, parameters, scaling_parameters
from mlxchat.optim.schedule import REFERENCE_BATCH, learning_rates
from mlxchat.plan.memory import Capacity, Depth, fit, memory_limit


class Costs(BaseModel):
    """Seconds that a run with a time budget has used of it, and that each thing takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spent: float = 0.0
    step: float
    evaluation: float = 0.0
    sample: float = 0.0
    save: float = 0.0


class Plan(BaseModel):
    """What a run does, derived once and kept with its checkpoints.

    That of a run with a time budget is corrected as it goes on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: GPTConfig
    parameters: int
    flops_per_token: int
    target_tokens: int  # that the data ratio or the epochs ask for
    num_iterations: int
    device_batch_size: int
    accumulation: int  # micro-batches in a step
    tokens_per_step: int
    learning_rates: dict[str, float]  # by group
    weight_decay: float  # classic: of embedding and head; modern: of the matrices
    grad_clip: float
    warmup_steps: int
    warmdown_ratio: float
    final_lr_frac: float
    eval_rows: int  # of an evaluation, at most
    grad_checkpoint: bool = False  # compute each block's activations again in the backward pass
    loss_rows: int = 128  # positions in a chunk of the loss, at least
    costs: Costs | None = None  # None: there is no time budget

    @property
    def rows(self) -> int:
        """Of a step."""
        return self.device_batch_size * self.accumulation

    def memory(self, capacity: Capacity) -> dict[str, int]:
        """Bytes that training takes by component, and their peak, roughly."""
        return capacity.training_bytes(
            self.model,
            self.device_batch_size,
            self.accumulation,
            self.loss_rows,
            self.grad_checkpoint,
        )

    @property
    def tokens(self) -> int:
        """That the run trains on."""
        return self.num_iterations * self.tokens_per_step

    def summary(self) -> str:
        """The plan in a line."""
        rates = ", ".join(f"{rate:.3g} {group}" for group, rate in self.learning_rates.items())
        rows = "1 row" if self.device_batch_size == 1 else f"{self.device_batch_size} rows"
        checkpointing = ", gradient checkpointing" if self.grad_checkpoint else ""
        return (
            f"{self.model.arch}, {self.parameters:,} parameters in {self.model.n_layer} layers of "
            f"width {self.model.n_embd}, vocabulary {self.model.vocab_size:,}; "
            f"{self.num_iterations:,} steps of {self.tokens_per_step:,} tokens "
            f"({rows} of {self.model.sequence_len:,}, "
            f"{self.accumulation} times{checkpointing}); learning rates {rates}; "
            f"weight decay {self.weight_decay:.3g}."
        )


def refitted(made: Plan, config: RunConfig, capacity: Capacity) -> Plan:
    """The plan of a saved run: as it is where its peak fits still, and batch and checkpointing are
    as asked, so that it goes on bit for bit; else cut up anew.

    Raises:
        MlxchatError: as of `fit`; or the rows asked for do not divide a step's.
    """
    step_rows(config, made.model.sequence_len, made.tokens_per_step)
    asked = config.grad_checkpoint in ("auto", "on" if made.grad_checkpoint else "off")
    asked = asked and config.device_batch_size in (None, made.device_batch_size)
    limit = memory_limit(config, made.model, made.rows, capacity)
    if asked and made.memory(capacity)["peak"] <= limit:
        return made
    cut = fit(config, made.model, made.rows, capacity, [])
    changed = {
        "device_batch_size": cut.device_batch,
        "accumulation": cut.accumulation,
        "loss_rows": cut.loss_rows,
        "grad_checkpoint": cut.checkpoint,
    }
    return made.model_copy(update=changed)


def evaluation_rows(config: RunConfig, context: int, tokens_per_step: int) -> int:
    """Rows of an evaluation at most, one at least; ``context`` is the tokens of a row."""
    tokens = config.eval_tokens or config.evaluation_steps * tokens_per_step
    return max(1, tokens // context)


def step_rows(config: RunConfig, context: int, total: int) -> int:
    """Rows of ``context`` tokens in a step of ``total`` tokens.

    Raises:
        MlxchatError: they are not whole, or not a multiple of those computed at once.
    """
    device_batch = config.device_batch_size or 1
    rows, left = divmod(total, context)
    if not left and rows % device_batch == 0:
        return rows
    unit = f"a row's {context:,} tokens"
    if device_batch > 1:
        unit = f"{device_batch} rows of {context:,} tokens ({device_batch * context:,})"
    problem = f"A total batch of {total:,} tokens is not a multiple of {unit}."
    if left:
        below, above = max(1, rows // device_batch), rows // device_batch + 1
        totals = sorted({n * device_batch * context for n in (below, above)})
        raise ConfigError(problem, f"Use `total_batch_size` {' or '.join(str(n) for n in totals)}.")
    divisors = [str(n) for n in range(1, min(rows, 64) + 1) if rows % n == 0]
    raise ConfigError(problem, f"Use `device_batch_size` {', '.join(divisors)}.")


REFERENCE_DEPTH = 12
BATCH_EXPONENT = 0.383  # of the horizon (https://arxiv.org/abs/2505.13738)


def plan(config: PretrainConfig, vocab_size: int, capacity: Capacity) -> Plan:
    """Derive what the settings leave open.

    Args:
        vocab_size: of the tokenizer.
        capacity: of the machine, which training fits into.

    Raises:
        MlxchatError: the batch sizes do not divide (those that do are named), heads cannot share
            out the width, or there is not the memory.
    """
    recipe = config.recipe
    model = shape(config, vocab_size, config.depth or DEFAULT_DEPTH)
    target_tokens = _target_tokens(recipe, model)
    total = recipe_batch(config, model)
    rows = step_rows(config, config.max_seq_len, total)
    steps = config.num_iterations or target_tokens // total
    if steps < 1:
        raise ConfigError(
            f"{recipe.target_param_data_ratio:g} tokens for each of "
            f"{counted_parameters(model):,} parameters are less than one step of {total:,} "
            "tokens.",
            "Give `num_iterations`, or a smaller `total_batch_size`.",
        )
    cut = fit(config, model, rows, capacity, _shallower(config, model))
    return Plan(
        model=model,
        parameters=sum(parameters(model).values()),
        flops_per_token=flops_per_token(model),
        target_tokens=target_tokens,
        num_iterations=steps,
        device_batch_size=cut.device_batch,
        accumulation=cut.accumulation,
        tokens_per_step=total,
        learning_rates=learning_rates(recipe, model, total),
        weight_decay=_weight_decay(config, recipe, model, total),
        grad_clip=recipe.grad_clip,
        warmup_steps=recipe.warmup_steps,
        warmdown_ratio=recipe.warmdown_ratio,
        final_lr_frac=recipe.final_lr_frac,
        eval_rows=evaluation_rows(config, config.max_seq_len, total),
        grad_checkpoint=cut.checkpoint,
        loss_rows=cut.loss_rows,
    )


def shape(config: PretrainConfig, vocab_size: int, depth: int) -> GPTConfig:
    """The model of that depth.

    Raises:
        MlxchatError: heads cannot share out the width, or are of an odd one.
    """
    if config.arch == "modern" and config.head_dim % 2:
        raise ConfigError(
            f"`head_dim={config.head_dim}` is odd; rotary embeddings turn a head's channels in "
            "pairs.",
            "Use an even `head_dim`.",
        )

    try:
        return _shape(config, vocab_size, depth)
    except ValidationError as error:
        working = []
        for other in range(1, LARGEST_DEPTH + 1):
            with suppress(ValidationError):
                working.append(_shape(config, vocab_size, other).n_layer)
        near = sorted(working, key=lambda other: abs(other - depth))[:2]
        others = f"`depth` {' or '.join(map(str, sorted(near)))}, or " if near else ""
        raise ConfigError(
            f"A depth of {depth} makes a width of {ASPECT_RATIO * depth} that cannot be shared out "
            f"among heads of {config.head_dim}.",
            f"Use {others}another `head_dim`.",
        ) from error


def _shape(config: PretrainConfig, vocab_size: int, depth: int) -> GPTConfig:
    return GPTConfig.from_depth(
        depth,
        vocab_size,
        config.max_seq_len,
        config.head_dim,
        config.arch,
        config.recipe.window_pattern,
    )


def counted_parameters(model: GPTConfig) -> int:
    """Those that the data ratio counts."""
    if model.arch == "modern":
        return scaling_parameters(model)
    return sum(parameters(model).values())


def _target_tokens(recipe: Recipe, model: GPTConfig) -> int:
    return int(recipe.target_param_data_ratio * counted_parameters(model))


def _horizon_ratio(config: PretrainConfig, recipe: Recipe, model: GPTConfig) -> float:
    """The model's horizon in tokens over that of the reference depth."""
    reference = shape(config, model.vocab_size, REFERENCE_DEPTH)
    reference_tokens = recipe.target_param_data_ratio * scaling_parameters(reference)
    return _target_tokens(recipe, model) / reference_tokens


def recipe_batch(config: PretrainConfig, model: GPTConfig) -> int:
    """Tokens of a step, as given or by the recipe; where it follows from the horizon, a power of 2,
    which for no model is less than the longest row.
    """
    recipe = config.recipe
    if recipe.total_batch_size:
        return recipe.total_batch_size
    best = REFERENCE_BATCH * _horizon_ratio(config, recipe, model) ** BATCH_EXPONENT
    return int(2 ** round(math.log2(best)))


def _weight_decay(config: PretrainConfig, recipe: Recipe, model: GPTConfig, total: int) -> float:
    """Modern: such that batch / (learning rate * decay * horizon) stays what it is at the reference
    depth (https://arxiv.org/abs/2405.13698), also where the number of steps is given.
    """
    if config.arch == "classic":
        return recipe.weight_decay
    by_batch = math.sqrt(total / REFERENCE_BATCH)
    return recipe.weight_decay * by_batch / _horizon_ratio(config, recipe, model)


def _shallower(config: PretrainConfig, model: GPTConfig) -> Iterator[Depth]:
    for depth in range(model.n_layer - 1, 0, -1):
        with suppress(ValidationError, MlxchatError):
            other = _shape(config, model.vocab_size, depth)
            yield Depth(other, step_rows(config, config.max_seq_len, recipe_batch(config, other)))
