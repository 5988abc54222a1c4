"""Pretraining: a new model, on text."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

from mlxchat.checkpoint.layout import PRETRAINING
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.data.corpus.documents import held_out
from mlxchat.data.documents import TextDocuments
from mlxchat.data.loader import LoaderState
from mlxchat.home import Home
from mlxchat.model.gpt import GPT, initialise
from mlxchat.optim import schedule
from mlxchat.plan.budget import Pace, reason
from mlxchat.plan.memory import Capacity
from mlxchat.plan.plan import Plan
from mlxchat.runtime import machine, mx
from mlxchat.telemetry.events import Clock, Event, Noted, Report
from mlxchat.telemetry.meter import Meter
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train import inputs
from mlxchat.train.conduct import conduct
from mlxchat.train.init_from import model_to_begin_with, of_model
from mlxchat.train.learner import Learner, hold_memory, new_optimizer
from mlxchat.train.probe import planned
from mlxchat.train.saved import SavedRun
from mlxchat.train.stage import Stage

PROMPTS = (  # nanochat's
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "If 5*x + 3 = 13, then x is",
)
BUILTIN_PROMPTS = 5


def pretrain(
    config: PretrainConfig,
    home: Home,
    report: Report,
    meter: Meter | None = None,
    stop: Callable[[], bool] = lambda: False,
    fresh: bool = False,
    clock: Clock = time.time,
) -> Iterator[Event]:
    """Pretrain a model, or go on with it, as `conduct` does."""
    config = of_model(config, home)
    return conduct(Pretraining(config, home, report, clock), meter, stop, fresh)


class Pretraining(Stage[PretrainConfig, TextDocuments]):
    """The stage that every model begins with."""

    name = PRETRAINING

    @property
    def folder(self) -> Path:
        """Of the run's saved steps."""
        return self.home.runs / self.config.tag

    def saved(self) -> SavedRun | None:
        """The run to go on with, None where nothing of it was saved."""
        return inputs.saved_run(self.config, self.home)

    def open(self, saved: SavedRun | None) -> TextDocuments:
        """The dataset: of a saved run, the very files that it began with."""
        if saved:
            return inputs.reopen_documents(self.config, self.home, self.report, saved.trainer)
        return inputs.open_documents(self.config, self.home, self.report)

    def begin(
        self, documents: TextDocuments, available: Capacity, begun: float
    ) -> Generator[Event, None, Learner]:
        """A new model, by a plan that is measured first where there is a time budget; a tokenizer
        is trained where there is none.
        """
        config, clock = self.config, self.clock
        tokenizer = yield from inputs.ready_tokenizer(
            config, self.home, documents, self.report, clock
        )
        if config.budget:
            yield Noted(clock(), f"Measuring how fast this machine trains, for {config.budget}.")
        made = planned(config, tokenizer.vocab_size, available, begun, clock)
        hold_memory(made, config, available)
        past = None
        if config.init_from:
            model, past = model_to_begin_with(config.init_from, self.home)
        else:
            model = GPT(made.model, machine().compute_dtype)
            initialise(model, mx.random.key(config.seed))
        return Learner(made, tokenizer, model, new_optimizer(model), 0, LoaderState(), past)

    def momentum(self, plan: Plan, step: int) -> float:
        """Muon's after ``step`` updates."""
        return schedule.muon_momentum(
            plan.model.arch, step, plan.num_iterations, plan.warmdown_ratio
        )

    def prompts(
        self, tokenizer: Tokenizer, documents: TextDocuments
    ) -> Iterable[tuple[str, list[int]]]:
        """Beginnings of sentences, or questions that the built-in corpus does not ask."""
        prompts: Iterable[str] = PROMPTS
        if self.config.is_builtin:
            prompts = (f"{asked.prompt}\n" for asked in held_out(BUILTIN_PROMPTS))
        for prompt in prompts:
            yield prompt, [tokenizer.bos, *tokenizer.encode(prompt)]

    @property
    def revision(self) -> str | None:
        """The hub's commit that the dataset's files are of, None where none is recorded."""
        return inputs.revision(self.config, self.home)

    def notes(self, documents: TextDocuments) -> Iterable[str]:
        """What the preset stands for."""
        if self.config.of_preset:
            yield f"Preset {self.config.preset}: {self.config.of_preset}"

    def because(self, plan: Plan) -> Iterable[str]:
        """Why a time budget leads to this plan."""
        if plan.costs:
            yield reason(self.config, plan)

    def pace(self, plan: Plan, begun: float) -> Pace | None:
        """What holds the time budget, where there is one."""
        if not (self.config.budget_seconds and plan.costs):
            return None
        budget, origin = float(self.config.budget_seconds), begun - plan.costs.spent
        return Pace(self.config, budget, plan.costs, origin, self.clock())
