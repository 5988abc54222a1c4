"""What `mlxchat info` and `mlxchat train --dry-run` do."""

import time

from mlxchat import runtime
from mlxchat.home import Home
from mlxchat.train.budget import reason
from mlxchat.train.forecast import Forecast, VocabularySource, forecast
from mlxchat.train.inputs import SavedRun, saved_run, stored_tokenizer, vocabulary
from mlxchat.train.plan import Costs
from mlxchat.train.pretrain import capacity
from mlxchat.train.probe import planned
from mlxchat.train.settings import PretrainConfig
from mlxchat.ui.bars import amount, memory_size
from mlxchat.ui.console import say
from mlxchat.ui.plans import Row, Section, about, flops_per_second, show

GROUPS = {  # of parameters, in words
    "wte": "embedding",
    "value_embeds": "value embeddings",
    "lm_head": "head",
}
WORKING = {  # memory that is not held throughout
    "accumulation": "sum of gradients; while a micro-batch is computed",
    "activations": "with the loss's logits; while a micro-batch is computed",
    "update": "new values beside the old; while the optimizer takes its step",
}


def info(config: PretrainConfig, json: bool) -> None:
    """Show what a run with these settings would take, whether or not there is one."""
    _tell(config, Home.from_environment(), None, json)


def dry_run(config: PretrainConfig, fresh: bool, json: bool) -> None:
    """Show what `train` would do; what it would refuse is refused."""
    home = Home.from_environment()
    saved = None if fresh else saved_run(config, home)
    if saved is None:
        stored_tokenizer(config, home)
    _tell(config, home, saved, json)


def _tell(config: PretrainConfig, home: Home, saved: SavedRun | None, json: bool) -> None:
    available = capacity()
    source: VocabularySource = "tokenizer"
    if saved:
        made, step = saved.plan, saved.trainer.step
    else:
        vocab_size, source = vocabulary(config, home)
        made, step = planned(config, vocab_size, available, time.time(), time.time), None
    device, speed = runtime.machine().device, runtime.matmul_flops()
    facts = forecast(made, config.tag, source, step, available, device, speed)
    if made.costs:
        facts = measured(facts, made.costs)
    if json:
        say(facts.model_dump_json())
    else:
        because = [reason(config, made)] if made.costs else []
        show([*heading(facts), *because], sections(facts))


def measured(facts: Forecast, costs: Costs) -> Forecast:
    """The forecast with the time that steps were measured to take in the estimate's place."""
    seconds = costs.step * facts.plan.num_iterations
    utilisation = facts.total_flops / seconds / facts.matmul_flops
    return facts.model_copy(update={"seconds": seconds, "utilisation": utilisation})


def heading(facts: Forecast) -> list[str]:
    """Which model, with which vocabulary; how far it is."""
    model = facts.plan.model
    source = {
        "--vocab-size": "as --vocab-size says",
        "tokenizer": "the tokenizer's",
        "default": "the default; fewer where there is little text",
    }
    lines = [
        f"{facts.tag}: {model.arch}, {model.n_layer} layers of width {model.n_embd:,}, "
        f"{model.n_head} heads, context {model.sequence_len:,}",
        f"Vocabulary {model.vocab_size:,} ({source[facts.vocabulary_from]}).",
    ]
    if facts.saved_step is not None:
        lines.append(
            f"This run exists: step {facts.saved_step:,} of {facts.plan.num_iterations:,} is saved."
        )
    return lines


def sections(facts: Forecast) -> list[Section]:
    """The numbers in words."""
    return [
        Section(
            "Parameters",
            [
                *(Row(GROUPS.get(name, name), f"{n:,}") for name, n in facts.parameters.items()),
                Row("all", f"{facts.plan.parameters:,}"),
            ],
        ),
        Section("Training", _training(facts)),
        Section("Learning rates", _rates(facts)),
        Section("Memory, roughly", _memory(facts)),
    ]


def _training(facts: Forecast) -> list[Row]:
    made = facts.plan
    rows = f"{amount(made.device_batch_size, 'rows')} of {made.model.sequence_len:,}"
    times = "once" if made.accumulation == 1 else f"{made.accumulation:,} times, accumulated"
    speed = f"{facts.utilisation:.0%} of the {flops_per_second(facts.matmul_flops)}"
    return [
        Row("steps", f"{made.num_iterations:,}"),
        Row("tokens", f"{facts.tokens:,}", f"{facts.tokens / made.parameters:,.3g} a parameter"),
        Row("tokens a step", f"{made.tokens_per_step:,}", f"{rows}, {times}"),
        Row("FLOPs a token", f"{made.flops_per_token:,}"),
        Row("FLOPs", f"{facts.total_flops:.3g}"),
        Row("time", about(facts.seconds), f"(at {speed} that a matrix product reaches here)"),
    ]


def _rates(facts: Forecast) -> list[Row]:
    made = facts.plan
    modern = made.model.arch == "modern"
    decayed = "of the matrices, falls to 0" if modern else "of embedding and head"
    rows = [Row(name, f"{rate:.4g}") for name, rate in made.learning_rates.items()]
    rows += [
        Row("weight decay", f"{made.weight_decay:.4g}", decayed),
        Row("gradient norm", f"{made.grad_clip:g}" if made.grad_clip else "any", "at most"),
        Row("warm-up", f"{made.warmup_steps:,}", "steps"),
        Row("cool-down", f"{made.warmdown_ratio:.0%}", f"of steps, to {made.final_lr_frac:.0%}"),
    ]
    return rows


def _memory(facts: Forecast) -> list[Row]:
    parts = {name: size for name, size in facts.memory.items() if name != "peak"}
    rows = [Row(name, memory_size(size), WORKING.get(name, "")) for name, size in parts.items()]
    machine = f"at most at one time; this machine has {memory_size(facts.machine_memory)}"
    return [*rows, Row("peak", memory_size(facts.memory["peak"]), machine)]
