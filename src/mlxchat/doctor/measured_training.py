"""Times training steps: without a memory limit, held to the plan's limit, and wired."""

import time
from collections.abc import Callable

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.doctor.probes import Pace, Steps
from mlxchat.plan.plan import Plan, plan
from mlxchat.runtime import hold_memory, machine, mx
from mlxchat.train.measure import resources, synthetic_step
from mlxchat.train.step import compile_step

COUNT = 20  # steps of each kind
AT_A_TIME = 4  # steps of a kind before those of the next, so that other programs slow all kinds
STEPS_SECONDS = 12.0  # from the second step on, after which no further round of kinds begins


def take_steps(count: int = COUNT, depth: int | None = None) -> Steps:
    """Train a new model on one batch, in turn without a memory limit and with it.

    Args:
        count: the number of steps of each kind.
        depth: of the model; by default 2 on a CPU and 4 on a GPU.
    """
    on_cpu = machine().backend == "cpu"
    made = _plan(depth or (2 if on_cpu else 4), 3 * count)
    kinds: dict[str, Callable[[], object]] = {
        "free": _free(),
        "held": lambda: hold_memory(made.memory_limit, made.peak, None),
    }
    if machine().backend == "metal":
        kinds["wired"] = lambda: hold_memory(made.memory_limit, made.peak, "auto")
    launch = compile_step(synthetic_step(made))
    losses = list[float]()

    def step() -> float:
        start = time.perf_counter()
        loss, _, _ = launch(len(losses) + 1).read()
        losses.append(loss)
        return time.perf_counter() - start

    first, begun = step(), time.perf_counter()
    paces = {kind: Pace(seconds=float("inf"), peak=0) for kind in kinds}
    for done in range(0, count, AT_A_TIME):
        for kind, apply in kinds.items():
            apply()
            mx.reset_peak_memory()
            seconds = min(step() for _ in range(min(AT_A_TIME, count - done)))
            paces[kind] = paces[kind].or_better(Pace(seconds=seconds, peak=mx.get_peak_memory()))
            kinds["free"]()
        if time.perf_counter() - begun > STEPS_SECONDS:
            break
    return Steps(
        first_seconds=first,
        count=len(losses),
        tokens=made.tokens_per_step,
        first_loss=losses[0],
        last_loss=losses[-1],
        free=paces["free"],
        held=paces["held"],
        wired=paces.get("wired"),
    )


def _free() -> Callable[[], None]:
    """Return a function that sets the limits back to what they are now."""
    memory, cache = mx.set_memory_limit(0), mx.set_cache_limit(0)

    def apply() -> None:
        mx.set_memory_limit(memory)
        mx.set_cache_limit(cache)
        if machine().backend == "metal":
            mx.set_wired_limit(0)

    apply()
    return apply


def _plan(depth: int, count: int) -> Plan:
    """Return the plan of a classic model of that depth: a step is one micro-batch of 8 rows."""
    context = 64 * depth
    settings = PretrainConfig(
        depth=depth,
        max_seq_len=context,
        device_batch_size=8,
        total_batch_size=8 * context,
        num_iterations=count,
    )
    return plan(settings, 512 * depth, resources())
