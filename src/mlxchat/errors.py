"""The exceptions of mlxchat, for the person at the keyboard and for programs that call it.

    MlxchatError
      ConfigError       a setting is wrong, or two do not go together
      DataError         text, conversations or a tokenizer cannot be used
      CheckpointError   a checkpoint or a model is damaged, incomplete or of another kind
      NotFound          no run, model, step or file has that name
      MemoryLimitError  the model does not fit into the memory
      DiskError         the disk is full, not writable or not connected
      LockedError       another process uses the run or the folder
      DivergedError     the loss or a weight is NaN or infinite
      BackendError      MLX cannot be used on this machine
        DeviceError     its device failed while it computed; a retry can work

Each says what is wrong and what to do about it. Settings are named as in Python, in backquotes:
`total_batch_size`, or `depth=4` with a value; the command line writes them as its options.
"""

import shlex
from pathlib import Path


class MlxchatError(Exception):
    """The base of all errors that a user can understand and fix.

    Args:
        problem: what is wrong, naming the file, setting or number at fault.
        remedy: what to do about it: a command where one helps.

    >>> print(MlxchatError("The disk is full.", "Delete some files."))
    The disk is full.
    Delete some files.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem


class ConfigError(MlxchatError):
    """A setting is wrong, or two settings do not go together."""


class DataError(MlxchatError):
    """Text, conversations or a tokenizer cannot be read, fetched or used."""


class CheckpointError(MlxchatError):
    """A checkpoint or a model is damaged, incomplete or of another kind than what is needed."""


class NotFound(MlxchatError):  # noqa: N818  (it reads like a name in `except mlxchat.NotFound`)
    """No run, model, checkpoint or file has the name that was given."""


class MemoryLimitError(MlxchatError):
    """The model cannot be trained or run within the memory limit."""


class DiskError(MlxchatError):
    """The disk is full, not writable or not connected."""


class LockedError(MlxchatError):
    """Another process uses the run or the folder; once it has ended, a retry can work."""


class DivergedError(MlxchatError):
    """Training stopped because the loss or a weight is NaN or infinite."""


class BackendError(MlxchatError):
    """MLX is missing a backend, or failed again and again."""


class DeviceError(BackendError):
    """MLX's device failed while it computed (memory, a watchdog, a fault); a retry can work."""


def command(name: str, *arguments: str | Path, **options: object) -> str:
    """Return a command line to paste into a terminal, with its options written as flags.

    >>> command("sft", source="d4", load_optimizer=True)
    'mlxchat sft --source d4 --load-optimizer'
    >>> command("sft", data=["a.jsonl", "b.jsonl"])
    'mlxchat sft --data a.jsonl --data b.jsonl'
    """
    words = ["mlxchat", *name.split(), *(shlex.quote(str(word)) for word in arguments)]
    for option, given in options.items():
        for value in given if isinstance(given, list) else [given]:
            words.append("--" + option.strip("_").replace("_", "-"))
            if value is not True:
                words.append(shlex.quote(str(value)))
    return " ".join(words)


def reason_of(error: Exception) -> str:
    """Return what an exception of the system or of MLX says, without its last period.

    >>> reason_of(OSError(28, "No space left on device"))
    'No space left on device'
    """
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).rstrip(".")
