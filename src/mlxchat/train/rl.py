"""Reinforcement learning: a model learns from rewards for its own answers.

It samples several answers to each question, and those that score better than the others become more
likely (`mlxchat.train.policy_gradient`). The initial model must already answer some of the
questions correctly: if all answers are equally good, there is nothing to learn.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from mlxchat.checkpoint import catalog, layout, store, trainer
from mlxchat.config.rl import RlConfig
from mlxchat.config.run import is_name
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.data.questions.choice import GENERATED, GSM8K
from mlxchat.data.questions.question import QuestionSource
from mlxchat.data.questions.tasks import GSM8K_SOURCE, questions_of
from mlxchat.engine.rollout import answer_keys
from mlxchat.errors import CheckpointError, DataError, MlxchatError, NotFound, command
from mlxchat.home import Home
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import Plan
from mlxchat.runtime import compute_dtype, hold_memory
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Event, Noted, Report, Sampled
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.trackers import require_tracker
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train.answer_sampler import AnswerSampler
from mlxchat.train.base import (
    adapter_plan,
    load_base,
    require_trainable,
    unscaled_rates,
    with_default_source,
)
from mlxchat.train.evaluation import Evaluation, never
from mlxchat.train.loop import ShouldStop
from mlxchat.train.question_evaluation import QuestionEvaluation
from mlxchat.train.resume import SavedRun, TrainState
from mlxchat.train.rewards import CheckedReward, reward_fingerprints, rewards_of
from mlxchat.train.rl_documents import QuestionDocuments, files_of
from mlxchat.train.rl_level import level_notes, suitable_level
from mlxchat.train.rl_plan import RL_MOMENTUM, question_survey, rl_plan
from mlxchat.train.rollouts import EVALUATION_SEED, Rollouts
from mlxchat.train.run import run
from mlxchat.train.sft import FineTuning
from mlxchat.train.stage import Prepared, Stage
from mlxchat.train.step import Draw
from mlxchat.train.world import ALONE, World

SAMPLES_SHOWN = 2


def run_reinforcement(
    config: RlConfig,
    home: Home,
    report: Report,
    meter: Meter | None = None,
    stop: ShouldStop = never,
    fresh: bool = False,
    clock: Clock = SYSTEM_CLOCK,
    world: World = ALONE,
) -> Iterator[Event]:
    """Train a model by rewards, or resume the run of that name; see `mlxchat.train.run.run`."""
    require_tracker(config.track)
    config = with_tuned_source(config, home)
    config, notes = with_level(config, home, report, clock, fresh)
    for note in notes:
        yield Noted(clock(), note)
    stage = Reinforcement(config, home, report, clock, world=world)
    yield from run(stage, meter, stop, fresh)


def with_tuned_source(config: RlConfig, home: Home) -> RlConfig:
    """Fill in the model to begin with, as `with_default_source` does: one that was fine-tuned.

    Raises:
        NotFound: there is none.
    """
    name = Reinforcement.name
    settled = with_default_source(config, home, name, [FineTuning.name], found=["level"])
    if settled is None:
        raise NotFound(
            f"There is no fine-tuned model in {home.finetuned}.",
            "Make one: mlxchat quickstart, or mlxchat sft",
        )
    return settled


def with_level(
    config: RlConfig, home: Home, report: Report, clock: Clock, fresh: bool = False
) -> tuple[RlConfig, list[str]]:
    """Fill in the level of a generated task: the saved run's, or one that suits the model.

    Returns:
        The settings, and what to tell the user of it.

    Raises:
        ConfigError: the model answers nothing right at any level.
        MlxchatError: there is no such model, or it cannot be trained.
    """
    if config.task not in GENERATED or config.level is not None:
        return config, []
    if not fresh:
        with suppress(MlxchatError):  # there is none, or it cannot be resumed: `run` says why
            newest = store.latest(home.stage(Reinforcement.name) / config.tag)
            if newest:
                state = trainer.read_state(newest, {Reinforcement.name: RlConfig})
                return config.model_copy(update={"level": state.settings.level}), []
    saved = layout.read_model(_tuned_folder(config, home), compute_dtype(config.dtype))
    source = _questions(config.model_copy(update={"level": 1}), home)  # all levels are judged alike
    found = suitable_level(config, saved, source, report, clock)
    return config.model_copy(update={"level": found.level}), level_notes(config, found)


def _tuned_folder(config: RlConfig, home: Home) -> Path:
    """Return the directory of the model to begin with.

    Raises:
        NotFound: there is none.
        CheckpointError: it cannot be trained, or does not answer.
    """
    folder = catalog.find_model(home.stages, config.source, config.step)
    require_trainable(folder, config.lora)
    if not layout.has_chat_template(folder):
        raise CheckpointError(
            f"The model in {folder} was not trained on conversations, so it cannot answer.",
            _chat_model_remedy(str(config.source), home),
        )
    return folder


def _chat_model_remedy(source: str, home: Home) -> str:
    """Return what to do about a model that does not answer: its fine-tuned one may be there."""
    tuned = f"{source}-sft"  # as sft names it by default
    if is_name(tuned) and store.steps(home.finetuned / tuned):
        return f"Start from the one that does: {command('rl', source=tuned)}"
    return f"Fine-tune it first: {command('sft', source=source)}"


def _questions(config: RlConfig, home: Home) -> QuestionSource:
    """Open the questions that the settings name.

    Raises:
        MlxchatError: there is no such task or file.
    """
    return questions_of(
        config.task,
        level=config.level,
        calculator=config.calculator,
        seed=config.seed,
        task_data=config.task_data or home.task_data,
    )


class Reinforcement(Stage[RlConfig, QuestionDocuments]):
    """The stage after fine-tuning."""

    name = "reinforcement learning"
    settings = RlConfig
    on_policy = True
    _sampler_of: tuple[TrainState, AnswerSampler] | None = None  # the newest, with its state

    @property
    def begins_with(self) -> str | None:
        """The model to train."""
        return self.config.source

    def data_in_words(self) -> list[str]:
        """Return the task, for GSM8K with address and licence."""
        config = self.config
        task = f"{GSM8K} ({GSM8K_SOURCE})" if config.task == GSM8K else Path(config.task).name
        level = f", level {config.level}" if config.level else ""
        calculator = ", with the calculator" if config.calculator else ""
        return [f"its own answers to questions: {task}{level}{calculator}"]

    def learning_rates(self, plan: Plan) -> dict[str, float]:
        """Return the rates of pretraining, a share of which are the plan's."""
        return unscaled_rates(plan, self.config.init_lr_frac)

    def momentum(self, plan: Plan, step: int) -> float:
        """Return Muon's momentum, which is constant."""
        return RL_MOMENTUM

    def learning_rate_multiplier(self, plan: Plan, step: int) -> float:
        """Return the factor on all learning rates, which falls from 1 to 0."""
        if self.config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / plan.num_iterations))
        return super().learning_rate_multiplier(plan, step)

    @cached_property
    def source(self) -> QuestionSource:
        """The questions, which are read when they are first used: a file of them may be large."""
        return _questions(self.config, self.home)

    @cached_property
    def reward(self) -> CheckedReward:
        """The reward of an answer. Its functions' files are run when it is first used."""
        return rewards_of(self.config.reward, self.source.check, self.world.give_up)

    def require_named_data(self) -> None:
        """Check that the questions are there which the settings name."""
        _ = self.source

    def open(self, saved: SavedRun[RlConfig] | None) -> QuestionDocuments:
        """Open the questions: for a saved run, those that it was started with."""
        self.world.rows(self.config.examples, "questions", "examples")
        _ = self.reward  # what is wrong with it is said before anything else is made
        files = files_of(self.config.task, reward_fingerprints(self.config.reward))
        documents = QuestionDocuments(self.source, files, self.config.seed)
        if saved:
            self._require_same(saved.trainer.fingerprints, documents.fingerprints)
        return documents

    def _require_same(self, before: dict[str, str], found: dict[str, str]) -> None:
        changed = sorted(name for name, _ in before.items() ^ found.items())
        if changed:
            raise DataError(
                f"{changed[0]} has changed since the run {self.config.tag} was started.",
                "Restore it, use another name with `model_tag`, or start from scratch with "
                "`fresh`.",
            )

    def validation(self, names: list[str]) -> QuestionDocuments:
        """Open the questions, of which some are held out."""
        return QuestionDocuments(self.source, {}, self.config.seed)

    def notes(self, documents: QuestionDocuments) -> Iterator[str]:
        """Return the model to begin with."""
        yield f"Starting from the model {self.config.source}."

    def prepare(
        self, documents: QuestionDocuments, resources: Resources, started_at: float
    ) -> Generator[Event, None, Prepared]:
        """Read the model to train, and plan by the questions."""
        config, home = self.config, self.home
        folder = _tuned_folder(config, home)
        lora = config.lora and config.lora.shape
        adapter = adapter_plan(folder, lora, resources.value_bytes)
        tokenizer = Tokenizer.load(folder)
        found = question_survey(documents.source, tokenizer, self.report, self.clock)
        yield Noted(self.clock(), found.summary(Path(documents.source.name).name))
        plan = rl_plan(config, layout.read_config(folder), found, resources, adapter)
        hold_memory(plan.memory_limit, plan.peak, config.wired)
        model, before, record = load_base(folder, home, config.dtype, lora, config.seed)
        optimizer = MuonAdamW(model)
        state = TrainState(plan, tokenizer, model, optimizer, 0, LoaderState(), before, record)
        return Prepared(state, ())

    def batches(
        self, documents: QuestionDocuments, state: TrainState, stop: ShouldStop = never
    ) -> Rollouts:
        """Return the answers to learn from, step by step."""
        sampler = self._sampler(documents, state)
        return Rollouts(
            self.config,
            documents,
            state,
            sampler,
            self.reward,
            self.world,
            self.report,
            self.clock,
            stop,
        )

    def evaluation(
        self,
        documents: QuestionDocuments,
        state: TrainState,
        draw: Callable[[Draw], list[Batch]] = lambda draw: draw(),
    ) -> Evaluation:
        """Return the evaluation on held-out questions."""
        assert state.plan.drawing is not None
        batch_size = state.plan.drawing.together
        sampler = self._sampler(documents, state)
        return QuestionEvaluation(
            self.config, documents, sampler, batch_size, self.world, self.clock
        )

    def sampled(
        self, documents: QuestionDocuments, state: TrainState, step: int
    ) -> Iterator[Event]:
        """Yield answers to the first held-out questions, with their rewards."""
        questions = list(documents.source.held_out[:SAMPLES_SHOWN])
        seed, numbers = self.config.seed, range(len(questions))
        keys = np.stack([answer_keys(seed, EVALUATION_SEED, n, answers=1) for n in numbers])
        answers = self._sampler(documents, state).sample(questions, keys)
        for question, text, reward in zip(
            questions, answers.texts, answers.rewards[:, 0].tolist(), strict=True
        ):
            yield Sampled(self.clock(), step, f"{question.prompt}\n", text, reward)

    def _sampler(self, documents: QuestionDocuments, state: TrainState) -> AnswerSampler:
        """Return the sampler of a state's model: one for steps, evaluations and samples."""
        drawing = state.plan.drawing
        assert drawing is not None
        if self._sampler_of is None or self._sampler_of[0] is not state:
            sampler = AnswerSampler(
                state.model,
                state.tokenizer,
                documents.source,
                self.reward,
                self.config.sampling,
                drawing.max_tokens,
                drawing.together,
                state.plan.streams,
            )
            self._sampler_of = state, sampler
        return self._sampler_of[1]
