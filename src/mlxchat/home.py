"""Where files are on disk: in one folder, ``$MLXCHAT_HOME``, by default ``~/.cache/mlxchat``.

``MLXCHAT_HOME`` may begin with ``~``, and be relative to the working directory.
"""

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DATASET = "fineweb-edu"  # nanochat's first dataset; data/shards.py describes it
STAGE_FOLDERS = {  # a folder of runs for each training stage, with nanochat's names
    "pretraining": "base_checkpoints",
    "fine-tuning": "chatsft_checkpoints",
}


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME``, else ``~/.cache``.

    It may begin with ``~``. A relative path is ignored, as the specification asks:
    https://specifications.freedesktop.org/basedir-spec/latest/
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", "")).expanduser()
    return given if given.is_absolute() else Path.home() / ".cache"


@dataclass(frozen=True)
class Home:
    """The folder that holds data, tokenizers, checkpoints and logs. No method creates it."""

    root: Path

    @classmethod
    def from_environment(cls) -> "Home":
        """Return ``$MLXCHAT_HOME``, else ``$XDG_CACHE_HOME/mlxchat``, else ``~/.cache/mlxchat``."""
        if configured := os.environ.get("MLXCHAT_HOME"):
            return cls(Path(configured).expanduser().absolute())
        return cls(cache_folder() / "mlxchat")

    def data(self, dataset: str) -> Path:
        """Return the folder of a dataset's shards; nanochat's first is in ``base_data``."""
        return self.root / ("base_data" if dataset == DEFAULT_DATASET else f"base_data_{dataset}")

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that runs use by default."""
        return self.root / "tokenizer"

    def stage(self, name: str) -> Path:
        """Return the folder of a stage's runs, each a folder of saved steps."""
        return self.root / STAGE_FOLDERS[name]

    @property
    def runs(self) -> Path:
        """The folder of pretraining runs."""
        return self.stage("pretraining")

    @property
    def finetuned(self) -> Path:
        """The folder of fine-tuning runs."""
        return self.stage("fine-tuning")

    @property
    def stages(self) -> tuple[Path, ...]:
        """The folders of runs of all stages. A run's name is unique across them."""
        return tuple(map(self.stage, STAGE_FOLDERS))

    def run(self, tag: str) -> Path:
        """Return the folder of a run's saved steps; a new name is that of a pretraining run."""
        return next((runs / tag for runs in self.stages if (runs / tag).is_dir()), self.runs / tag)

    def log(self, tag: str) -> Path:
        """Return the log file of a run, with one JSON object per event."""
        return self.root / "logs" / tag / "metrics.jsonl"

    def kernels(self, mlx: str) -> Path:
        """Return the folder of CUDA kernels compiled by a version of MLX."""
        return self.root / "kernels" / mlx
