"""Supervised fine-tuning: a model learns to answer, from conversations."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path

from mlxchat.ckpt import layout, store
from mlxchat.data.chats.documents import ChatDocuments
from mlxchat.data.chats.identity import Identity
from mlxchat.data.chats.sources import parse
from mlxchat.data.conversations import Conversation, Message
from mlxchat.data.loader import LoaderState
from mlxchat.data.tokenizer import Tokenizer
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.meter import Meter
from mlxchat.optim import schedule
from mlxchat.runtime import machine
from mlxchat.telemetry import Event, Noted
from mlxchat.train.conduct import conduct
from mlxchat.train.fitting import Capacity
from mlxchat.train.inputs import Clock, Report
from mlxchat.train.learner import Learner, hold_memory, load_optimizer, new_optimizer
from mlxchat.train.run_plan import Plan
from mlxchat.train.saved import SavedRun, read_saved
from mlxchat.train.sft_plan import FINE_TUNING, pretrained, sft_plan, survey
from mlxchat.train.sft_settings import SftConfig
from mlxchat.train.stage import Stage


def fine_tune(
    config: SftConfig,
    home: Home,
    report: Report,
    meter: Meter | None = None,
    stop: Callable[[], bool] = lambda: False,
    fresh: bool = False,
    clock: Clock = time.time,
) -> Iterator[Event]:
    """Fine-tune a model, or go on with it, as `conduct` does."""
    return conduct(FineTuning(named(config, home), home, report, clock), meter, stop, fresh)


def named(config: SftConfig, home: Home) -> SftConfig:
    """The settings with the name of the model to begin with, where they leave it open.

    Raises:
        MlxchatError: there is no base model.
    """
    if config.source is not None:
        return config
    newest = [folder for run in store.runs([home.runs]) if (folder := store.latest(run))]
    whole = [folder for folder in newest if not layout.is_quantized(folder)]
    if not whole:
        raise MlxchatError(
            f"There is no base model in {home.runs}.",
            "Make one: mlxchat quickstart, or mlxchat train",
        )
    latest = max(whole, key=lambda folder: folder.stat().st_mtime)
    return config.model_copy(update={"source": latest.parent.name})


def source_folder(config: SftConfig, home: Home) -> Path:
    """The directory of the model to begin with.

    Raises:
        MlxchatError: there is none.
    """
    if config.source is None or not Path(config.source).is_dir():
        return store.find(home.stages, config.source, config.step)
    folder = Path(config.source)
    if config.step is not None:
        return store.find([folder.resolve().parent], folder.resolve().name, config.step)
    return store.latest(folder) or folder


def chat_documents(config: SftConfig) -> ChatDocuments:
    """The conversations that the settings name.

    Raises:
        MlxchatError: they name none, or some cannot be read.
    """
    if not (config.data or config.identity or config.spelling):
        raise MlxchatError(
            "There is nothing to learn from.",
            "Name conversations with --data FILE, or --data builtin for the built-in corpus's; see "
            "also --identity and --spelling.",
        )
    return ChatDocuments(
        [parse(text) for text in config.data or ()],
        seed=config.seed,
        validation_share=config.validation_share,
        identity=Identity.parse(config.identity) if config.identity else None,
        spelling_conversations=config.spelling,
    )


class FineTuning(Stage[ChatDocuments]):
    """The stage after pretraining."""

    name = FINE_TUNING

    def __init__(self, config: SftConfig, home: Home, report: Report, clock: Clock) -> None:
        super().__init__(home, report, clock)
        self._config = config

    @property
    def config(self) -> SftConfig:
        """The settings."""
        return self._config

    @property
    def folder(self) -> Path:
        """Of the run's saved steps."""
        return self.home.finetuned / self.config.tag

    def saved(self) -> SavedRun | None:
        """The run to go on with, None where nothing of it was saved."""
        return read_saved(self.folder, self.config)

    def open(self, saved: SavedRun | None) -> ChatDocuments:
        """The conversations: of a saved run, those it began with."""
        documents = chat_documents(self.config)
        if saved:
            self._require_same_files(saved.trainer.fingerprints, documents.fingerprints)
        return documents

    def _require_same_files(self, begun: Mapping[str, str], found: Mapping[str, str]) -> None:
        changed = sorted(name for name, _ in begun.items() ^ found.items())
        if changed:
            name = changed[0]
            if name not in begun:
                fault = "is new since"
            elif name not in found:
                fault = "is not there, as it was when"
            else:
                fault = "is another file than when"
            raise MlxchatError(
                f"{name} {fault} the run {self.config.tag} began.",
                "Put things back, name another run with --model-tag, or begin anew with --fresh.",
            )

    def begin(
        self, documents: ChatDocuments, available: Capacity, begun: float
    ) -> Generator[Event, None, Learner]:
        """The pretrained model, and a plan that follows from it and the conversations."""
        config, folder = self.config, source_folder(self.config, self.home)
        base = pretrained(folder)
        tokenizer = Tokenizer.load(folder)
        found = survey(documents, tokenizer, base.model.sequence_len, self.report, self.clock)
        yield Noted(self.clock(), found.summary())
        made = sft_plan(config, base, found.rows, available)
        hold_memory(made, config, available)
        stored = layout.read_model(folder, machine().compute_dtype)
        optimizer = new_optimizer(stored.model)
        if config.load_optimizer:
            load_optimizer(optimizer, folder)
        return Learner(made, stored.tokenizer, stored.model, optimizer, 0, LoaderState())

    def momentum(self, plan: Plan, step: int) -> float:
        """Muon's after ``step`` updates: as nanochat's classic pretraining has it."""
        return schedule.muon_momentum("classic", step, plan.num_iterations, plan.warmdown_ratio)

    def prompts(
        self, tokenizer: Tokenizer, documents: ChatDocuments
    ) -> Iterable[tuple[str, list[int]]]:
        """The first questions of the conversations held out."""
        for conversation in documents.held_out:
            question = Conversation((Message("user", conversation.turns()[0].text),))
            words = f"{question.messages[0].text}\n"
            yield words, tokenizer.render_for_completion(question)

    def notes(self, documents: ChatDocuments) -> Iterable[str]:
        """Where it begins, and what became of the rows of each source."""
        yield f"The model to begin with: {self.config.source}."
        for report in documents.reports:
            yield report.summary()
