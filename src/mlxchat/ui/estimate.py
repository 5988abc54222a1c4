"""The tables of `mlxchat info` and `mlxchat train --dry-run`: an estimate, in words."""

from collections.abc import Mapping

from mlxchat.counts import flops_per_second, round_size
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import chunk_size
from mlxchat.plan.estimate import Estimate
from mlxchat.plan.plan import counted_parameters
from mlxchat.ui.tables import Row, Section, about
from mlxchat.ui.text import amount, as_options

GROUP_LABELS = {  # groups of parameters and of learning rates; others are shown by their own name
    "wte": "embedding",
    "embedding": "embedding",
    "lm_head": "head",
    "unembedding": "head",
    "matrices": "matrices",
    "matrix": "matrices",
    "value_embeds": "value embeddings",
    "scalars": "scalars",
    "resid": "residual scalars",
    "x0": "embedding scalars",
    "smear": "smear and backout",
    "adapter": "adapter",
}
NOTES = {
    "frozen": "the model's weights, which are not trained",
    "scalars": "residual, embedding, smear and backout",
    "accumulation": "the head's gradient, before it is summed",
    "activations": "in a micro-batch",
    "update": "temporary arrays in the optimizer's step",
    "peak": "the maximum at any one time",
    "cache": "additional memory kept for reuse, at most",
}
VOCABULARY_SOURCES = {
    "vocab_size": "set by `vocab_size`",
    "tokenizer": "the tokenizer's",
    "default": "the default; smaller if there is little text",
}


def estimate_heading(facts: Estimate) -> list[str]:
    """Return the lines that name the model, its vocabulary, and the checkpoint."""
    model = facts.plan.model
    source = VOCABULARY_SOURCES[facts.vocabulary_from]
    lines = [
        model_heading(facts.tag, model),
        as_options(f"Vocabulary {model.vocab_size:,} ({source})."),
    ]
    if facts.saved_step is not None:
        lines.append(
            f"This run exists; its newest checkpoint is step {facts.saved_step:,} of "
            f"{facts.plan.num_iterations:,}."
        )
    return lines


def model_heading(tag: str, model: GPTConfig) -> str:
    """Return the line that names a model and its shape."""
    return (
        f"{tag}: {model.arch}, {amount(model.n_layer, 'layers')} of width {model.n_embd:,}, "
        f"{amount(model.n_head, 'heads')}, context {model.sequence_len:,}"
    )


def parameter_rows(groups: Mapping[str, int]) -> list[Row]:
    """Return the parameters of a model by group, and all of them."""
    rows = [
        Row(GROUP_LABELS.get(name, name), f"{count:,}", NOTES.get(name, ""))
        for name, count in groups.items()
    ]
    return [*rows, Row("all", f"{sum(groups.values()):,}")]


def estimate_sections(facts: Estimate) -> list[Section]:
    """Return the numbers, section by section."""
    parameters = parameter_rows(facts.parameters)
    if adapter := facts.plan.adapter:
        parameters.append(
            Row("adapter", f"{adapter.parameters:,}", "in addition; only these are trained")
        )
    return [
        Section("Parameters", parameters),
        Section("Training", _training(facts)),
        Section("Learning rates", _rates(facts)),
        Section("Estimated memory", _memory(facts)),
    ]


def _training(facts: Estimate) -> list[Row]:
    plan = facts.plan
    rows = f"{amount(plan.device_batch_size, 'rows')} of {plan.model.sequence_len:,}"
    batches = amount(plan.accumulation, "micro-batches")
    activations = "activations are recomputed" if plan.grad_checkpoint else "activations are kept"
    ratio = facts.tokens / counted_parameters(plan.model)
    counted = " of matrices and head" if plan.model.arch == "modern" else ""
    return [
        Row("steps", f"{plan.num_iterations:,}"),
        Row("tokens", f"{facts.tokens:,}", f"{ratio:,.3g} per parameter{counted}"),
        Row("tokens per step", f"{plan.tokens_per_step:,}", f"{batches} of {rows}"),
        *_ranks(facts),
        Row("checkpointing", "on" if plan.grad_checkpoint else "off", activations),
        Row("FLOPs per token", f"{plan.flops_per_token:,}"),
        Row("FLOPs", f"{facts.total_flops:.3g}"),
        _time(facts),
    ]


def _ranks(facts: Estimate) -> list[Row]:
    """Return how the rows of a step are divided among several ranks."""
    if facts.ranks == 1:
        return []
    each = facts.plan.per_rank(facts.ranks)
    rows = f"{amount(each.device_batch_size, 'rows')} of {facts.plan.model.sequence_len:,}"
    said = f"each with {amount(each.accumulation, 'micro-batches')} of {rows}"
    return [Row("ranks", str(facts.ranks), said)]


def _time(facts: Estimate) -> Row:
    product = flops_per_second(facts.matmul_flops)
    speed = f"at {facts.utilisation:.0%} of a matrix product's {product}"
    if facts.saved_step is None:
        return Row("time", about(facts.seconds), speed)
    if facts.saved_step == facts.plan.num_iterations:
        return Row("time left", "none", "the run is finished")
    return Row("time left", about(facts.seconds), speed)


def _rates(facts: Estimate) -> list[Row]:
    plan = facts.plan
    modern = plan.model.arch == "modern"
    decayed = "on matrices, falling to 0" if modern else "on embedding and head"
    clipped = Row("gradient norm", f"{plan.grad_clip:g}", "at most")
    return [
        *(
            Row(GROUP_LABELS.get(name, name), f"{rate:.4g}")
            for name, rate in plan.learning_rates.items()
        ),
        Row("weight decay", f"{plan.weight_decay:.4g}", "" if plan.adapter else decayed),
        clipped if plan.grad_clip else Row("gradient norm", "no limit"),
        Row("warm-up", f"{plan.warmup_steps:,}", "steps"),
        Row("dropout", f"{plan.dropout:.2g}" if plan.dropout else "none"),
        Row("cool-down", f"{plan.warmdown_ratio:.0%}", f"of steps, to {plan.final_lr_frac:.0%}"),
    ]


def _memory(facts: Estimate) -> list[Row]:
    plan = facts.plan
    positions = plan.device_batch_size * plan.model.sequence_len
    chunk = min(positions, chunk_size(positions, plan.model.vocab_size, plan.chunk_rows))
    notes = NOTES | {"logits": f"in a micro-batch, {chunk:,} positions at a time"}
    each = " for each rank" if facts.ranks > 1 else ""
    spare = f"what this machine can spare{each} of {round_size(facts.machine_memory)}"
    given = facts.memory_limit_given and as_options(f"`memory_limit={facts.memory_limit_given}`")
    return [
        *(Row(name, round_size(size), notes.get(name, "")) for name, size in facts.memory.items()),
        Row("limit", round_size(facts.memory_limit), given or spare),
    ]
