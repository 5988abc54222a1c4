"""The plan that follows from pretraining's settings: nanochat's rules. Pure: no arrays, no files.

The modern architecture's batch, learning rates and weight decay are carried over from depth 12,
for which nanochat tuned them (base_train at commit 92d63d4).
"""

import math
from contextlib import suppress
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from mlxchat.errors import MlxchatError
from mlxchat.model.arithmetic import (
    ScoresHeld,
    activation_bytes,
    flops_per_token,
    parameters,
    scaling_parameters,
    training_bytes,
)
from mlxchat.model.config import ASPECT_RATIO, GPTConfig
from mlxchat.optim.schedule import width_scale
from mlxchat.train.recipes import Recipe
from mlxchat.train.settings import DEFAULT_DEPTH, LARGEST_DEPTH, PretrainConfig

LARGEST_DEVICE_BATCH = 32  # nanochat's
# An evaluation sees the tokens of so many training steps. In nanochat classic's does; modern's sees
# those of 80 steps of 2^19 tokens.
EVALUATION_STEPS = 20
BUDGETED_EVALUATION_STEPS = 5  # in a short run, the other 15 are better spent on training
REFERENCE_DEPTH = 12
REFERENCE_BATCH = 2**19  # tokens, the best at that depth
BATCH_EXPONENT = 0.383  # of the horizon (https://arxiv.org/abs/2505.13738)
SMEAR_RATE = 0.2  # learning rate of smear and backout, whatever the batch
GIB = 1024**3


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
    target_tokens: int  # by the data ratio, whatever the number of steps
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
    eval_batches: int
    costs: Costs | None = None  # None: there is no time budget

    @property
    def tokens(self) -> int:
        """That the run trains on."""
        return self.num_iterations * self.tokens_per_step

    def summary(self) -> str:
        """The plan in a line."""
        rates = ", ".join(f"{rate:.3g} {group}" for group, rate in self.learning_rates.items())
        return (
            f"{self.model.arch}, {self.parameters:,} parameters in {self.model.n_layer} layers of "
            f"width {self.model.n_embd}, vocabulary {self.model.vocab_size:,}; "
            f"{self.num_iterations:,} steps of {self.tokens_per_step:,} tokens "
            f"({self.device_batch_size} rows of {self.model.sequence_len:,}, "
            f"{self.accumulation} times); learning rates {rates}; "
            f"weight decay {self.weight_decay:.3g}."
        )


class Capacity(NamedTuple):
    """What the machine has."""

    memory: int  # bytes
    value_bytes: int  # of one activation
    scores_held: ScoresHeld  # of which layers the scores of attention are held
    loss_rows: int  # positions in a chunk of the loss

    def training_bytes(
        self, model: GPTConfig, device_batch: int, accumulation: int
    ) -> dict[str, int]:
        """Bytes that training takes here, as `arithmetic.training_bytes` estimates them."""
        return training_bytes(
            model, device_batch, accumulation, self.value_bytes, self.scores_held, self.loss_rows
        )


def plan(config: PretrainConfig, vocab_size: int, capacity: Capacity) -> Plan:
    """Derive what the settings leave open.

    Args:
        vocab_size: of the tokenizer.
        capacity: of the machine, which bounds the default of ``device_batch_size``.

    Raises:
        MlxchatError: the batch sizes do not divide (those that do are named), heads cannot share
            out the width, or the machine cannot hold the model.
    """
    recipe = config.recipe
    model = shape(config, vocab_size, config.depth or DEFAULT_DEPTH)
    target_tokens = _target_tokens(recipe, model)
    total = recipe_batch(config, model)
    device_batch = config.device_batch_size or _fitting_batch(model, total, capacity)
    rows = _rows(config, total, device_batch)
    steps = config.num_iterations or target_tokens // total
    if steps < 1:
        raise MlxchatError(
            f"{recipe.target_param_data_ratio:g} tokens for each of "
            f"{counted_parameters(model):,} parameters are less than one step of {total:,} "
            "tokens.",
            "Give --num-iterations, or a smaller --total-batch-size.",
        )
    accumulation = rows // device_batch
    _require_memory(model, accumulation, capacity)
    return Plan(
        model=model,
        parameters=sum(parameters(model).values()),
        flops_per_token=flops_per_token(model),
        target_tokens=target_tokens,
        num_iterations=steps,
        device_batch_size=device_batch,
        accumulation=accumulation,
        tokens_per_step=total,
        learning_rates=_learning_rates(recipe, config.matrix_lr, model, total),
        weight_decay=_weight_decay(config, recipe, model, total),
        grad_clip=recipe.grad_clip,
        warmup_steps=recipe.warmup_steps,
        warmdown_ratio=recipe.warmdown_ratio,
        final_lr_frac=recipe.final_lr_frac,
        eval_batches=evaluation_batches(config, total, device_batch),
    )


