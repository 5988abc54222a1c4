"""What `mlxchat info` and `mlxchat train --dry-run` do."""

import sys
import time

from mlxchat import runtime
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.home import Home
from mlxchat.model.loss import chunk_size
from mlxchat.plan.budget import reason
from mlxchat.plan.estimate import Estimate, Room, VocabularySource, estimate
from mlxchat.plan.plan import counted_parameters, plan, refitted
from mlxchat.telemetry.events import Noted
from mlxchat.train.base import with_shape_of_base
from mlxchat.train.inputs import (
    check_documents,
    stored_tokenizer,
    vocabulary,
)
from mlxchat.train.measure import measured_plan, resources
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.resume import SavedRun
from mlxchat.ui.console import Screen, say
from mlxchat.ui.tables import Row, Section, about, flops_per_second, show
from mlxchat.ui.text import amount, as_options, memory_size

GROUPS = {  # of parameters and of learning rates, in words
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
}
NOTES = {
    "scalars": "residual, embedding, smear and backout",
    "accumulation": "the head's gradient, before it is summed",
    "activations": "in a micro-batch",
    "update": "in the optimizer's step: what Muon works on",
    "peak": "at most at one time",
    "cache": "kept for reuse beside it, at most",
}


def info(config: PretrainConfig, json: bool) -> None:
    """Show what a run with these settings would take, whether or not there is one."""
    home = Home.from_environment()
    _tell(with_shape_of_base(config, home), home, None, json, train=False)


def dry_run(config: PretrainConfig, fresh: bool, json: bool) -> None:
    """Show what `train` would do, and refuse what it would refuse: settings that cannot work or are
    not those of the saved run, data that is not there, a tokenizer of another size. Texts, and the
    arrays of a checkpoint, are not read.
    """
    home = Home.from_environment()
    config = with_shape_of_base(config, home)
    saved = None if fresh else Pretraining(config, home).saved()
    if not (saved and saved.trainer.finished):
        begun_with = (saved.trainer.data, saved.trainer.revision) if saved else ([], None)
        check_documents(config, home, *begun_with)
    if saved is None:
        stored_tokenizer(config, home)
    _tell(config, home, saved, json, train=True)


def _tell(
    config: PretrainConfig,
    home: Home,
    saved: SavedRun[PretrainConfig] | None,
    json: bool,
    *,
    train: bool,
) -> None:
    available = resources()
    source: VocabularySource = "tokenizer"
    if saved:
        step = saved.trainer.step
        made = saved.plan if saved.trainer.finished else refitted(saved.plan, config, available)
    else:
        vocab_size, source = vocabulary(config, home)
        step = None
        if config.budget:
            with Screen(stream=sys.stderr) as screen:
                screen.show(Noted(time.time(), "Measuring how fast this machine trains."))
                made = measured_plan(config, vocab_size, available, time.time(), time.time)
        else:
            made = plan(config, vocab_size, available)
    device, speed = runtime.machine().device, runtime.matmul_flops()
    limit = made.memory_limit or available.memory
    cache = runtime.cache_limit(limit, made.peak)
    room = Room(config.memory_limit, cache, runtime.machine().memory)
    if train:
        runtime.check_limits(limit, config.wired_bytes)
    facts = estimate(made, config.tag, source, step, available, room, device, speed)
    if json:
        say(facts.model_dump_json())
    else:
        because = [reason(config, made)] if made.costs else []
        preset = []
        if config.of_preset:
            preset = [f"Preset {config.preset}: {as_options(config.of_preset)}"]
        show([*heading(facts), *because, *preset], sections(facts))


