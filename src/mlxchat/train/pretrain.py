"""Pretraining, from settings to a trained model: the recipe that `mlxchat train` runs."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from mlxchat import runtime
from mlxchat.ckpt import layout, store
from mlxchat.ckpt.layout import TrainerState
from mlxchat.data import corpus
from mlxchat.data.conversations import Conversation, Message
from mlxchat.data.documents import Documents
from mlxchat.data.loader import Loader, LoaderState
from mlxchat.data.tokenizer import ASSISTANT_END, Tokenizer
from mlxchat.data.tokenizer import FILE as TOKENIZER
from mlxchat.engine.generate import continue_greedily
from mlxchat.errors import MlxchatError
from mlxchat.evaluate.bits import bits_per_byte
from mlxchat.home import Home
from mlxchat.model.gpt import GPT, initialise
from mlxchat.optim import schedule
from mlxchat.optim.groups import MuonAdamW, Rates
from mlxchat.runtime import mx
from mlxchat.telemetry import Event, JsonLines, Meter, Noted, Sampled, Saved, Started
from mlxchat.train.inputs import open_documents, tokenizer_folder, train_tokenizer
from mlxchat.train.loop import Run, train
from mlxchat.train.recipe import Capacity, Plan, PretrainConfig, evaluation_batches, plan

SAMPLE_TOKENS = 16
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

Clock = Callable[[], float]
Report = Callable[[Event], None]


def pretrain(
    config: PretrainConfig,
    home: Home,
    report: Report,
    meter: Meter | None = None,
    stop: Callable[[], bool] = lambda: False,
    fresh: bool = False,
    clock: Clock = time.time,
) -> Iterator[Event]:
    """Begin a run, or go on with the one of the same name; yields what happens.

    Args:
        config: the settings.
        home: where data, tokenizer, checkpoints and log lie.
        report: is told of downloads and the like as they progress, from other threads too.
        meter: folds the events before they are yielded, and goes into the checkpoints.
        stop: asked again and again whether to save and end.
        fresh: set an earlier run of that name aside and begin anew.
        clock: seconds since the epoch.

    Raises:
        MlxchatError: the settings cannot work, are not those of the run to go on with, or data,
            tokenizer or checkpoint cannot be read.
    """
    meter = meter or Meter()
    with ExitStack() as stack:
        stack.enter_context(store.locked(home.runs / config.tag))
        saved = None if fresh else store.latest(home.runs / config.tag)
        trainer = layout.read_trainer(saved) if saved else None
        if saved and trainer:
            _require_same(config, trainer)
            if trainer.step == Plan.model_validate(trainer.plan).num_iterations:
                yield Noted(clock(), f"The run {config.tag} is finished: {saved}")
                return
        runtime.bound_buffer_cache()
        documents = _open_documents(config, home, report, trainer)
        stack.enter_context(closing(documents))
        if saved and trainer:
            run = _Pretraining.resume(config, home, documents, meter, clock, saved, trainer)
        else:
            tokenizer = yield from _ready_tokenizer(config, home, documents, report, clock)
            run = _Pretraining.begin(config, home, documents, meter, clock, tokenizer)
            if fresh:
                yield from _set_aside(home, config.tag, clock)
        log = stack.enter_context(JsonLines.resume(home.log(config.tag), run.step))
        for event in run.events(stack, stop):
            meter.update(event)
            log.write(event)
            yield event


def _open_documents(
    config: PretrainConfig, home: Home, report: Report, trainer: TrainerState | None
) -> Documents:
    """The run's dataset; where it goes on, the very files that it began with.

    Raises:
        MlxchatError: some of those files are not there.
    """
    if trainer is None or not trainer.data:
        return open_documents(config, home, report)
    begun_with = config.model_copy(update={"num_shards": len(trainer.data) - 1})
    documents = open_documents(begun_with, home, report)
    if missing := [name for name in trainer.data if name not in documents.names]:
        documents.close()
        raise MlxchatError(
            f"The run {config.tag} began with data that is not there: {', '.join(missing[:3])}.",
            "Put it back, name another run with --model-tag, or begin anew with --fresh.",
        )
    return documents


def _set_aside(home: Home, tag: str, clock: Clock) -> Iterator[Event]:
    """Rename an earlier run's checkpoints and log."""
    if not (home.runs / tag).exists():
        return
    number = 1
    while (home.runs / f"{tag}.old{number}").exists() or home.log(f"{tag}.old{number}").exists():
        number += 1
    aside = f"{tag}.old{number}"
    if home.log(tag).exists():
        home.log(tag).parent.rename(home.log(aside).parent)
    (home.runs / tag).rename(home.runs / aside)
    yield Noted(clock(), f"The earlier run was set aside as {aside}.")


