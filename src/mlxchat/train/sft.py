"""Supervised fine-tuning: a model learns to answer, from conversations.

The plan of fine-tuning: what follows from the pretrained model and the conversations.
"""

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from mlxchat.checkpoint import catalog, history, layout
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.sft import SftConfig
from mlxchat.data.chats.identity import Identity
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.chats.sources import parse
from mlxchat.data.documents import Cursor
from mlxchat.data.loader import BUFFER_CONVERSATIONS, LoaderState, answered
from mlxchat.data.packing import BestFit
from mlxchat.errors import CheckpointError, DataError, MlxchatError, NotFound
from mlxchat.home import Home
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import flops_per_token, parameters
from mlxchat.optim import schedule
from mlxchat.optim.schedule import REFERENCE_BATCH, learning_rates
from mlxchat.plan.memory import Capacity, fit
from mlxchat.plan.plan import Plan, evaluation_rows, step_rows
from mlxchat.runtime import machine
from mlxchat.telemetry.events import Clock, Event, Noted, Progressed, Report
from mlxchat.telemetry.meter import Meter
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message
from mlxchat.train.resume import (
    Learner,
    SavedRun,
    hold_memory,
    load_optimizer,
    new_optimizer,
    read_saved,
)
from mlxchat.train.run import conduct
from mlxchat.train.stage import Stage

LEAST_STEPS = 100  # that the conversations are spread over, where there are so many rows


class Base(NamedTuple):
    """What fine-tuning takes over from pretraining."""

    model: GPTConfig
    learning_rates: dict[str, float]  # at their highest, by group
    tokens_per_step: int


class Survey(NamedTuple):
    """What the conversations of an epoch come to."""

    conversations: int
    rows: int  # of the context length
    context: int
    tokens: int
    learnt: int  # of those, that the assistant says
    cut: int  # conversations longer than a row
    unanswered: int  # left out: no answer begins within a row

    def summary(self) -> str:
        """The survey in a line."""
        cut = f"; {self.cut:,} are longer than that, and cut" if self.cut else ""
        if self.unanswered:
            cut += f"; {self.unanswered:,} have no answer within that, and are left out"
        full = self.tokens / (self.rows * (self.context + 1))
        return (
            f"{self.conversations:,} conversations an epoch: {self.tokens:,} tokens, "
            f"{self.learnt:,} of them answers, in {self.rows:,} rows of {self.context:,} "
            f"({full:.0%} full){cut}."
        )


def pretrained(folder: Path) -> Base:
    """What a model's directory says of its pretraining; nanochat's numbers where it says nothing.

    As in nanochat, the learning rates of a modern model are those before they were scaled by the
    batch.

    Raises:
        MlxchatError: it is no model, or a quantized one.
    """
    model = layout.read_config(folder)
    if layout.is_quantized(folder):
        raise CheckpointError(
            f"The model in {folder} is quantized: it cannot be trained.",
            "Name the model that it was made of with `source`, and quantize what comes of it.",
        )
    tokens, config = REFERENCE_BATCH, PretrainConfig(arch=model.arch)
    if (folder / layout.TRAINER).exists():
        trainer = layout.read_trainer(folder)
        with suppress(ValidationError):  # of a version whose settings or plans were others
            plan = Plan.model_validate(trainer.plan)
            tokens = plan.tokens_per_step
            if trainer.stage == layout.FINE_TUNING:
                share = trainer.settings["init_lr_frac"]
                rates = {group: rate / share for group, rate in plan.learning_rates.items()}
                return Base(model, rates, tokens)
            config = PretrainConfig.model_validate(trainer.settings)
    rates = learning_rates(config.recipe, model, REFERENCE_BATCH)
    return Base(model, rates, tokens)


def survey(
    documents: ChatDocuments, tokenizer: Tokenizer, context: int, report: Report, clock: Clock
) -> Survey:
    """Render and pack the first epoch, as training will.

    Args:
        context: tokens of a row.
        report: is told how far it is.

    Raises:
        MlxchatError: no conversation has an answer within the context.
    """
    capacity, lengths, read = context + 1, list[int](), 0
    batches = (batch for batch, _ in documents.training(Cursor()))
    epoch = islice(chain.from_iterable(batches), documents.epoch_size)

    def refill() -> list[list[int]] | None:
        nonlocal read
        batch = list(islice(epoch, BUFFER_CONVERSATIONS))
        encoded = answered(tokenizer, batch, capacity)
        lengths.extend(map(len, encoded))
        read += len(batch)
        total = documents.epoch_size
        report(Progressed(clock(), "reading", read, total, "conversations"))
        return encoded if batch else None

    packing = BestFit(capacity, BUFFER_CONVERSATIONS, refill, padding=~tokenizer.bos)
    rows = learnt = 0
    while (row := packing.row()) is not None:
        rows += 1
        learnt += int((row[1:] >= 0).sum())
    if not lengths:
        raise DataError(
            f"No conversation has an answer within the model's context of {context:,} tokens.",
            "Use shorter ones, or a model of a longer context.",
        )
    kept = sum(min(length, capacity) for length in lengths)
    cut = sum(length > capacity for length in lengths)
    return Survey(len(lengths), rows, context, kept, learnt, cut, read - len(lengths))


def sft_plan(config: SftConfig, base: Base, epoch_rows: int, capacity: Capacity) -> Plan:
    """Derive what the settings leave open.

    Args:
        base: what is fine-tuned.
        epoch_rows: that the conversations of an epoch take.
        capacity: of the machine, which training fits into.

    Raises:
        MlxchatError: the batch sizes do not divide, or there is not the memory.
    """
    model, context = base.model, base.model.sequence_len
    wanted = (config.epochs or 1) * epoch_rows
    if config.total_batch_size:
        rows = step_rows(config, context, config.total_batch_size)
    else:
        rows = _batch(base.tokens_per_step // context, wanted, config.device_batch_size or 1)
    steps = config.num_iterations or -(-wanted // rows)
    cut = fit(config, model, rows, capacity, [])
    total = rows * context
    return Plan(
        model=model,
        parameters=sum(parameters(model).values()),
        flops_per_token=flops_per_token(model),
        target_tokens=wanted * context,
        num_iterations=steps,
        device_batch_size=cut.device_batch,
        accumulation=cut.accumulation,
        tokens_per_step=total,
        learning_rates={
            group: config.init_lr_frac * rate for group, rate in base.learning_rates.items()
        },
        weight_decay=0.0,
        grad_clip=config.grad_clip,
        warmup_steps=round(config.warmup_ratio * steps),
        warmdown_ratio=config.warmdown_ratio,
        final_lr_frac=config.final_lr_frac,
        eval_rows=evaluation_rows(config, context, total),
        grad_checkpoint=cut.checkpoint,
        loss_rows=cut.loss_rows,
    )


def _batch(rows: int, wanted: int, multiple: int) -> int:
    """Rows of a step: pretraining's, halved until the wanted ones make `LEAST_STEPS`."""
    while rows > multiple and rows * LEAST_STEPS > wanted:
        rows //= 2
    return max(multiple, rows - rows % multiple)


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
        raise NotFound(
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
        raise DataError(
            "There is nothing to learn from.",
            "Name conversations with `data=FILE`, or `data=builtin` for the built-in corpus's; see "
            "also `identity` and `spelling`.",
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
            raise DataError(
                f"{name} {fault} the run {self.config.tag} began.",
                "Put things back, name another run with `model_tag`, or begin anew with `fresh`.",
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
