"""Where things lie on disk: one folder, ``$MLXCHAT_HOME``, by default ``~/.cache/mlxchat``."""

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DATASET = "fineweb-edu"  # nanochat's first; a row of data/shards.py describes it
STAGE_FOLDERS = {  # of the runs of each stage of training; nanochat's names
    "pretraining": "base_checkpoints",
    "fine-tuning": "chatsft_checkpoints",
}


@dataclass(frozen=True)
class Home:
    """The folder that holds data, tokenizers, checkpoints and logs. Nothing here creates one."""

    root: Path

    @classmethod
    def from_environment(cls) -> "Home":
        """Return ``$MLXCHAT_HOME``, else ``$XDG_CACHE_HOME/mlxchat``, else ``~/.cache/mlxchat``."""
        if configured := os.environ.get("MLXCHAT_HOME"):
            return cls(Path(configured).expanduser().absolute())
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(cache) / "mlxchat")

    def data(self, dataset: str) -> Path:
        """Return the folder of a dataset's shards; nanochat calls its first one ``base_data``."""
        return self.root / ("base_data" if dataset == DEFAULT_DATASET else f"base_data_{dataset}")

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that runs use by default."""
        return self.root / "tokenizer"

    def stage(self, name: str) -> Path:
        """Return the folder with a folder of saved steps for each run of a stage."""
        return self.root / STAGE_FOLDERS[name]

    @property
    def runs(self) -> Path:
        """The folder with a folder of saved steps for each pretraining run."""
        return self.stage("pretraining")

    @property
    def finetuned(self) -> Path:
        """The folder with a folder of saved steps for each fine-tuning run."""
        return self.stage("fine-tuning")

    @property
    def stages(self) -> tuple[Path, ...]:
        """The folders of the runs of all stages. No two runs have the same name."""
        return tuple(map(self.stage, STAGE_FOLDERS))

    def run(self, tag: str) -> Path:
        """Return the folder of a run's saved steps; a new run's is among the pretraining runs."""
        return next((runs / tag for runs in self.stages if (runs / tag).is_dir()), self.runs / tag)

    def log(self, tag: str) -> Path:
        """The file with one JSON object per event of a run."""
        return self.root / "logs" / tag / "metrics.jsonl"

    def kernels(self, mlx: str) -> Path:
        """The folder of the CUDA kernels that a version of MLX has compiled."""
        return self.root / "kernels" / mlx
