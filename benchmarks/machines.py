"""What fits where, by the estimate: nothing is measured, so this runs anywhere.

    python benchmarks/machines.py

Prints how `mlxchat train` would compute models of several depths within the memory that machines
have for their GPU, two thirds of all (classic, vocabulary 65,536, context 2,048, bfloat16), what
inference holds, and what `mlxchat train --budget` would choose on Macs that train at a third of
their data sheet's speed, from text that never ends.
"""

import rounds

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.errors import MlxchatError
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import flops_per_token, parameters
from mlxchat.plan.budget import budgeted_plan
from mlxchat.plan.division import fit
from mlxchat.plan.memory import Resources
from mlxchat.runtime import PEAK_FLOPS

LIMITS = {8: 5, 16: 11, 24: 16, 36: 24, 64: 42}  # GB, of memory and for training
DEPTHS = (12, 16, 20, 26)
VOCABULARY, CONTEXT, TOKENS = 65_536, 2048, 2**19
VALUE_BYTES = 2
CHIPS = {8: "M1", 16: "M2", 24: "M4", 36: "M3 Max", 64: "M4 Max"}  # sold with that many GB
SHARE = 1 / 3  # of the data sheet's FLOP/s; not measured
BUDGETS = {"1h": 3600, "8h": 8 * 3600}
HORIZONS = (4, 6, 8, 12)  # depths to train as long as nanochat would


def main() -> None:
    """Print all tables."""
    rows = []
    for memory, limit in LIMITS.items():
        row = {"memory": f"{memory} GB", "limit": f"{limit} GB"}
        rows.append(row | {f"depth {depth}": division(depth, memory, limit) for depth in DEPTHS})
    print(rounds.table(rows))
    print()
    print(rounds.table([inference(depth) for depth in DEPTHS]))
    print()
    print(rounds.table([choices(memory, limit) for memory, limit in LIMITS.items()]))
    print()
    print(rounds.table([horizons(memory) for memory in LIMITS]))


def division(depth: int, memory: int, limit: int) -> str:
    """How training would be computed, in words."""
    config = PretrainConfig(depth=depth, memory_limit=f"{limit}GB")
    resources = Resources(memory * 10**9, VALUE_BYTES, "windows", 1024)
    model = GPTConfig.from_depth(depth, VOCABULARY, CONTEXT)
    try:
        chosen = fit(config, model, TOKENS // CONTEXT, resources)
    except MlxchatError:
        return "no"
    rows = f"{chosen.device_batch_size} row{'s' if chosen.device_batch_size > 1 else ''}"
    return f"{rows}, checkpointing" if chosen.grad_checkpoint else rows


def inference(depth: int) -> dict[str, str]:
    """What is held to generate with, in the compute dtype."""
    model = GPTConfig.from_depth(depth, VOCABULARY, CONTEXT)
    held = VALUE_BYTES * sum(parameters(model).values())
    cache = VALUE_BYTES * 2 * depth * CONTEXT * model.kv_dim
    return {
        "depth": str(depth),
        "parameters": f"{held / 1e6:,.0f} MB",
        "keys and values of the whole context": f"{cache / 1e6:,.0f} MB",
    }


def choices(memory: int, limit: int) -> dict[str, str]:
    """The model that training within each budget would choose on a Mac, in words."""
    row = {"Mac": f"{CHIPS[memory]}, {memory} GB"}
    for budget, seconds in BUDGETS.items():
        config = PretrainConfig(budget=budget, memory_limit=f"{limit}GB")
        resources = Resources(memory * 10**9, VALUE_BYTES, "windows", 1024)
        plan = budgeted_plan(
            config, None, resources, lambda left=seconds: left, speed(memory), lambda _: None
        )
        model, millions = plan.model, round(plan.tokens / 1e6)
        row[f"train --budget {budget}"] = (
            f"{model.n_layer} x {model.n_embd}, vocabulary {model.vocab_size:,}, context "
            f"{model.sequence_len:,}, {millions:,} million tokens in {plan.peak / 1e9:.1f} GB"
        )
    return row


def horizons(memory: int) -> dict[str, str]:
    """The time that a Mac would take for nanochat's 20 tokens per parameter."""
    row = {"Mac": f"{CHIPS[memory]}, {memory} GB"}
    for depth in HORIZONS:
        model = GPTConfig.from_depth(depth, VOCABULARY, CONTEXT)
        flops = 20 * sum(parameters(model).values()) * flops_per_token(model)
        row[f"train --depth {depth}"] = f"{flops / speed(memory) / 3600:,.0f} hours"
    return row


def speed(memory: int) -> float:
    """The FLOP/s presumed for training on the Mac that has so many GB."""
    return SHARE * PEAK_FLOPS[f"Apple {CHIPS[memory]}"]


if __name__ == "__main__":
    rounds.explain(main)
