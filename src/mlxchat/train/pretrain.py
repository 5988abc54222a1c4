"""Pretraining, from settings to a trained model: the recipe that `mlxchat train` runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mlxchat import runtime
from mlxchat.ckpt import layout, store
from mlxchat.ckpt.layout import TrainerState
from mlxchat.data import corpus
from mlxchat.data.conversations import Conversation, Message
from mlxchat.data.disk import storing, sync
from mlxchat.data.documents import Documents
from mlxchat.data.loader import Loader, LoaderState
from mlxchat.data.tokenizer import ASSISTANT_END, Tokenizer
from mlxchat.engine.generate import continue_greedily
from mlxchat.evaluate.bits import bits_per_byte
from mlxchat.home import Home
from mlxchat.meter import Meter
from mlxchat.model.gpt import GPT
from mlxchat.optim import schedule
from mlxchat.optim.groups import MuonAdamW, Rates
from mlxchat.runtime import mx
from mlxchat.status import Publisher, status_path
from mlxchat.telemetry import Event, JsonLines, Noted, Sampled, Saved, Started
from mlxchat.train.budget import reason
from mlxchat.train.divergence import DivergedError, check_arrays, ended
from mlxchat.train.fitting import Capacity, memory_limit
from mlxchat.train.inputs import (
    Clock,
    Report,
    open_documents,
    ready_tokenizer,
    reopen_documents,
    revision,
    saved_run,
)
from mlxchat.train.learner import begin, resume
from mlxchat.train.loop import Run, train
from mlxchat.train.pace import Pace
from mlxchat.train.plan import Plan, refitted
from mlxchat.train.probe import capacity, planned
from mlxchat.train.settings import PretrainConfig

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
            tokenizer or checkpoint cannot be read; or the loss is NaN or infinite.
    """
    begun = clock()
    meter = meter or Meter()
    with ExitStack() as stack:
        stack.enter_context(store.locked(home.runs / config.tag))
        store.tidy(home.runs / config.tag)
        saved = None if fresh else saved_run(config, home)
        if saved and saved.finished:
            yield Noted(clock(), f"The run {config.tag} is finished: {saved.folder}")
            return
        runtime.bound_buffer_cache()
        if saved:
            documents = reopen_documents(config, home, report, saved.trainer)
        else:
            documents = open_documents(config, home, report)
        stack.enter_context(closing(documents))
        if config.of_preset:
            yield Noted(clock(), f"Preset {config.preset}: {config.of_preset}")
        available = capacity()
        if saved:
            made = refitted(saved.plan, config, available)
            _hold_memory(made, config, available)
            learner = resume(saved._replace(plan=made))
            if made != saved.plan:
                text = f"Computed otherwise than before, to learn the same: {made.summary()}"
                yield Noted(clock(), text)
            meter.restore(saved.trainer.meter)
        else:
            tokenizer = yield from ready_tokenizer(config, home, documents, report, clock)
            if config.budget:
                yield Noted(
                    clock(), f"Measuring how fast this machine trains, for {config.budget}."
                )
            made = planned(config, tokenizer.vocab_size, available, begun, clock)
            _hold_memory(made, config, available)
            learner = begin(made, tokenizer, config.seed)
            if fresh:
                yield from _set_aside(home, config.tag, clock)
        run = _Pretraining(config, home, documents, meter, clock, begun, *learner)
        log = stack.enter_context(JsonLines.resume(home.log(config.tag), run.step))
        status = stack.enter_context(
            Publisher(status_path(home.log(config.tag)), meter, runtime.memory_use, clock)
        )
        for event in run.events(stack, stop):
            meter.update(event)
            log.write(event)
            status.update(event)
            yield event


def _hold_memory(made: Plan, config: PretrainConfig, available: Capacity) -> None:
    limit = memory_limit(config, made.model, made.rows, available)
    runtime.hold_memory(limit, made.memory(available)["peak"], config.wired_bytes)


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


