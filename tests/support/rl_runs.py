"""Small runs of reinforcement learning: a model of random weights, and a reward that it can get."""

import json
from pathlib import Path

from mlxchat.config.rl import RlConfig
from mlxchat.home import Home
from mlxchat.model.config import Architecture
from mlxchat.telemetry.events import Event, Stepped
from mlxchat.train.rl import run_reinforcement
from support.models import network, saved_in

REWARD = """
def reward(prompt, completion, answer):
    return sum(character in "abcdefghijklmnop" for character in completion) / 8
"""


def rl_config(folder: Path, arch: Architecture = "classic", **settings: object) -> RlConfig:
    """Settings of a run, whose model and reward are written into a folder first."""
    if not (folder / "model").exists():
        saved_in(folder / "model", network(64, arch))
    (folder / "reward.py").write_text(REWARD, "utf-8")
    rows = [json.dumps({"question": f"Question {n}?", "answer": f"{n}"}) for n in range(30)]
    (folder / "questions.jsonl").write_text("\n".join(rows), "utf-8")
    usual = {
        "source": str(folder / "model"),
        "task": str(folder / "questions.jsonl"),
        "reward": [f"{folder / 'reward.py'}:reward"],
        "examples": 4,
        "samples": 4,
        "pass_size": 2,
        "max_tokens": 8,
        "top_k": 50,
        "device_batch_size": 4,
        "num_iterations": 4,
        "eval_every": 0,
        "eval_questions": 3,
        "eval_samples": 2,
        "sample_every": 0,
        "save_every": 2,
        "model_tag": "run",
    }
    return RlConfig.model_validate(usual | settings)


def rl_run(home: Path, config: RlConfig, stop_at: int = 0, **keywords: bool) -> list[Event]:
    """All events of a run that is asked to stop once step ``stop_at`` is seen."""
    seen: list[Event] = []

    def stop() -> bool:
        return bool(stop_at) and any(
            isinstance(event, Stepped) and event.step >= stop_at for event in seen
        )

    for event in run_reinforcement(config, Home(home), lambda _: None, stop=stop, **keywords):
        seen.append(event)
    return seen


def killed_settings(folder: Path) -> dict[str, object]:
    config = rl_config(folder, num_iterations=16, eval_every=7, save_every=2)
    return config.model_dump(mode="json", exclude_unset=True) | {"keep": 2}