def evaluation_batches(config: PretrainConfig, tokens_per_step: int, device_batch: int) -> int:
    """Batches of an evaluation, one at least."""
    steps = BUDGETED_EVALUATION_STEPS if config.budget else EVALUATION_STEPS
    tokens = config.eval_tokens or steps * tokens_per_step
    return max(1, tokens // (device_batch * config.max_seq_len))


def shape(config: PretrainConfig, vocab_size: int, depth: int) -> GPTConfig:
    """The model of that depth.

    Raises:
        MlxchatError: heads cannot share out the width, or are of an odd one.
    """
    if config.arch == "modern" and config.head_dim % 2:
        raise MlxchatError(
            f"--head-dim {config.head_dim} is odd; rotary embeddings turn a head's channels in "
            "pairs.",
            "Use an even --head-dim.",
        )

    def of(depth: int) -> GPTConfig:
        return GPTConfig.from_depth(
            depth,
            vocab_size,
            config.max_seq_len,
            config.head_dim,
            config.arch,
            config.recipe.window_pattern,
        )

    try:
        return of(depth)
    except ValidationError as error:
        working = []
        for other in range(1, LARGEST_DEPTH + 1):
            with suppress(ValidationError):
                working.append(of(other).n_layer)
        near = sorted(working, key=lambda other: abs(other - depth))[:2]
        others = f"--depth {' or '.join(map(str, sorted(near)))}, or " if near else ""
        raise MlxchatError(
            f"A depth of {depth} makes a width of {ASPECT_RATIO * depth} that cannot be shared out "
            f"among heads of {config.head_dim}.",
            f"Use {others}another --head-dim.",
        ) from error


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


def _learning_rates(
    recipe: Recipe, matrix_lr: float, model: GPTConfig, total: int
) -> dict[str, float]:
    """By group: AdamW's shrink with the width, the modern ones grow with the root of the batch."""
    by_width = width_scale(model.n_embd)
    rates = {
        "embedding": recipe.embedding_lr * by_width,
        "unembedding": recipe.unembedding_lr * by_width,
        "matrix": matrix_lr,
    }
    if recipe.scalar_lr is None:
        return rates
    rates["value_embeds"] = rates["embedding"] / 2
    rates["resid"] = recipe.scalar_lr * 0.01
    rates["x0"] = recipe.scalar_lr
    by_batch = math.sqrt(total / REFERENCE_BATCH)
    return {group: rate * by_batch for group, rate in rates.items()} | {"smear": SMEAR_RATE}


def _weight_decay(config: PretrainConfig, recipe: Recipe, model: GPTConfig, total: int) -> float:
    """Modern: such that batch / (learning rate * decay * horizon) stays what it is at the reference
    depth (https://arxiv.org/abs/2405.13698), also where the number of steps is given.
    """
    if config.arch == "classic":
        return recipe.weight_decay
    by_batch = math.sqrt(total / REFERENCE_BATCH)
    return recipe.weight_decay * by_batch / _horizon_ratio(config, recipe, model)


def _require_memory(model: GPTConfig, accumulation: int, capacity: Capacity) -> None:
    counts = sum(parameters(model).values())
    needed = capacity.training_bytes(model, 1, accumulation)
    least = needed["parameters"] + needed["gradients"] + needed["optimizer"]
    if least > capacity.memory:
        raise MlxchatError(
            f"Training {counts:,} parameters takes more than {least / GIB:,.1f} GiB; this machine "
            f"has {capacity.memory / GIB:,.1f} GiB.",
            "Use a smaller --depth.",
        )


def _fitting_batch(model: GPTConfig, total: int, capacity: Capacity) -> int:
    """The most rows, dividing a step's, whose activations fit in a quarter of memory."""
    rows = max(1, total // model.sequence_len)
    row_bytes = activation_bytes(model, capacity.value_bytes, capacity.scores_held)
    fitting = capacity.memory // 4 // row_bytes
    allowed = [n for n in range(1, LARGEST_DEVICE_BATCH + 1) if rows % n == 0 and n <= fitting]
    return max(allowed, default=1)


def _rows(config: PretrainConfig, total: int, device_batch: int) -> int:
    """Rows of a step.

    Raises:
        MlxchatError: they are not whole, or not a multiple of those computed at once.
    """
    T = config.max_seq_len
    rows, left = divmod(total, T)
    if not left and rows % device_batch == 0:
        return rows
    unit = f"a row's {T:,} tokens"
    if device_batch > 1:
        unit = f"{device_batch} rows of {T:,} tokens ({device_batch * T:,})"
    problem = f"A total batch of {total:,} tokens is not a multiple of {unit}."
    if left:
        below, above = max(1, rows // device_batch), rows // device_batch + 1
        totals = sorted({n * device_batch * T for n in (below, above)})
        raise MlxchatError(
            problem, f"Use --total-batch-size {' or '.join(str(n) for n in totals)}."
        )
    divisors = [str(n) for n in range(1, min(rows, 64) + 1) if rows % n == 0]
    raise MlxchatError(problem, f"Use --device-batch-size {', '.join(divisors)}.")
