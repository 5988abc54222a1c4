"""Logs of runs that never ran, and homes that hold them."""

import random
import shutil
from collections.abc import Iterable
from pathlib import Path

from mlxchat.home import Home
from mlxchat.telemetry.events import (
    CoreMeasured,
    Ended,
    Evaluated,
    Event,
    Judged,
    Memory,
    Noted,
    Position,
    Rewarded,
    Sampled,
    Started,
    Stepped,
    event_to_json,
)
from support.saved_runs import RUNS

BEGAN = 1_790_000_000.0
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='hacked = 2'> \"&amp; \x1b[2J"
)
TASKS = ("copa", "squad", HOSTILE)


def started(tag: str, step: int = 0, total: int = 100, time: float = BEGAN) -> Started:
    return Started(
        time,
        tag,
        step,
        total,
        tokens_per_step=2048,
        flops_per_token=3_000_000,
        peak_flops=1e12,
        device="Apple M9",
        parameters=500_000,
        python="3.12.3",
        system="macOS 26.1, arm64",
    )


def stepped(step: int, loss: float, seconds: float = 0.5, waited: float | None = None) -> Stepped:
    memory = Memory(10**9, 2 * 10**9, 10**8, 8 * 10**9, 16 * 10**9, "normal")
    return Stepped(BEGAN + step, step, loss, 0.02, 0.5, seconds, Position(1, 0, 1), memory, waited)


def evaluated(step: int, bits: float) -> Evaluated:
    return Evaluated(BEGAN + step, step, bits, bits * 2.5, 8192, 1.0)


def pretraining(
    tag: str, steps: int = 100, worse: float = 0.0, resume_at: int = 0, end: bool = True
) -> list[Event]:
    """The events of a run whose bits per byte fall from 3 to about 1."""
    chance, events = random.Random(tag), list[Event]([started(tag, total=steps)])
    for step in range(1, steps + 1):
        loss = 2.5 + 5 / step + worse + chance.gauss(0, 0.02)
        events.append(stepped(step, loss))
        if step % 10 == 0:
            events.append(evaluated(step, 1 + 2 / step + worse))
        if step % 20 == 0:
            prompts = ("The cow says", HOSTILE)
            events += [Sampled(BEGAN + step, step, p, f" moo {HOSTILE}") for p in prompts]
        if step == resume_at:
            events.append(started(tag, step, steps, BEGAN + step))
    centered = dict.fromkeys(TASKS, 0.25)
    events.append(CoreMeasured(BEGAN + steps, steps, 0.21, 0.01, 500, 60.0, centered))
    events.append(Noted(BEGAN + steps, f"A note. {HOSTILE}"))
    return [*events, Ended(BEGAN + steps, steps, "finished")] if end else events


def reinforcement(tag: str, steps: int = 20) -> list[Event]:
    """The events of a run of reinforcement learning."""
    events: list[Event] = [started(tag, total=steps)]
    for step in range(1, steps + 1):
        right = step / (steps + 1)
        events.append(
            Rewarded(BEGAN + step, step, right, right, 0.1, 0.2, 12.5, 0.05, 0.7, 800, 900, 0.2)
        )
        events.append(stepped(step, 0.01))
        if step % 5 == 0:
            interval = (right, right - 0.1, right + 0.1)
            events.append(Judged(BEGAN + step, step, 60, 8, right, *interval, *interval, 12.0, 3.0))
            events.append(Sampled(BEGAN + step, step, "2+2?\n", "4", 1.0))
    return [*events, Ended(BEGAN + steps, steps, "finished")]


def write_log(home: Path, tag: str, events: Iterable[Event], tail: bytes = b"") -> Path:
    """Write the log of a run, and what follows its last event."""
    path = Home(home).log(tag)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{event_to_json(e)}\n" for e in events).encode() + tail)
    return path


def saved_run(home: Path, name: str) -> str:
    """Copy a run of ``golden/runs`` into a home; return its name there."""
    shutil.copytree(RUNS / name, home, dirs_exist_ok=True)
    return {"sft": "classic-sft"}.get(name, name)
