"""The plan that follows from pretraining's settings: nanochat's rules. Pure: no arrays, no files.

The modern architecture's batch, learning rates and weight decay are carried over from depth 12,
for which nanochat tuned them (base_train at commit 92d63d4).
"""

import math
from collections.abc import Iterator
from contextlib import suppress

from pydantic import ValidationError

from mlxchat.config.pretrain import DEFAULT_DEPTH, LARGEST_DEPTH, PretrainConfig
from mlxchat.config.recipes import Recipe
from mlxchat.errors import MlxchatError
from mlxchat.model.config import ASPECT_RATIO, GPTConfig
from mlxchat.model.size import flops_per_token, parameters, scaling_parameters
from mlxchat.optim.schedule import width_scale
from mlxchat.train.fitting import Capacity, Depth, fit
from mlxchat.train.run_plan import Plan, evaluation_rows, step_rows

REFERENCE_DEPTH = 12
REFERENCE_BATCH = 2**19  # tokens, the best at that depth
BATCH_EXPONENT = 0.383  # of the horizon (https://arxiv.org/abs/2505.13738)
SMEAR_RATE = 0.2  # learning rate of smear and backout, whatever the batch


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
        raise MlxchatError(
            f"{recipe.target_param_data_ratio:g} tokens for each of "
            f"{counted_parameters(model):,} parameters are less than one step of {total:,} "
            "tokens.",
            "Give --num-iterations, or a smaller --total-batch-size.",
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
        learning_rates=learning_rates(recipe, config.matrix_lr, model, total),
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
        raise MlxchatError(
            f"--head-dim {config.head_dim} is odd; rotary embeddings turn a head's channels in "
            "pairs.",
            "Use an even --head-dim.",
        )

    try:
        return _shape(config, vocab_size, depth)
    except ValidationError as error:
        working = []
        for other in range(1, LARGEST_DEPTH + 1):
            with suppress(ValidationError):
                working.append(_shape(config, vocab_size, other).n_layer)
        near = sorted(working, key=lambda other: abs(other - depth))[:2]
        others = f"--depth {' or '.join(map(str, sorted(near)))}, or " if near else ""
        raise MlxchatError(
            f"A depth of {depth} makes a width of {ASPECT_RATIO * depth} that cannot be shared out "
            f"among heads of {config.head_dim}.",
            f"Use {others}another --head-dim.",
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


def learning_rates(
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


def _shallower(config: PretrainConfig, model: GPTConfig) -> Iterator[Depth]:
    for depth in range(model.n_layer - 1, 0, -1):
        with suppress(ValidationError, MlxchatError):
            other = _shape(config, model.vocab_size, depth)
            yield Depth(other, step_rows(config, config.max_seq_len, recipe_batch(config, other)))
