"""Supervised fine-tuning, and the base class of all stages that train on conversations."""

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

from mlxchat.checkpoint import catalog, trainer
from mlxchat.checkpoint.layout import has_chat_template
from mlxchat.config.sft import ConversationConfig, SftConfig
from mlxchat.data.chats.identity import Identity
from mlxchat.data.chats.mixture import CONVERSATIONS, ChatDocuments
from mlxchat.data.chats.sources import BUILTIN, listing, parse
from mlxchat.data.loader import LoaderState
from mlxchat.data.preparation import ANSWERS, Preparation
from mlxchat.errors import DataError, NotFound
from mlxchat.home import Home
from mlxchat.names import composed
from mlxchat.optim import schedule
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import Plan
from mlxchat.runtime import hold_memory
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Event, Noted, Report
from mlxchat.telemetry.meter import Meter
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message
from mlxchat.train.base import (
    adapter_plan,
    load_base,
    read_base,
    unscaled_rates,
    with_default_source,
)
from mlxchat.train.resume import SavedRun, TrainState
from mlxchat.train.run import run
from mlxchat.train.sft_plan import conversation_plan, survey
from mlxchat.train.stage import Prepared, Stage, share_held_out
from mlxchat.train.world import ALONE, World

EARLIER_VERSION = (
    "This run was saved by an earlier version of mlxchat, which packed conversations into rows in "
    "another order and skipped more of them. It resumes with this version's packing, so the "
    "result will differ slightly from what that version would have produced."
)
SEEN_BEFORE = (
    "{} was trained with a validation share of {:g}. With {:g}, it may have been trained on some "
    "of the conversations that are now held out. Set `validation_share={:g}` to compare with it."
)
WEIGHT = re.compile(r":[\d.e+-]+$")  # of a source of conversations

Tuning = TypeVar("Tuning", bound=ConversationConfig)


def run_fine_tuning(
    config: SftConfig,
    home: Home,
    report: Report,
    meter: Meter | None = None,
    stop: Callable[[], bool] = lambda: False,
    fresh: bool = False,
    clock: Clock = SYSTEM_CLOCK,
    world: World = ALONE,
) -> Iterator[Event]:
    """Fine-tune a model, or resume the run of that name; see `mlxchat.train.run.run`."""
    config = FineTuning.with_source(config, home)
    return run(FineTuning(config, home, report, clock, world=world), meter, stop, fresh)


def chat_documents(config: ConversationConfig, preparation: Preparation) -> ChatDocuments:
    """Open the conversations that the settings name.

    Raises:
        DataError: they name none, or some cannot be read.
    """
    if not (config.data or config.identity or config.spelling):
        raise DataError(
            "No training data is given.",
            "Name conversations with `data=FILE`, or `data=builtin` for those of the built-in "
            "corpus; see also `identity` and `spelling`.",
        )
    return ChatDocuments(
        [parse(text, config.encoding, config.skip_bad) for text in config.data or ()],
        seed=config.seed,
        validation_share=config.validation_share,
        preparation=preparation,
        identity=Identity.parse(config.identity) if config.identity else None,
        spelling_conversations=config.spelling,
    )


