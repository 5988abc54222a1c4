"""The plan of a run: every number that follows from the settings, derived once. Pure.

`plan` derives the plan of pretraining by nanochat's rules (that of fine-tuning is in `train.sft`);
`refitted` adapts a saved plan to the memory available when the run resumes. The modern
architecture's batch, learning rates and weight decay are transferred from depth 12, for which
nanochat tuned them (base_train at commit 92d63d4).
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlxchat.config.lora import LoraTraining
from mlxchat.config.pretrain import DEFAULT_DEPTH, LARGEST_DEPTH, PretrainConfig
from mlxchat.config.recipes import Recipe
from mlxchat.config.run import LARGEST_COUNT, RunConfig
from mlxchat.counts import counted
from mlxchat.errors import ConfigError
from mlxchat.model.config import ASPECT_RATIO, GPTConfig
from mlxchat.model.size import flops_per_token, parameters, scaling_parameters
from mlxchat.optim.schedule import ADAPTER, REFERENCE_BATCH, learning_rates
from mlxchat.plan.division import MARGIN, ShallowerModel, fit
from mlxchat.plan.memory import AdapterPlan, BatchPlan, Resources, drawing_bytes
from mlxchat.telemetry.events import Count, Seconds

REFERENCE_DEPTH = 12
BATCH_EXPONENT = 0.383  # of the horizon (https://arxiv.org/abs/2505.13738)


class Costs(BaseModel):
    """The time budget of a run: seconds used so far, and seconds that each activity takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spent: Seconds = 0.0
    step: Seconds
    evaluation: Seconds = 0.0
    core: Seconds = 0.0
    sample: Seconds = 0.0
    save: Seconds = 0.0


