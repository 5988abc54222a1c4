"""Names for settings: what each stands for, declared once. Pure."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

Preset = Literal["low-memory", "ultra-low", "quick", "test"]

PRESETS: dict[Preset, dict[str, Any]] = {
    "low-memory": {"memory_limit": "least"},
    "ultra-low": {"memory_limit": "least", "max_seq_len": 512},
    "quick": {
        "num_iterations": 100,
        "total_batch_size": 16_384,
        "eval_every": 50,
        "model_tag": "quick",
    },
    "test": {
        "num_iterations": 2,
        "total_batch_size": 8192,
        "eval_tokens": 8192,
        "model_tag": "test",
    },
}
assert tuple(PRESETS) == get_args(Preset)


def options(settings: Mapping[str, Any]) -> str:
    """Settings as one would give them: ``--memory-limit least --max-seq-len 512``."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def described() -> str:
    """All presets with what they stand for."""
    return "; ".join(f"{name} is {options(settings)}" for name, settings in PRESETS.items())
