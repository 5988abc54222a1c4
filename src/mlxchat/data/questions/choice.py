"""The names of tasks, and the choice of a generated one. Quick to import, for the settings."""

import re
from dataclasses import dataclass

from mlxchat.errors import ConfigError

GENERATED = ("arithmetic", "spelling", "counting")
GSM8K = "gsm8k"
NAMED_TASKS = (*GENERATED, GSM8K)  # others are files
_CALCULATOR = "calculator"
_NAMED = re.compile(rf"({'|'.join(GENERATED)})(?:-(\d{{1,3}}))?(-{_CALCULATOR})?")


@dataclass(frozen=True)
class TaskChoice:
    """A generated task, and how difficult it is.

    Attributes:
        name: one of `GENERATED`.
        level: the difficulty, from 1; None for questions of all levels in turns.
        calculator: whether arithmetic is asked so that the calculator answers it.

    Raises:
        ConfigError: the calculator is asked for where there is no choice.

    >>> TaskChoice.parse("arithmetic-4-calculator")
    TaskChoice(name='arithmetic', level=4, calculator=True)
    >>> str(TaskChoice("spelling", 2))
    'spelling-2'
    """

    name: str
    level: int | None = None
    calculator: bool = False

    def __post_init__(self) -> None:
        if self.calculator and self.name != "arithmetic":
            raise ConfigError(
                f"{self.name} has no variant with the calculator; only arithmetic has one.",
                "Leave it out.",
            )

    def __str__(self) -> str:
        level = "" if self.level is None else f"-{self.level}"
        return f"{self.name}{level}{f'-{_CALCULATOR}' if self.calculator else ''}"

    @classmethod
    def parse(cls, text: str) -> "TaskChoice | None":
        """Return the task that a text such as ``arithmetic-4-calculator`` names; None if none."""
        named = _NAMED.fullmatch(text)
        if not named:
            return None
        name, level, calculator = named.groups()
        return cls(name, int(level) if level else None, bool(calculator))