class DrawingPlan(BaseModel):
    """The plan of sampling answers for reinforcement learning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_tokens: int = Field(ge=1)  # the longest row that a micro-batch can have
    max_tokens: int = Field(ge=1)  # in an answer
    together: int = Field(ge=1)  # answers that are drawn at a time


_TRACKED = {
    "accumulation",
    "device_batch_size",
    "dropout",
    "final_lr_frac",
    "flops_per_token",
    "grad_clip",
    "learning_rates",
    "model",
    "num_iterations",
    "parameters",
    "tokens_per_step",
    "warmdown_ratio",
    "warmup_steps",
    "weight_decay",
}


class Plan(BatchPlan):
    """The plan of a run, stored in its checkpoints.

    With a time budget, it is corrected while the run trains.
    """

    model: GPTConfig
    parameters: Count
    flops_per_token: Count
    target_tokens: int = Field(ge=0)  # by the data ratio or the number of epochs
    num_iterations: int = Field(ge=1, le=LARGEST_COUNT)
    tokens_per_step: int = Field(ge=1, le=LARGEST_COUNT)
    learning_rates: dict[str, float]  # by group
    weight_decay: float  # classic: of embedding and head; modern: of the matrices
    grad_clip: float = Field(ge=0)  # largest gradient norm; 0: no limit
    dropout: float = Field(0.0, ge=0, lt=1)  # the share of numbers that are zeroed
    warmup_steps: Count
    warmdown_ratio: float = Field(ge=0, le=LARGEST_COUNT)  # above 1 if prolonged while it falls
    final_lr_frac: float = Field(ge=0, le=1)
    eval_rows: Count  # in an evaluation, at most
    most_steps: Count | None = None  # that a budget may prolong it to; None: no limit
    costs: Costs | None = None  # None: there is no time budget
    drawing: DrawingPlan | None = None  # None: it learns from data
    adapter: AdapterPlan | None = None  # None: the whole model is trained

    @model_validator(mode="after")
    def _divided_as_a_whole(self) -> "Plan":
        if self.rows_per_step * self.row_tokens != self.tokens_per_step:
            raise ValueError("the micro-batches of a step do not have the step's tokens")
        return self

    @property
    def row_tokens(self) -> int:
        """Tokens in a row, at most."""
        return self.drawing.row_tokens if self.drawing else self.model.sequence_len

    @property
    def tokens(self) -> int:
        """Tokens that the run trains on."""
        return self.num_iterations * self.tokens_per_step

    def for_trackers(self) -> dict[str, Any]:
        """Return what the plan says of model, steps and rates."""
        return self.model_dump(mode="json", include=_TRACKED)

    def summary(self) -> str:
        """Return the plan in one line."""
        rates = ", ".join(f"{rate:.3g} {group}" for group, rate in self.learning_rates.items())
        rows = counted(self.device_batch_size, f"rows of {self.row_tokens:,}")
        checkpointing = ", gradient checkpointing" if self.grad_checkpoint else ""
        dropout = f"; dropout {self.dropout:.2g}" if self.dropout else ""
        decay = f"weight decay {self.weight_decay:.3g}" if self.weight_decay else "no weight decay"
        adapter = self.adapter
        trained = f", AdamW trains an adapter of {adapter.parameters:,}" if adapter else ""
        return (
            f"{self.model.arch}, {self.parameters:,} parameters in "
            f"{counted(self.model.n_layer, 'layers')} of width {self.model.n_embd}, "
            f"vocabulary {self.model.vocab_size:,}{trained}; "
            f"{counted(self.num_iterations, 'steps')} of {self.tokens_per_step:,} tokens "
            f"({counted(self.accumulation, 'micro-batches')} of {rows}{checkpointing}); "
            f"learning rates {rates}; {decay}{dropout}."
        )


def plan(
    config: PretrainConfig,
    vocab_size: int,
    resources: Resources,
    adapter: AdapterPlan | None = None,
) -> Plan:
    """Derive what pretraining's settings leave open.

    Args:
        vocab_size: tokens in the tokenizer's vocabulary.
        resources: the means of the machine.
        adapter: the adapter that alone is trained; None if the whole model is.

    Raises:
        ConfigError: the batch sizes do not divide (those that do are named), the width cannot be
            divided among the heads, or the data ratio asks for less than one step.
        MemoryLimitError: training does not fit into memory.
    """
    recipe = config.numbers
    model = shape(config, vocab_size, config.depth or DEFAULT_DEPTH)
    target_tokens = _target_tokens(recipe, model)
    tokens_per_step = recipe_batch(config, model)
    rows = step_rows(config, config.max_seq_len, tokens_per_step)
    steps = config.num_iterations or target_tokens // tokens_per_step
    if steps < 1:
        raise ConfigError(
            f"{recipe.target_param_data_ratio:g} tokens for each of {counted_parameters(model):,} "
            f"parameters make less than one step of {tokens_per_step:,} tokens.",
            "Give `num_iterations`, or a smaller `total_batch_size`.",
        )
    shallower = () if adapter else _shallower(config, model)
    batch = fit(config, model, rows, resources, shallower, adapter=adapter)
    rates = learning_rates(recipe, model, tokens_per_step)
    return Plan(
        **dict(batch),
        model=model,
        parameters=sum(parameters(model).values()),
        flops_per_token=flops_per_token(model, frozen=adapter is not None),
        target_tokens=target_tokens,
        num_iterations=steps,
        tokens_per_step=tokens_per_step,
        learning_rates=adapter_rates(config.lora) if config.lora else rates,
        weight_decay=0.0 if config.lora else _weight_decay(config, recipe, model, tokens_per_step),
        grad_clip=recipe.grad_clip,
        dropout=config.lora.dropout if config.lora else config.dropout or 0.0,
        warmup_steps=recipe.warmup_steps,
        warmdown_ratio=recipe.warmdown_ratio,
        final_lr_frac=recipe.final_lr_frac,
        eval_rows=evaluation_rows(config, config.max_seq_len, tokens_per_step),
        adapter=adapter,
    )


def adapter_rates(lora: LoraTraining) -> dict[str, float]:
    """Return the learning rate of an adapter, by the name of its group."""
    return {ADAPTER: lora.learning_rate}


def refitted(saved: Plan, config: RunConfig, resources: Resources) -> Plan:
    """Return the plan by which a saved run resumes.

    Its steps are divided as before, so that it resumes bit for bit, as long as that agrees with the
    settings and still fits; otherwise they are divided again.

    Raises:
        ConfigError: the device batch size in the settings does not divide the rows of a step.
        MemoryLimitError: training does not fit into memory.
    """
    step_rows(config, saved.row_tokens, saved.tokens_per_step)
    model, rows, adapter = (
        with_rows_of(saved.model, saved.row_tokens),
        saved.rows_per_step,
        saved.adapter,
    )
    batch = fit(config, model, rows, resources, saved=saved, adapter=adapter)
    return with_drawing(saved.model_copy(update=dict(batch)), resources)


def with_rows_of(model: GPTConfig, row_tokens: int) -> GPTConfig:
    """Return the shape of a model that has no longer rows than these."""
    return model.model_copy(update={"sequence_len": row_tokens})


def with_drawing(plan: Plan, resources: Resources) -> Plan:
    """Return a plan by which no more answers are drawn at a time than its memory limit allows."""
    if plan.drawing is None:
        return plan
    model = with_rows_of(plan.model, plan.row_tokens)
    least, each = drawing_bytes(model, resources, plan.adapter)
    room = max(0, int(plan.memory_limit / MARGIN) - least)
    together = max(1, min(plan.drawing.together, room // each))
    drawing = plan.drawing.model_copy(update={"together": together})
    peak = max(plan.peak, least + together * each)
    return plan.model_copy(update={"drawing": drawing, "peak": peak})


# ==== The model's shape ==========================================================================


def shape(config: PretrainConfig, vocab_size: int, depth: int) -> GPTConfig:
    """Return the model's shape at a depth.

    Raises:
        ConfigError: the width cannot be divided among the heads, or they have an odd width.
    """
    if config.architecture == "modern" and config.head_dim % 2:
        raise ConfigError(
            f"`head_dim={config.head_dim}` is odd, but rotary embeddings rotate the channels of a "
            "head in pairs.",
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
            f"A depth of {depth} gives a width of {ASPECT_RATIO * depth}, which cannot be divided "
            f"into heads of width {config.head_dim}.",
            f"Use {others}another `head_dim`.",
        ) from error


def _shape(config: PretrainConfig, vocab_size: int, depth: int) -> GPTConfig:
    return GPTConfig.from_depth(
        depth,
        vocab_size,
        config.max_seq_len,
        config.head_dim,
        config.architecture,
        config.numbers.window_pattern,
    )


def _shallower(config: PretrainConfig, model: GPTConfig) -> Iterator[ShallowerModel]:
    """Yield the models of smaller depths that the settings allow, deepest first."""
    for depth in range(model.n_layer - 1, 0, -1):
        with suppress(ValidationError, ConfigError):
            other = _shape(config, model.vocab_size, depth)
            rows = step_rows(config, config.max_seq_len, recipe_batch(config, other))
            yield ShallowerModel(other, rows)


# ==== Horizon and batch ==========================================================================


def counted_parameters(model: GPTConfig) -> int:
    """Return the number of parameters that the data ratio refers to."""
    if model.arch == "modern":
        return scaling_parameters(model)
    return sum(parameters(model).values())


def _target_tokens(recipe: Recipe, model: GPTConfig) -> int:
    return int(recipe.target_param_data_ratio * counted_parameters(model))


def _horizon_ratio(config: PretrainConfig, recipe: Recipe, model: GPTConfig) -> float:
    """Return the model's horizon in tokens, divided by that of the reference depth."""
    reference = shape(config, model.vocab_size, REFERENCE_DEPTH)
    reference_tokens = recipe.target_param_data_ratio * scaling_parameters(reference)
    return _target_tokens(recipe, model) / reference_tokens


