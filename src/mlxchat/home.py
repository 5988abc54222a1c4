"""The places of all files on disk: one folder, ``$MLXCHAT_HOME``, by default ``~/.cache/mlxchat``.

``MLXCHAT_HOME`` may begin with ``~``, and be relative to the working directory.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxchat.disk import require_utf8
from mlxchat.errors import ConfigError

DEFAULT_DATASET = "fineweb-edu"  # nanochat's first dataset; data/shards.py describes it
STAGE_FOLDERS = {  # a folder of runs for each training stage, with nanochat's names
    "pretraining": "base_checkpoints",
    "mid-training": "mid_checkpoints",
    "fine-tuning": "chatsft_checkpoints",
    "reinforcement learning": "chatrl_checkpoints",
}


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` or ``~name`` at its beginning as the home folder of that user.

    Raises:
        ConfigError: there is no such user, or nothing says where the home folder is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0].removeprefix("~")
        if user:
            raise ConfigError(
                f"{path} is in the home folder of {user}, but there is no such user.",
                "Write the full path. For a file of that name, put ./ before it.",
            ) from error
        raise ConfigError(
            f"{path} is in your home folder, whose location is unknown.",
            "Set HOME, or set MLXCHAT_HOME to the folder where mlxchat keeps its files.",
        ) from error


def from_anywhere(text: str, is_name: Callable[[str], object]) -> str:
    """Return a path as an absolute one, if it is there, so that a run resumes from any folder.

    Args:
        text: the path, perhaps with more behind colons, such as a weight. What is not there stays
            as it is, for an error message that quotes it.
        is_name: tells what is no path, but the name of something.
    """
    parts = text.split(":")
    for count in range(len(parts), 0, -1):
        path = ":".join(parts[:count])
        if is_name(path):
            return text
        with suppress(OSError):  # it is too long, say
            if path and expanded(path).exists():
                return ":".join([str(expanded(path).absolute()), *parts[count:]])
    return text


def from_here(path: Path) -> Path:
    """Return a path as it is typed in the working directory, if it is below that."""
    with suppress(ValueError, OSError):  # it is elsewhere, or that directory is gone
        return path.relative_to(Path.cwd())
    return path


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME``, else ``~/.cache``.

    It may begin with ``~``. A relative path is ignored, as the specification asks:
    https://specifications.freedesktop.org/basedir-spec/latest/

    Raises:
        ConfigError: the home folder is needed, and unknown.
    """
    given = expanded(os.environ.get("XDG_CACHE_HOME", ""))
    return given if given.is_absolute() else expanded("~/.cache")


@dataclass(frozen=True)
class Home:
    """The folder that holds data, tokenizers, checkpoints and logs. No method creates it."""

    root: Path

    def __post_init__(self) -> None:
        """Refuse a folder in which no model could be saved."""
        require_utf8(self.root)

    @classmethod
    def from_environment(cls) -> "Home":
        """Return ``$MLXCHAT_HOME``, else ``$XDG_CACHE_HOME/mlxchat``, else ``~/.cache/mlxchat``.

        Raises:
            ConfigError: as `expanded` does; or the folder's name is not in UTF-8.
        """
        if configured := os.environ.get("MLXCHAT_HOME"):
            return cls(expanded(configured).absolute())
        return cls(cache_folder() / "mlxchat")

    def data(self, dataset: str) -> Path:
        """Return the folder of a dataset's shards; nanochat's first is in ``base_data``."""
        return self.root / ("base_data" if dataset == DEFAULT_DATASET else f"base_data_{dataset}")

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that runs use by default."""
        return self.root / "tokenizer"

    def own_tokenizer(self, dataset: str) -> Path:
        """Return the folder of the tokenizer of a user's own text, or of the built-in corpus."""
        return self.root / f"tokenizer_{dataset}"

    def stage(self, name: str) -> Path:
        """Return the folder of a stage's runs, each a folder of checkpoints."""
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
        """Return the folder of a run's checkpoints; a new name is that of a pretraining run."""
        return next((runs / tag for runs in self.stages if (runs / tag).is_dir()), self.runs / tag)

    def stage_of(self, run: Path) -> str:
        """Return the name of the stage of which a folder is a run."""
        return next(name for name in STAGE_FOLDERS if self.stage(name) == run.parent)

    def log(self, tag: str) -> Path:
        """Return the log file of a run, with one JSON object per event."""
        return self.root / "logs" / tag / "metrics.jsonl"

    @property
    def task_data(self) -> Path:
        """The folder of the files of tasks, laid out as on the hub."""
        return self.root / "task_data"

    @property
    def eval_bundle(self) -> Path:
        """The zip file of the examples of CORE's tasks."""
        return self.root / "eval_bundle.zip"

    @property
    def base_evaluations(self) -> Path:
        """The folder of what models get right of CORE."""
        return self.root / "base_eval"

    @property
    def chat_evaluations(self) -> Path:
        """The folder of the results of models on tasks."""
        return self.root / "chat_eval"

    @property
    def reports(self) -> Path:
        """The folder of the reports of runs."""
        return self.root / "reports"

    @property
    def chat_history(self) -> Path:
        """The file of what was typed in chats."""
        return self.root / "chat_history.jsonl"

    def kernels(self, mlx: str) -> Path:
        """Return the folder of CUDA kernels compiled by a version of MLX."""
        return self.root / "kernels" / mlx

    def autotune(self, mlx: str) -> Path:
        """Return the folder of what was measured with a version of MLX, a file for each device."""
        return self.root / "autotune" / mlx