class ConversationStage(Stage[Tuning, ChatDocuments]):
    """A stage that trains an existing model further on conversations."""

    after: ClassVar[tuple[str, ...]]  # the stages whose models it begins with by default
    prepared: ClassVar[Preparation]  # how rows are made of its conversations

    @classmethod
    def with_source(cls, config: Tuning, home: Home) -> Tuning:
        """Fill in the model to begin with, as `with_default_source` does.

        Raises:
            NotFound: there is no such model.
        """
        settled = with_default_source(config, home, cls.name, cls.after)
        if settled is None:
            raise NotFound(
                f"There is no base model in {home.runs}.",
                "Make one: mlxchat quickstart, or mlxchat train",
            )
        return settled

    @property
    def begins_with(self) -> str | None:
        """The model to train further."""
        return self.config.source

    @property
    def held_out_share(self) -> float:
        """The share of the conversations that is held out."""
        return self.config.validation_share

    def data_in_words(self) -> list[str]:
        """Return the names of the files without their folders, and what is made up."""
        config, builtin = self.config, "the built-in corpus of mlxchat"
        sources = [WEIGHT.sub("", text) for text in config.data or ()]
        named = [
            f"conversations of {builtin if source == BUILTIN else Path(source).name}"
            for source in sources
        ]
        if config.identity:
            named.append("generated conversations about who it is")
        if config.spelling:
            named.append("generated conversations about spelling")
        return named

    def learning_rates(self, plan: Plan) -> dict[str, float]:
        """Return the rates of pretraining, a share of which are the plan's."""
        return unscaled_rates(plan, self.config.init_lr_frac)

    def momentum(self, plan: Plan, step: int) -> float:
        """Return Muon's momentum after ``step`` updates: that of nanochat's classic pretraining."""
        return schedule.muon_momentum("classic", step, plan.num_iterations, plan.warmdown_ratio)

    def require_named_data(self) -> None:
        """Check that the files are there which the settings name."""
        for text in self.config.data or ():
            listing(parse(text, self.config.encoding, self.config.skip_bad))

    def open(self, saved: SavedRun[Tuning] | None) -> ChatDocuments:
        """Open the conversations: for a saved run, those that it was started with."""
        if saved is None:  # what is missing is said before all conversations are read
            self.require_named_data()
            catalog.find_model(self.home.stages, self.config.source, self.config.step)
        documents = chat_documents(self.config, self.prepared)
        if saved:
            before, found = saved.trainer.fingerprints.copy(), documents.fingerprints.copy()
            read_before, read_now = before.pop(CONVERSATIONS, None), found.pop(CONVERSATIONS)
            self._require_same_files(before, found)
            self._require_same_conversations(read_before, read_now)
        return documents

    def _require_same_files(self, before: dict[str, str], found: dict[str, str]) -> None:
        before = {_place(name): file for name, file in before.items()}
        found = {_place(name): file for name, file in found.items()}
        changed = sorted(name for name, _ in before.items() ^ found.items())
        if not changed:
            return
        name = changed[0]
        if name not in before:
            fault = "did not exist"
        elif name not in found:
            fault = "is missing, but existed"
        else:
            fault = "differs from the file used"
        raise DataError(
            f"{name} {fault} when the run {self.config.tag} was started.",
            "Restore it, use another name with `model_tag`, or start from scratch with `fresh`.",
        )

    def _require_same_conversations(self, before: str | None, found: str) -> None:
        """Compare the conversations that were read, which depend on the version that reads them.

        Runs of versions that did not save their fingerprint are resumed: the order differs only if
        their files have rows that those versions skipped.
        """
        if before is None:
            self.report(Noted(self.clock(), EARLIER_VERSION))
        elif before != found:
            raise DataError(
                f"The run {self.config.tag} was started by a version of mlxchat that reads or "
                "generates conversations differently.",
                "Resume it with that version, use another name with `model_tag`, or start from "
                "scratch with `fresh`.",
            )

    def validation(self, names: list[str]) -> ChatDocuments:
        """Open the conversations, of which some are held out."""
        return chat_documents(self.config, self.prepared)

    def notes(self, documents: ChatDocuments) -> Iterable[str]:
        """Return the model to begin with, and how many rows of each source are used."""
        yield f"Starting from the model {self.config.source}."
        for report in documents.reports:
            yield report.summary()

    def prepare(
        self, documents: ChatDocuments, resources: Resources, started_at: float
    ) -> Generator[Event, None, Prepared]:
        """Read the model to train further, and plan by its training and the conversations."""
        config, home = self.config, self.home
        folder = catalog.find_model(home.stages, config.source, config.step)
        lora = config.lora and config.lora.shape
        if lora and not has_chat_template(folder):
            # The tokens that begin and end a message were in no text that a base model has learned
            # from: to its head they are all the same.
            lora = lora.with_head()
        base = read_base(folder, home, lora)
        adapter = adapter_plan(folder, lora, resources.value_bytes)
        tokenizer = Tokenizer.load(folder)
        found = survey(documents, tokenizer, base.model.sequence_len, self.report, self.clock)
        yield Noted(self.clock(), found.summary())
        plan = conversation_plan(config, base, found.rows, resources, adapter)
        hold_memory(plan.memory_limit, plan.peak, config.wired)
        model, before, record = load_base(folder, home, config.dtype, lora, config.seed)
        optimizer = MuonAdamW(model)
        if config.load_optimizer:
            optimizer.state = trainer.read_optimizer(folder, optimizer.state)
        state = TrainState(plan, tokenizer, model, optimizer, 0, LoaderState(), before, record)
        share, now = share_held_out(folder, home), config.validation_share
        seen = share is not None and share < now
        notes = (SEEN_BEFORE.format(config.source, share, now, share),) if seen else ()
        return Prepared(state, notes)

    def prompts(
        self, tokenizer: Tokenizer, documents: ChatDocuments
    ) -> Iterable[tuple[str, list[int]]]:
        """Return the first questions of the held-out conversations."""
        for conversation in documents.held_out:
            question = Conversation((Message("user", conversation.turns()[0].text),))
            words = f"{question.messages[0].text}\n"
            yield words, tokenizer.render_for_completion(question)


class FineTuning(ConversationStage[SftConfig]):
    """The stage after pretraining or mid-training, which learns the assistant's messages."""

    name = "fine-tuning"
    settings = SftConfig
    after = ("pretraining", "mid-training")
    prepared = ANSWERS


def _place(name: str) -> str:
    """Return a file's name as an absolute path: version 0.2 saved it as it was typed."""
    return composed(str(Path(name).absolute()))
