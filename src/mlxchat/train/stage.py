"""A stage of training, such as pretraining: everything that differs between stages.

`STAGES` lists them. The loop (`loop`), the sequence of a run (`run`), resuming (`resume`) and the
checkpoint format are the same for all. To add a stage: its settings in ``config/NEW.py``, its
subclass of `Stage` in ``train/NEW.py``, a row in `STAGES` (``train/__init__.py``), in
`mlxchat.home.STAGE_FOLDERS` and in `mlxchat.config.stages`, and a command.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from mlxchat.checkpoint import history, trainer
from mlxchat.checkpoint.files import TRAINER
from mlxchat.checkpoint.history import History, Training
from mlxchat.checkpoint.task_results import results_of
from mlxchat.checkpoint.trainer import TrainerState
from mlxchat.config.run import RunConfig
from mlxchat.data.documents import Documents
from mlxchat.data.loader import Batch
from mlxchat.data.preparation import Preparation
from mlxchat.engine.tools import ToolUse
from mlxchat.errors import CheckpointError, ConfigError, MlxchatError
from mlxchat.home import Home
from mlxchat.optim import schedule
from mlxchat.plan.deadline import Deadline
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import Plan
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Event, Report, Sampled
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train.batches import Batches, LoadedBatches
from mlxchat.train.core import RunCore
from mlxchat.train.evaluation import Evaluation, LossEvaluation, never
from mlxchat.train.loop import ShouldStop
from mlxchat.train.resume import Config, SavedRun, TrainState, read_saved
from mlxchat.train.samples import SAMPLES, SAMPLES_ON_THE_WAY, samples
from mlxchat.train.step import Compile, Draw, compile_step
from mlxchat.train.world import ALONE, World

Corpus = TypeVar("Corpus", bound=Documents)


class Prepared(NamedTuple):
    """A new run, ready to train."""

    state: TrainState
    notes: tuple[str, ...]  # about its plan


class Stage(ABC, Generic[Config, Corpus]):
    """A stage with the settings of one run, new or saved.

    Args:
        config: the settings.
        home: where data, tokenizer, checkpoints and log are.
        report: called with the progress of downloads and the like, also from other threads.
        clock: stamps the events and measures durations.
        compile: makes the function that launches a step.
        world: the ranks that train the run together.
    """

    name: ClassVar[str]  # in trainer.json
    settings: ClassVar[type[RunConfig]]  # the class of ``config``
    on_policy: ClassVar[bool] = False  # whether the model samples what it learns from, on each rank

    def __init__(
        self,
        config: Config,
        home: Home,
        report: Report = lambda _: None,
        clock: Clock = SYSTEM_CLOCK,
        compile: Compile = compile_step,
        world: World = ALONE,
    ) -> None:
        self.config, self.home, self.report, self.clock = config, home, report, clock
        self.compile, self.world = compile, world

    @property
    def folder(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.home.stage(self.name) / self.config.tag

    # What follows from the settings

    @property
    @abstractmethod
    def begins_with(self) -> str | None:
        """The run or directory of the model that the run begins with; None: random weights."""

    @property
    def held_out_share(self) -> float | None:
        """The share of the conversations that is held out; None if there are no conversations."""
        return None

    def preparation(self, documents: Documents) -> Preparation:
        """Return how rows to train on are made of the documents."""
        return documents.preparation

    @abstractmethod
    def data_in_words(self) -> list[str]:
        """Return what the run learns from, for a model card: with licences, without paths."""

    @abstractmethod
    def learning_rates(self, plan: Plan) -> dict[str, float]:
        """Return the rates, by group, at which a later stage would fine-tune the run's model.

        They are those of pretraining, before they are scaled by the batch.
        """

    @abstractmethod
    def momentum(self, plan: Plan, step: int) -> float:
        """Return Muon's momentum after ``step`` updates."""

    def learning_rate_multiplier(self, plan: Plan, step: int) -> float:
        """Return the factor on all learning rates after ``step`` updates."""
        return schedule.learning_rate_multiplier(
            step,
            plan.num_iterations,
            plan.warmup_steps,
            plan.warmdown_ratio,
            plan.final_lr_frac,
        )

    def deadline(self, plan: Plan, started_at: float) -> Deadline | None:
        """Return what keeps the run within its time budget; None if it has none.

        Args:
            plan: the plan of the run.
            started_at: when this process started or resumed the run, by the clock's seconds.
        """
        return None

    # The parts of a run

    def saved(self) -> SavedRun[Config] | None:
        """Find the run's newest checkpoint; None if nothing of it has been saved.

        Raises:
            ConfigError: the run was started with other settings.
            DataError: it was started with other data.
            CheckpointError: it cannot be read.
        """
        try:
            return read_saved(self.folder, self.name, self.config)
        except ConfigError:
            self.require_named_data()  # a name that is mistyped explains why settings differ
            raise

    def require_named_data(self) -> None:
        """Check that the data are there which the settings name, as far as that is quick.

        Raises:
            MlxchatError: some are missing, or of a kind that cannot be used.
        """

    @abstractmethod
    def open(self, saved: SavedRun[Config] | None) -> Corpus:
        """Open the dataset: for a saved run, the one that it was started with.

        Raises:
            MlxchatError: the dataset is missing, or has changed.
        """

    @abstractmethod
    def validation(self, names: list[str]) -> Documents:
        """Open the dataset to read its validation documents, from disk only.

        Args:
            names: the files of the dataset when the run was saved.

        Raises:
            MlxchatError: they are not on disk.
        """

    def files(self, documents: Corpus) -> dict[str, str]:
        """Return what tells the dataset's files from others of the same names, by name."""
        return documents.fingerprints

    def notes(self, documents: Corpus) -> Iterable[str]:
        """Return what to tell the user about settings and data before the run starts."""
        return ()

    @abstractmethod
    def prepare(
        self, documents: Corpus, resources: Resources, started_at: float
    ) -> Generator[Event, None, Prepared]:
        """Make the model, the optimizer and the plan of a new run.

        Args:
            documents: the dataset.
            resources: the means of the machine.
            started_at: when this process started.

        Raises:
            MlxchatError: the settings cannot work, or not in that memory.
        """

    def core(self) -> RunCore | None:
        """Read what CORE is measured with during the run; None if it is not.

        Raises:
            MlxchatError: it is missing, damaged or cannot be fetched.
        """
        return None

    def batches(self, documents: Corpus, state: TrainState, stop: ShouldStop = never) -> Batches:
        """Open the training batches where the run is in the data.

        ``stop`` is asked while a batch is waited for, which then raises `Stopped`.
        """
        return LoadedBatches(
            documents.training(state.loader.cursor),
            state.tokenizer,
            state.plan.device_batch_size,
            state.plan.model.sequence_len,
            state.loader,
            stop,
            self.preparation(documents),
        )

    def evaluation(
        self,
        documents: Corpus,
        state: TrainState,
        draw: Callable[[Draw], list[Batch]] = lambda draw: draw(),
    ) -> Evaluation:
        """Return what measures the model on data that is held out.

        ``draw`` returns the first batch when all ranks have theirs: one may wait for its shard.
        """
        return LossEvaluation(documents, state, self.world, self.clock, draw)

    def sampled(self, documents: Corpus, state: TrainState, step: int) -> Iterator[Event]:
        """Yield samples of what the model writes after ``step`` steps: more after the last one."""
        model, tokenizer = state.model, state.tokenizer
        tools = partial(ToolUse, tokenizer) if documents.conversational else None
        prompts = self.prompts(tokenizer, documents)
        most = SAMPLES if step >= state.plan.num_iterations else SAMPLES_ON_THE_WAY
        for prompt, text in samples(model, tokenizer, prompts, tools, most):
            yield Sampled(self.clock(), step, prompt, text)

    def prompts(self, tokenizer: Tokenizer, documents: Corpus) -> Iterable[tuple[str, list[int]]]:
        """Return the prompts of the samples, each as text and as ids."""
        return ()

    @property
    def revision(self) -> str | None:
        """The hub's commit that the dataset's files are from; None if none is recorded."""
        return None


