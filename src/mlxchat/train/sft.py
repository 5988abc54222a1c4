"""Supervised fine-tuning: a model learns to answer, from conversations."""

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from mlxchat.checkpoint import catalog, history, layout
from mlxchat.config.sft import SftConfig
from mlxchat.data.chats.identity import Identity
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.chats.sources import parse
from mlxchat.data.loader import LoaderState
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.optim import schedule
from mlxchat.plan.memory import Capacity
from mlxchat.plan.plan import Plan
from mlxchat.runtime import machine
from mlxchat.telemetry.events import Clock, Event, Noted, Report
from mlxchat.telemetry.meter import Meter
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message
from mlxchat.train.conduct import conduct
from mlxchat.train.learner import Learner, hold_memory, load_optimizer, new_optimizer
from mlxchat.train.saved import SavedRun, read_saved
from mlxchat.train.sft_plan import pretrained, sft_plan, survey
from mlxchat.train.stage import Stage

SET_ASIDE = re.compile(r"\.(good|old)\d+$")  # the name of a run that was


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
    return conduct(FineTuning(with_source(config, home), home, report, clock), meter, stop, fresh)


def with_source(config: SftConfig, home: Home) -> SftConfig:
    """The settings with a model to begin with: where they leave it open, that of a run to go on
    with which was begun with the same settings, or else the base model saved last.

    Raises:
        MlxchatError: there is no base model.
    """
    if config.source is not None:
        return config
    for name, folder in catalog.newest_steps([home.finetuned]):
        with suppress(MlxchatError, KeyError, ValidationError):  # not to be gone on with
            trainer = layout.read_trainer(folder)
            same = config.model_copy(update={"source": trainer.settings["source"]})
            unfinished = trainer.step < Plan.model_validate(trainer.plan).num_iterations
            if unfinished and same.tag == name and not same.differences(trainer.settings):
                return same
    whole = {
        folder.stat().st_mtime: name
        for name, folder in catalog.newest_steps([home.runs])
        if not (SET_ASIDE.search(name) or layout.is_quantized(folder))
    }
    if not whole:
        raise MlxchatError(
            f"There is no base model in {home.runs}.",
            "Make one: mlxchat quickstart, or mlxchat train",
        )
    return config.model_copy(update={"source": whole[max(whole)]})


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


class FineTuning(Stage[SftConfig, ChatDocuments]):
    """The stage after pretraining."""

    name = layout.FINE_TUNING

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
        config = self.config
        folder = catalog.find_model(self.home.stages, config.source, config.step)
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
        past = history.read(folder)
        return Learner(made, stored.tokenizer, stored.model, optimizer, 0, LoaderState(), past)

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
