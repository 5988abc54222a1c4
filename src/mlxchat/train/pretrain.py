"""Pretraining: a new model, on text.

Pretraining that begins with the weights of a model, one that was imported for instance.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from mlxchat.checkpoint import catalog, history, layout, store
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import PRETRAINING
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.data.corpus.documents import held_out_questions
from mlxchat.data.documents import TextDocuments
from mlxchat.data.loader import LoaderState
from mlxchat.errors import CheckpointError, ConfigError, MlxchatError, command
from mlxchat.home import Home
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.optim import schedule
from mlxchat.plan.budget import Pace, reason
from mlxchat.plan.memory import Capacity
from mlxchat.plan.plan import Plan, shape
from mlxchat.runtime import machine
from mlxchat.telemetry.events import Clock, Event, Noted, Report
from mlxchat.telemetry.meter import Meter
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train import inputs
from mlxchat.train.measure import planned
from mlxchat.train.resume import Learner, SavedRun, hold_memory, new_optimizer
from mlxchat.train.run import conduct
from mlxchat.train.stage import Stage


def of_model(config: PretrainConfig, home: Home) -> PretrainConfig:
    """The settings with the shape and the tokenizer of the model to begin with, if there is one.

    Raises:
        MlxchatError: there is no such model, it is quantized, is not of a shape that pretraining
            has, or a setting says another one.
    """
    if config.init_from is None:
        return config
    folder = _folder_or_own(config, home)
    model = layout.read_config(folder)
    if layout.is_quantized(folder):
        raise CheckpointError(
            f"The model in {folder} is quantized: it cannot be trained.",
            "Begin with the model that it was made of.",
        )
    given = config.model_dump(exclude_unset=True)
    determined = _determined(model, folder)
    for name, value in (determined | {"vocab_size": model.vocab_size}).items():
        if given.get(name) not in (None, value):
            raise ConfigError(
                f"`{name}={given[name]}` does not go with `init_from`: the model "
                f"in {folder} has {value}.",
                "Leave it out.",
            )
    settled = PretrainConfig.model_validate(given | determined)
    expected = shape(settled, model.vocab_size, model.n_layer)
    if expected != model:
        differences = [
            f"its {name} is {getattr(model, name)}, not {getattr(expected, name)}"
            for name in GPTConfig.model_fields
            if getattr(model, name) != getattr(expected, name)
        ]
        raise CheckpointError(
            f"Pretraining has no model like the one in {folder}: {', '.join(differences)}.",
            f"Fine-tune it: {command('sft', source=config.init_from)}",
        )
    return settled


def model_to_begin_with(source: str, home: Home) -> tuple[GPT, History]:
    """The model that a run's name or a model's directory stands for, and how it came to be.

    Raises:
        MlxchatError: it is not there, or damaged.
    """
    folder = catalog.find_model(home.stages, source, None)
    return layout.read_model(folder, machine().compute_dtype).model, history.read(folder)


def _folder_or_own(config: PretrainConfig, home: Home) -> Path:
    """Of the model to begin with; where that has gone, of the run that began with it."""
    try:
        return catalog.find_model(home.stages, config.init_from, None)
    except MlxchatError:
        own = store.latest(home.runs / config.tag)
        if own is None:
            raise
        return own


def _determined(model: GPTConfig, folder: Path) -> dict[str, Any]:
    """The settings that a model leaves no choice of."""
    determined: dict[str, Any] = {
        "arch": model.arch,
        "depth": model.n_layer,
        "head_dim": model.head_dim,
        "max_seq_len": model.sequence_len,
        "tokenizer_dir": folder.absolute(),
    }
    if model.arch == "modern":
        determined["window_pattern"] = model.window_pattern
    return determined


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
            model = GPT.new(made.model, config.seed)
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
            prompts = (f"{asked.prompt}\n" for asked in held_out_questions(BUILTIN_PROMPTS))
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
