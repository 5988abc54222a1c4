"""What fits where, by the estimate: nothing is measured, so this runs anywhere.

    python benchmarks/machines.py

Prints how `mlxchat train` would compute models of several depths within the memory that machines
have for their GPU, two thirds of all (classic, vocabulary 65,536, context 2,048, bfloat16), and
what inference holds.
"""

import rounds

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.errors import MlxchatError
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import parameters
from mlxchat.plan.division import fit
from mlxchat.plan.memory import Resources

LIMITS = {8: 5, 16: 11, 24: 16, 36: 24}  # GB, of memory and for training
DEPTHS = (12, 16, 20, 26)
VOCABULARY, CONTEXT, TOKENS = 65_536, 2048, 2**19
VALUE_BYTES = 2


def main() -> None:
    """Print both tables."""
    rows = []
    for memory, limit in LIMITS.items():
        row = {"memory": f"{memory} GB", "limit": f"{limit} GB"}
        rows.append(row | {f"depth {depth}": division(depth, memory, limit) for depth in DEPTHS})
    print(rounds.table(rows))
    print()
    print(rounds.table([inference(depth) for depth in DEPTHS]))


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


if __name__ == "__main__":
    rounds.explain(main)