def heading(facts: Estimate) -> list[str]:
    """Which model, with which vocabulary; how far it is."""
    model = facts.plan.model
    source = {
        "vocab_size": "as --vocab-size says",
        "tokenizer": "the tokenizer's",
        "default": "the default; fewer where there is little text",
    }
    lines = [
        f"{facts.tag}: {model.arch}, {model.n_layer} layers of width {model.n_embd:,}, "
        f"{amount(model.n_head, 'heads')}, context {model.sequence_len:,}",
        f"Vocabulary {model.vocab_size:,} ({source[facts.vocabulary_from]}).",
    ]
    if facts.saved_step is not None:
        lines.append(
            f"This run exists: step {facts.saved_step:,} of {facts.plan.num_iterations:,} is saved."
        )
    return lines


def sections(facts: Estimate) -> list[Section]:
    """The numbers in words."""
    return [
        Section(
            "Parameters",
            [
                *(
                    Row(GROUPS[name], f"{n:,}", NOTES.get(name, ""))
                    for name, n in facts.parameters.items()
                ),
                Row("all", f"{facts.plan.parameters:,}"),
            ],
        ),
        Section("Training", _training(facts)),
        Section("Learning rates", _rates(facts)),
        Section("Memory, as estimated", _memory(facts)),
    ]


def _training(facts: Estimate) -> list[Row]:
    made = facts.plan
    rows = f"{amount(made.device_batch_size, 'rows')} of {made.model.sequence_len:,}"
    times = "once" if made.accumulation == 1 else f"{made.accumulation:,} times, accumulated"
    again = "activations are computed again" if made.grad_checkpoint else "activations are kept"
    ratio = facts.tokens / counted_parameters(made.model)
    counted = " of matrices and head" if made.model.arch == "modern" else ""
    return [
        Row("steps", f"{made.num_iterations:,}"),
        Row("tokens", f"{facts.tokens:,}", f"{ratio:,.3g} a parameter{counted}"),
        Row("tokens a step", f"{made.tokens_per_step:,}", f"{rows}, {times}"),
        Row("checkpointing", "on" if made.grad_checkpoint else "off", again),
        Row("FLOPs a token", f"{made.flops_per_token:,}"),
        Row("FLOPs", f"{facts.total_flops:.3g}"),
        _time(facts),
    ]


def _time(facts: Estimate) -> Row:
    product = flops_per_second(facts.matmul_flops)
    speed = f"at {facts.utilisation:.0%} of a matrix product's {product}"
    if facts.saved_step is None:
        return Row("time", about(facts.seconds), speed)
    if facts.saved_step == facts.plan.num_iterations:
        return Row("time left", "none", "the run is finished")
    return Row("time left", about(facts.seconds), speed)


def _rates(facts: Estimate) -> list[Row]:
    made = facts.plan
    modern = made.model.arch == "modern"
    decayed = "of the matrices, falls to 0" if modern else "of embedding and head"
    clipped = Row("gradient norm", f"{made.grad_clip:g}", "at most")
    return [
        *(Row(GROUPS[name], f"{rate:.4g}") for name, rate in made.learning_rates.items()),
        Row("weight decay", f"{made.weight_decay:.4g}", decayed),
        clipped if made.grad_clip else Row("gradient norm", "no limit"),
        Row("warm-up", f"{made.warmup_steps:,}", "steps"),
        Row("cool-down", f"{made.warmdown_ratio:.0%}", f"of steps, to {made.final_lr_frac:.0%}"),
    ]


def _memory(facts: Estimate) -> list[Row]:
    made, sizes = facts.plan, facts.memory
    positions = made.device_batch_size * made.model.sequence_len
    chunk = min(positions, chunk_size(positions, made.model.vocab_size, made.chunk_rows))
    notes = NOTES | {"logits": f"in a micro-batch: those of {chunk:,} positions at a time"}
    spared = f"what this machine can spare of {memory_size(facts.machine_memory)}"
    given = facts.memory_limit_given and f"--memory-limit {facts.memory_limit_given}"
    return [
        *(Row(name, memory_size(n), notes.get(name, "")) for name, n in sizes.items()),
        Row("limit", memory_size(facts.memory_limit), given or spared),
    ]