def recipe_batch(config: PretrainConfig, model: GPTConfig) -> int:
    """Return the tokens of a step, from the settings or the recipe.

    A batch that follows from the horizon is a power of 2, and for no model smaller than the longest
    row.
    """
    recipe = config.numbers
    if recipe.total_batch_size:
        return recipe.total_batch_size
    best = REFERENCE_BATCH * _horizon_ratio(config, recipe, model) ** BATCH_EXPONENT
    return int(2 ** round(math.log2(best)))


def step_rows(config: RunConfig, context: int, tokens_per_step: int) -> int:
    """Return the number of rows of ``context`` tokens in a step.

    Raises:
        ConfigError: it is not whole, or not a multiple of the device batch size in the settings.
    """
    device_batch_size = config.device_batch_size or 1
    rows, left = divmod(tokens_per_step, context)
    if not left and rows % device_batch_size == 0:
        return rows
    unit = f"a row's {context:,} tokens"
    if device_batch_size > 1:
        tokens = device_batch_size * context
        unit = f"{counted(device_batch_size, 'rows')} of {context:,} tokens ({tokens:,})"
    problem = f"A total batch of {tokens_per_step:,} tokens is not a multiple of {unit}."
    if left:
        below, above = max(1, rows // device_batch_size), rows // device_batch_size + 1
        totals = sorted({n * device_batch_size * context for n in (below, above)})
        raise ConfigError(problem, f"Use `total_batch_size` {' or '.join(str(n) for n in totals)}.")
    divisors = [str(n) for n in range(1, min(rows, 64) + 1) if rows % n == 0]
    raise ConfigError(problem, f"Use `device_batch_size` {', '.join(divisors)}.")


def evaluation_rows(config: RunConfig, context: int, tokens_per_step: int) -> int:
    """Return the largest number of rows of ``context`` tokens in an evaluation, at least one."""
    tokens = config.eval_tokens or config.evaluation_steps * tokens_per_step
    return max(1, tokens // context)


def _weight_decay(
    config: PretrainConfig, recipe: Recipe, model: GPTConfig, tokens_per_step: int
) -> float:
    """Return the weight decay.

    One that is transferred keeps batch / (learning rate * decay * horizon) as it is at the
    reference depth (https://arxiv.org/abs/2405.13698), even if the settings give the number of
    steps.
    """
    if not recipe.transferred:
        return recipe.weight_decay
    by_batch = math.sqrt(tokens_per_step / REFERENCE_BATCH)
    return recipe.weight_decay * by_batch / _horizon_ratio(config, recipe, model)
