"""What tells one kind of training from another, such as pretraining; all else is the same."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from mlxchat.config.run import RunConfig
from mlxchat.data.documents import Documents
from mlxchat.home import Home
from mlxchat.plan.budget import Deadline
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import Plan
from mlxchat.telemetry.events import Clock, Event, Report
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train.loop import Compile, compile_step
from mlxchat.train.resume import Learner, SavedRun

Config = TypeVar("Config", bound=RunConfig)
Dataset = TypeVar("Dataset", bound=Documents)


class Stage(ABC, Generic[Config, Dataset]):
    """A kind of training, with its settings.

    Args:
        config: the settings.
        home: where data, tokenizer, checkpoints and log lie.
        report: is told of downloads and the like as they progress, from other threads too.
        clock: seconds since the epoch.
        compile: makes the function that launches a step.
    """

    name: ClassVar[str]

    def __init__(
        self,
        config: Config,
        home: Home,
        report: Report,
        clock: Clock,
        compile: Compile = compile_step,
    ) -> None:
        self.config, self.home, self.report, self.clock = config, home, report, clock
        self.compile = compile

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Of the run's saved steps."""

    @abstractmethod
    def saved(self) -> SavedRun | None:
        """The run to go on with, None where nothing of it was saved.

        Raises:
            MlxchatError: it was begun with other settings or data, or cannot be read.
        """

    @abstractmethod
    def open(self, saved: SavedRun | None) -> Dataset:
        """The dataset: of a saved run, as it began with it.

        Raises:
            MlxchatError: it is not there, or another one.
        """

    @abstractmethod
    def begin(
        self, documents: Dataset, resources: Resources, begun: float
    ) -> Generator[Event, None, Learner]:
        """What learns in a new run.

        Args:
            documents: the dataset.
            resources: what the machine offers.
            begun: when this process did, by the clock.

        Raises:
            MlxchatError: the settings cannot work, or not in that memory.
        """

    @abstractmethod
    def momentum(self, plan: Plan, step: int) -> float:
        """Muon's after ``step`` updates."""

    @abstractmethod
    def prompts(self, tokenizer: Tokenizer, documents: Dataset) -> Iterable[tuple[str, list[int]]]:
        """What samples are asked for: in words, and as ids to continue."""

    @property
    def revision(self) -> str | None:
        """The hub's commit that the dataset's files are of, None where none is recorded."""
        return None

    def notes(self, documents: Dataset) -> Iterable[str]:
        """What to say at the beginning."""
        return ()

    def because(self, plan: Plan) -> Iterable[str]:
        """What to say of a new run's plan."""
        return ()

    def deadline(self, plan: Plan, begun: float) -> Deadline | None:
        """Return what keeps to the time budget, if there is one."""
        return None