STAGES: dict[str, type[Stage[Any, Any]]] = {}  # by name; filled in train/__init__.py


def read_trainer(folder: Path) -> TrainerState[RunConfig]:
    """Read the trainer's state of a checkpoint, whatever its stage.

    Raises:
        CheckpointError: as `mlxchat.checkpoint.trainer.read_state`.
    """
    return trainer.read_state(folder, {name: stage.settings for name, stage in STAGES.items()})


def stage_of(state: TrainerState[RunConfig], home: Home) -> Stage[Any, Any]:
    """Return the stage of a checkpoint, with the settings of its run."""
    return STAGES[state.stage](state.settings, home)


def history_of(folder: Path, home: Home) -> History:
    """Read how the model in a directory came to be, the run that saved it included.

    What another version of mlxchat says of that run is ignored, and so are results on tasks that
    cannot be read: whoever trains on with the model needs neither.

    Raises:
        CheckpointError: the record of its import, or of the model before it, is damaged.
    """
    before = history.read_before(folder)
    with suppress(MlxchatError):
        results = results_of(home, before.tag, before.step, folder)
        before = before.model_copy(update={"results": results})
    try:
        state = read_trainer(folder)
    except MlxchatError:  # an imported model, a quantized copy, or of another version
        return before
    stage = stage_of(state, home)
    training = Training(
        run=before.tag,
        stage=state.stage,
        step=state.step,
        data=tuple(stage.data_in_words()),
        tokens=None if stage.on_policy else state.plan.tokens_per_step * state.step,
        began_with=Path(stage.begins_with).name if stage.begins_with else None,
    )
    evaluations, core = state.meter.evaluations, state.meter.core
    bits_per_byte = evaluations[-1][1] if evaluations else None
    return before.with_training(training, bits_per_byte, core[-1] if core else None)


def validation_documents(folder: Path, home: Home) -> Documents:
    """Open the validation documents of the run that saved a model, from disk only.

    Raises:
        CheckpointError: the model's directory does not say which run that was.
        MlxchatError: the documents are not on disk.
    """
    if not (folder / TRAINER).exists():
        raise CheckpointError(f"{folder} does not record what text the model was trained on.")
    state = read_trainer(folder)
    return stage_of(state, home).validation(state.data)


def share_held_out(folder: Path, home: Home) -> float | None:
    """Return the share of its conversations that a model's fine-tuning held out.

    None if it was not fine-tuned here, or by another version of mlxchat.
    """
    if not (folder / TRAINER).exists():
        return None
    try:
        state = read_trainer(folder)
    except MlxchatError:
        return None
    return stage_of(state, home).held_out_share
