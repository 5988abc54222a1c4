"""Where things lie on disk: one folder, ``$MLXCHAT_HOME``, by default ``~/.cache/mlxchat``."""

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DATASET = "fineweb-edu"  # nanochat's first; a row of data/shards.py describes it


@dataclass(frozen=True)
class Home:
    """The folder that holds data, tokenizers, checkpoints and logs. Nothing here creates one."""

    root: Path

    @classmethod
    def from_environment(cls) -> "Home":
        """``$MLXCHAT_HOME``, else ``$XDG_CACHE_HOME/mlxchat``, else ``~/.cache/mlxchat``."""
        if configured := os.environ.get("MLXCHAT_HOME"):
            return cls(Path(configured).expanduser().absolute())
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(cache) / "mlxchat")

    def data(self, dataset: str) -> Path:
        """The folder of a dataset's shards; for the default one it is nanochat's, ``base_data``."""
        return self.root / ("base_data" if dataset == DEFAULT_DATASET else f"base_data_{dataset}")

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that runs use unless told otherwise."""
        return self.root / "tokenizer"

    @property
    def runs(self) -> Path:
        """The folder with a folder of saved steps for each pretraining run."""
        return self.root / "base_checkpoints"

    @property
    def finetuned(self) -> Path:
        """The folder with a folder of saved steps for each run of fine-tuning."""
        return self.root / "chatsft_checkpoints"

    @property
    def stages(self) -> tuple[Path, ...]:
        """The folders of all runs; a name is that of one run only, whatever its stage."""
        return self.runs, self.finetuned

    def run(self, tag: str) -> Path:
        """The folder of a run's saved steps, among the pretraining runs where there is none."""
        return next((runs / tag for runs in self.stages if (runs / tag).is_dir()), self.runs / tag)

    def log(self, tag: str) -> Path:
        """The file with one JSON object per event of a run."""
        return self.root / "logs" / tag / "metrics.jsonl"

    def kernels(self, mlx: str) -> Path:
        """The folder of the CUDA kernels that a version of MLX has compiled."""
        return self.root / "kernels" / mlx