def _require_same(config: PretrainConfig, trainer: TrainerState) -> None:
    if differences := config.differences(trainer.settings):
        raise MlxchatError(
            f"The run {config.tag} was begun with other settings: {', '.join(differences)}.",
            "Repeat those to go on, name another run with --model-tag, or set the old one aside "
            "with --fresh.",
        )


def _ready_tokenizer(
    config: PretrainConfig, home: Home, documents: Documents, report: Report, clock: Clock
) -> Generator[Event, None, Tokenizer]:
    folder = tokenizer_folder(config, home)
    if (folder / TOKENIZER).exists():
        tokenizer = Tokenizer.load(folder)
        if config.vocab_size not in (None, tokenizer.vocab_size):
            raise MlxchatError(
                f"The tokenizer in {folder} has {tokenizer.vocab_size:,} tokens, "
                f"not {config.vocab_size:,}.",
                "Leave out --vocab-size to use it, make another with mlxchat tokenizer train, or "
                "give --tokenizer-dir.",
            )
        return tokenizer
    yield Noted(clock(), f"No tokenizer yet: training one, to be kept in {folder}.")
    return train_tokenizer(documents, folder, config.vocab_size, report, clock=clock)


@dataclass
class _Pretraining:
    """A run and all its parts, new or as they were saved."""

    config: PretrainConfig
    home: Home
    documents: Documents
    meter: Meter
    clock: Clock
    plan: Plan
    tokenizer: Tokenizer
    model: GPT
    optimizer: MuonAdamW
    step: int
    loader: LoaderState

    @classmethod
    def begin(
        cls,
        config: PretrainConfig,
        home: Home,
        documents: Documents,
        meter: Meter,
        clock: Clock,
        tokenizer: Tokenizer,
    ) -> "_Pretraining":
        machine = runtime.machine()
        fused_attention = machine.backend != "cpu"
        capacity = Capacity(machine.memory, machine.compute_dtype.size, fused_attention)
        made = plan(config, tokenizer.vocab_size, capacity)
        model = GPT(made.model, machine.compute_dtype)
        initialise(model, mx.random.key(config.seed))
        optimizer = _optimizer(config, model)
        parts = (made, tokenizer, model, optimizer, 0, LoaderState())
        return cls(config, home, documents, meter, clock, *parts)

    @classmethod
    def resume(
        cls,
        config: PretrainConfig,
        home: Home,
        documents: Documents,
        meter: Meter,
        clock: Clock,
        saved: Path,
        trainer: TrainerState,
    ) -> "_Pretraining":
        stored = layout.read_model(saved, runtime.machine().compute_dtype)
        optimizer = _optimizer(config, stored.model)
        state = layout.read_arrays(saved / layout.OPTIMIZER)
        layout.check_arrays(saved / layout.OPTIMIZER, state, optimizer.state)
        optimizer.state = state
        made = Plan.model_validate(trainer.plan)
        batches = evaluation_batches(config, made.device_batch_size)
        made = made.model_copy(update={"eval_batches": batches})
        loader = layout.read_loader(saved)
        parts = (made, stored.tokenizer, stored.model, optimizer, trainer.step, loader)
        meter.restore(trainer.meter)
        return cls(config, home, documents, meter, clock, *parts)

    def events(self, stack: ExitStack, stop: Callable[[], bool]) -> Iterator[Event]:
        """What happens from here to the end; what is opened for it is left to ``stack``."""
        machine, plan = runtime.machine(), self.plan
        yield Started(
            self.clock(),
            self.config.tag,
            self.step,
            plan.num_iterations,
            plan.tokens_per_step,
            plan.flops_per_token,
            machine.peak_flops,
            machine.device,
            plan.parameters,
        )
        if self.step == 0:
            yield Noted(self.clock(), plan.summary())
        losses = mx.compile(self.model.losses, inputs=self.model.state)
        batches = stack.enter_context(
            Loader(
                self.documents.training(self.loader.cursor),
                self.tokenizer,
                plan.device_batch_size,
                self.config.max_seq_len,
                self.loader,
                stop,
            )
        )
        yield from train(
            Run(
                model=self.model,
                optimizer=self.optimizer,
                batches=batches,
                shards=self.documents.shards,
                rates=self.rates,
                step=self.step,
                evaluated=any(step == self.step for step, _ in self.meter.evaluations),
                total_steps=plan.num_iterations,
                accumulation=plan.accumulation,
                grad_clip=self.config.grad_clip,
                eval_every=self.config.eval_every,
                sample_every=self.config.sample_every,
                save_every=self.config.save_every,
                evaluate=lambda step: self.evaluate(step, losses, stop),
                sample=self.sample,
                save=self.save,
                stop=stop,
                clock=self.clock,
            )
        )

    def rates(self, step: int) -> Rates:
        """Learning rates and momentum after ``step`` updates."""
        multiplier = schedule.learning_rate_multiplier(
            step,
            self.plan.num_iterations,
            self.config.warmup_ratio,
            self.config.warmdown_ratio,
            self.config.final_lr_frac,
        )
        return Rates(
            mx.array(self.plan.embedding_lr * multiplier),
            mx.array(self.plan.unembedding_lr * multiplier),
            mx.array(self.plan.matrix_lr * multiplier),
            mx.array(schedule.muon_momentum(step)),
        )

    def evaluate(
        self,
        step: int,
        losses: Callable[[mx.array, mx.array], mx.array],
        stop: Callable[[], bool],
    ) -> Iterator[Event]:
        """Bits per byte on the validation documents, from their beginning."""
        batches = Loader(
            self.documents.validation(),
            self.tokenizer,
            self.plan.device_batch_size,
            self.config.max_seq_len,
            stop=lambda: stop() and step < self.plan.num_iterations,  # the last one is never cut
        )
        with batches:
            limit = self.plan.eval_batches
            yield from bits_per_byte(losses, batches, limit, self.tokenizer, step, self.clock)

    def sample(self, step: int) -> Iterator[Event]:
        """What the model makes of some prompts, greedily."""
        stop = frozenset({self.tokenizer.bos, self.tokenizer.special(ASSISTANT_END)})
        for prompt, ids in self._prompts():
            tokens = continue_greedily(self.model, ids, stop, SAMPLE_TOKENS)
            yield Sampled(self.clock(), step, prompt, self.tokenizer.decode(tokens))

    def _prompts(self) -> Iterator[tuple[str, list[int]]]:
        if not self.documents.conversational:
            for prompt in PROMPTS:
                yield prompt, [self.tokenizer.bos, *self.tokenizer.encode(prompt)]
            return
        for question in corpus.held_out(BUILTIN_PROMPTS):
            conversation = Conversation((Message("user", question.prompt),))
            yield question.prompt, self.tokenizer.render_for_completion(conversation)

    def save(self, step: int, loader: LoaderState) -> Iterator[Event]:
        """Save the step, then let go of the oldest ones beyond ``keep``."""
        begun = self.clock()
        trainer = TrainerState(
            step=step,
            settings=self.config.model_dump(mode="json"),
            plan=self.plan.model_dump(mode="json"),
            meter=self.meter.state(),
            data=list(self.documents.names),
        )

        def write(folder: Path) -> None:
            conversational = self.documents.conversational
            layout.write_model(folder, self.model, self.tokenizer, conversational)
            layout.write_trainer(folder, trainer, self.optimizer.state, loader)

        run = self.home.runs / self.config.tag
        path = store.save(run, step, write)
        store.prune(run, self.config.keep)
        yield Saved(self.clock(), step, str(path), self.clock() - begun)


def _optimizer(config: PretrainConfig, model: GPT) -> MuonAdamW:
    dtype = runtime.machine().compute_dtype
    return MuonAdamW(model.named_parameters(), config.weight_decay, dtype)
