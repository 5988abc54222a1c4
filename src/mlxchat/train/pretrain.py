"""Pretraining: a new model, or an existing one, is trained on text."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace

from mlxchat.checkpoint import catalog
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.data.corpus.documents import held_out_questions
from mlxchat.data.documents import Documents, TextDocuments
from mlxchat.data.loader import LoaderState
from mlxchat.data.preparation import WHOLE_TEXT, Preparation
from mlxchat.home import Home
from mlxchat.model.gpt import GPT
from mlxchat.optim import schedule
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.optim.schedule import REFERENCE_BATCH, learning_rates
from mlxchat.plan.budget import reason
from mlxchat.plan.deadline import Deadline
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import Plan, plan
from mlxchat.runtime import compute_dtype, hold_memory
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Event, Noted, Report
from mlxchat.telemetry.meter import Meter
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train import inputs
from mlxchat.train.base import adapter_of, load_base, with_shape_of_base
from mlxchat.train.core import RunCore
from mlxchat.train.measure import Planner
from mlxchat.train.resume import SavedRun, TrainState
from mlxchat.train.run import run
from mlxchat.train.stage import Prepared, Stage
from mlxchat.train.tokenizer import chooses_vocabulary, ready_tokenizer
from mlxchat.train.world import ALONE, World

PROMPTS = (  # nanochat's
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "If 5*x + 3 = 13, then x is",
)
BUILTIN_PROMPTS = 5  # questions to sample with, if the built-in corpus is the dataset


def run_pretraining(
    config: PretrainConfig,
    home: Home,
    report: Report,
    meter: Meter | None = None,
    stop: Callable[[], bool] = lambda: False,
    fresh: bool = False,
    clock: Clock = SYSTEM_CLOCK,
    world: World = ALONE,
) -> Iterator[Event]:
    """Pretrain a model, or resume the run of that name; see `mlxchat.train.run.run`."""
    config = with_shape_of_base(config, home)
    return run(Pretraining(config, home, report, clock, world=world), meter, stop, fresh)


class Pretraining(Stage[PretrainConfig, TextDocuments]):
    """The first stage: pretraining."""

    name = "pretraining"
    settings = PretrainConfig

    @property
    def begins_with(self) -> str | None:
        """The model named by ``init_from``; None: random weights."""
        return self.config.init_from

    def preparation(self, documents: Documents) -> Preparation:
        """Return how rows are made; the recipe for budgets, whose rows are short, drops nothing."""
        return WHOLE_TEXT if self.config.recipe_name == "budget" else documents.preparation

    def data_in_words(self) -> list[str]:
        """Return the dataset's name and, for a hub dataset, its address and licence."""
        return inputs.data_in_words(self.config)

    def learning_rates(self, plan: Plan) -> dict[str, float]:
        """Return the settings' rates for the reference batch."""
        return learning_rates(self.config.numbers, plan.model, REFERENCE_BATCH)

    def momentum(self, plan: Plan, step: int) -> float:
        """Return Muon's momentum after ``step`` updates."""
        return schedule.muon_momentum(
            plan.model.arch, step, plan.num_iterations, plan.warmdown_ratio
        )

    def deadline(self, plan: Plan, started_at: float) -> Deadline | None:
        """Return what keeps the run within its time budget; None if it has none."""
        if not (self.config.budget_seconds and plan.costs):
            return None
        budget, origin = float(self.config.budget_seconds), started_at - plan.costs.spent
        return Deadline(self.config, budget, plan.costs, origin, self.clock.seconds())

    def saved(self) -> SavedRun[PretrainConfig] | None:
        """Find the run's newest checkpoint; the data must be the same unless it is finished."""
        saved = super().saved()
        if saved and not saved.trainer.finished:
            state = inputs.with_names_on_disk(self.config, self.home, saved.trainer)
            saved = replace(saved, trainer=state)
            inputs.require_same_data(self.config, self.home, state)
        return saved

    def require_named_data(self) -> None:
        """Check that the text is there which the settings name."""
        if self.config.model_fields_set & {"dataset", "data_dir"}:
            inputs.check_documents(self.config, self.home, [])

    def open(self, saved: SavedRun[PretrainConfig] | None) -> TextDocuments:
        """Open the dataset: for a saved run, the very files that it was started with."""
        if saved:
            return inputs.reopen_documents(self.config, self.home, self.report, saved.trainer)
        return inputs.open_documents(self.config, self.home, self.report)

    def validation(self, names: list[str]) -> TextDocuments:
        """Open the dataset, whose validation shard must be the run's."""
        return inputs.open_validation(self.config, self.home, names)

    def files(self, documents: TextDocuments) -> dict[str, str]:
        """Return the quick fingerprints of the shards on disk, and what is known of others."""
        return documents.fingerprints | inputs.fingerprints_on_disk(
            self.config, self.home, documents
        )

    def notes(self, documents: TextDocuments) -> Iterable[str]:
        """Return what the preset stands for."""
        if self.config.of_preset:
            yield f"Preset {self.config.preset}: {self.config.of_preset}"

    def prepare(
        self, documents: TextDocuments, resources: Resources, started_at: float
    ) -> Generator[Event, None, Prepared]:
        """Train a tokenizer if there is none, plan, and make the model.

        If there is a time budget, the plan is based on the measured speed of this machine, or of
        all ranks.
        """
        config, home, clock = self.config, self.home, self.clock
        if config.budget:
            tokenizer, made = yield from self._within_budget(documents, resources, started_at)
        else:
            tokenizer = yield from ready_tokenizer(config, home, documents, self.report, clock)
            adapter = adapter_of(config, home, resources)
            made = plan(config, tokenizer.vocab_size, resources, adapter)
        hold_memory(made.memory_limit, made.peak, config.wired)
        history = base = None
        if config.init_from:
            folder = catalog.find_model(home.stages, config.init_from, None)
            lora = config.lora and config.lora.shape
            model, history, base = load_base(folder, home, config.dtype, lora, config.seed)
        else:
            model = GPT.new(made.model, config.seed, compute_dtype(config.dtype))
        optimizer = MuonAdamW(model)
        state = TrainState(made, tokenizer, model, optimizer, 0, LoaderState(), history, base)
        return Prepared(state, (reason(config, made),) if made.costs else ())

    def _within_budget(
        self, documents: TextDocuments, resources: Resources, started_at: float
    ) -> Generator[Event, None, tuple[Tokenizer, Plan]]:
        """Return the tokenizer and the plan of a run with a time budget."""
        config, clock = self.config, self.clock
        text = inputs.size_of_text(config, documents)
        planner = Planner(
            config, resources, started_at, clock.seconds, self.compile, text, self.world
        )
        measuring = f"Measuring how fast this machine trains, to plan for {config.budget}."
        wanted = None
        if chooses_vocabulary(config):
            yield Noted(clock(), measuring)
            chosen = planner.plan(None).model.vocab_size
            wanted = min(chosen, documents.suggested_vocabulary())
        tokenizer = yield from ready_tokenizer(
            config, self.home, documents, self.report, clock, wanted
        )
        if wanted is None:
            yield Noted(clock(), measuring)
        planner.text = inputs.size_of_text(config, documents, tokenizer)
        return tokenizer, planner.plan(tokenizer.vocab_size)

    def core(self) -> RunCore | None:
        """Read the examples of CORE, if the settings ask for it."""
        return RunCore.open(self.config, self.home, self.report)

    def prompts(
        self, tokenizer: Tokenizer, documents: TextDocuments
    ) -> Iterable[tuple[str, list[int]]]:
        """Return beginnings of sentences, or questions that the built-in corpus does not ask."""
        prompts: Iterable[str] = PROMPTS
        if self.config.is_builtin:
            prompts = (f"{question.prompt}\n" for question in held_out_questions(BUILTIN_PROMPTS))
        for prompt in prompts:
            yield prompt, [tokenizer.bos, *tokenizer.encode(prompt)]

    @property
    def revision(self) -> str | None:
        """The hub's commit that the dataset's files are from; None if none is recorded."""
        return inputs.revision(self.config, self.home)