@dataclass
class _Pretraining:
    """A run and all its parts."""

    config: PretrainConfig
    home: Home
    documents: Documents
    meter: Meter
    clock: Clock
    begun: float  # when this process took the run up, by the clock
    plan: Plan
    tokenizer: Tokenizer
    model: GPT
    optimizer: MuonAdamW
    step: int
    loader: LoaderState

    def __post_init__(self) -> None:
        self.pace: Pace | None = None
        if self.config.budget_seconds and self.plan.costs:
            origin = self.begun - self.plan.costs.spent
            budget = float(self.config.budget_seconds)
            self.pace = Pace(self.config, budget, self.plan.costs, origin, self.clock())

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
            plan.memory(capacity())["peak"],
        )
        if self.step == 0:
            yield Noted(self.clock(), plan.summary())
            if plan.costs:
                yield Noted(self.clock(), reason(self.config, plan))
        in_chunks = partial(self.model.losses, rows=plan.loss_rows)
        losses = mx.compile(in_chunks, inputs=self.model.state)
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
        run = Run(
            model=self.model,
            optimizer=self.optimizer,
            batches=batches,
            shards=self.documents.shards,
            rates=self.rates,
            step=self.step,
            evaluated=any(step == self.step for step, _ in self.meter.evaluations),
            total_steps=plan.num_iterations,
            accumulation=plan.accumulation,
            grad_clip=plan.grad_clip,
            grad_checkpoint=plan.grad_checkpoint,
            loss_rows=plan.loss_rows,
            eval_every=self.config.eval_every,
            sample_every=self.config.sample_every,
            save_every=self.config.save_every,
            evaluate=lambda step: self.evaluate(step, losses, stop),
            sample=self.sample,
            save=self.save,
            stop=stop,
            clock=self.clock,
        )
        try:
            for event in train(run):
                yield event
                yield from self.keep_pace(run, event)
        except DivergedError as error:
            folder = self.home.runs / self.config.tag
            raise ended(error, folder, self.documents.names) from error

    def keep_pace(self, run: Run, event: Event) -> Iterator[Event]:
        """Correct the number of steps where the time budget asks for it."""
        if self.pace is None:
            return
        before, self.plan = self.plan, self.pace.follow(event, self.plan)
        if self.plan is before:
            return
        run.total_steps = self.plan.num_iterations
        if self.meter.started:
            self.meter.started = replace(self.meter.started, total_steps=run.total_steps)
        yield Noted(
            self.clock(),
            f"{run.total_steps:,} steps fit into the budget of {self.config.budget}, not "
            f"{before.num_iterations:,}.",
        )

    def rates(self, step: int) -> Rates:
        """Learning rates, momentum and weight decay after ``step`` updates."""
        plan, arch = self.plan, self.plan.model.arch
        total, warmdown = plan.num_iterations, plan.warmdown_ratio
        multiplier = schedule.learning_rate_multiplier(
            step, total, plan.warmup_steps, warmdown, plan.final_lr_frac
        )
        decay = plan.weight_decay * schedule.weight_decay_multiplier(arch, step, total)
        return Rates(
            {group: mx.array(rate * multiplier) for group, rate in plan.learning_rates.items()},
            mx.array(schedule.muon_momentum(arch, step, total, warmdown)),
            mx.array(decay),
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
        prompts, ids = zip(*self._prompts(), strict=True)
        for prompt, tokens in zip(
            prompts, continue_greedily(self.model, ids, stop, SAMPLE_TOKENS), strict=True
        ):
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
        """Save the step, then let go of the oldest ones beyond ``keep``.

        The log is on the disk before: a power cut loses no line of a saved step.
        """
        begun = self.clock()
        check_arrays(self.model.named_parameters(), step, loader.cursor)
        check_arrays(self.optimizer.state, step, loader.cursor)
        log = self.home.log(self.config.tag)
        with storing(log):
            for path in (log, log.parent):
                sync(path)
        costs = self.pace.costs(begun) if self.pace else None
        plan = self.plan.model_copy(update={"costs": costs})
        trainer = TrainerState(
            step=step,
            settings=self.config.model_dump(mode="json"),
            plan=plan.model_dump(mode="json"),
            meter=self.meter.state(),
            data=list(self.documents.names),
            revision=revision(self.config, self.home),
        )

        def write(folder: Path) -> None:
            conversational = self.documents.conversational
            layout.write_model(folder, self.model, self.tokenizer, conversational)
            layout.write_trainer(folder, trainer, self.optimizer.state, loader)

        run = self.home.runs / self.config.tag
        path = store.save(run, step, write)
        store.prune(run, self.config.keep)
        yield Saved(self.clock(), step, str(path), self.clock() - begun)
