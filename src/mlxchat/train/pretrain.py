"""Pretraining, from settings to a trained model: the recipe that `mlxchat train` runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

from mlxchat import runtime
from mlxchat.ckpt import layout, store
from mlxchat.ckpt.layout import TrainerState
from mlxchat.data.documents import Documents
from mlxchat.data.loader import Loader, LoaderState
from mlxchat.evaluate.bits import bits_per_byte
from mlxchat.home import Home
from mlxchat.meter import Meter
from mlxchat.optim import schedule
from mlxchat.optim.groups import Rates
from mlxchat.runtime import mx
from mlxchat.status import Publisher, status_path
from mlxchat.telemetry import Event, Noted, Sampled, Saved, Started
from mlxchat.train.budget import reason
from mlxchat.train.divergence import DivergedError, check_arrays, ended
from mlxchat.train.fitting import Capacity
from mlxchat.train.inputs import (
    Clock,
    Report,
    fingerprints_of,
    open_documents,
    ready_tokenizer,
    reopen_documents,
    revision,
    saved_run,
)
from mlxchat.train.learner import Learner, begin, go_on
from mlxchat.train.loop import Run, train
from mlxchat.train.pace import Pace
from mlxchat.train.probe import capacity
from mlxchat.train.runlog import RunLog
from mlxchat.train.samples import samples
from mlxchat.train.settings import PretrainConfig


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
            tokenizer or checkpoint cannot be read; the loss is NaN or infinite; or checkpoint or
            log cannot be written.
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
        available, fingerprints = capacity(), fingerprints_of(documents, config, home)
        if saved:
            fingerprints = saved.trainer.fingerprints | fingerprints
            learner = yield from go_on(config, saved, available, clock)
            meter.restore(saved.trainer.meter)
        else:
            tokenizer = yield from ready_tokenizer(config, home, documents, report, clock)
            learner = yield from begin(config, tokenizer, available, begun, clock)
            if fresh:
                yield from _set_aside(home, config.tag, clock)
        path = home.log(config.tag)
        log = stack.enter_context(RunLog(path, learner.step))
        status = stack.enter_context(Publisher(status_path(path), meter, runtime.memory_use, clock))
        run = _Pretraining(
            config, home, documents, fingerprints, meter, log, clock, begun, available, learner
        )
        for event in run.events(stack, lambda: log.failed or stop()):
            meter.update(event)
            log.write(event)
            status.update(event)
            yield event
        log.check()


def _set_aside(home: Home, tag: str, clock: Clock) -> Iterator[Event]:
    """Rename an earlier run's checkpoints and log."""
    if not (home.runs / tag).exists():
        return
    names = (f"{tag}.old{number}" for number in count(1))
    aside = next(n for n in names if not ((home.runs / n).exists() or home.log(n).exists()))
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
    fingerprints: dict[str, str]  # of the dataset's files
    meter: Meter
    log: RunLog
    clock: Clock
    begun: float  # when this process took the run up, by the clock
    available: Capacity
    learner: Learner

    def __post_init__(self) -> None:
        self.pace: Pace | None = None
        costs = self.learner.plan.costs
        if self.config.budget_seconds and costs:
            origin = self.begun - costs.spent
            budget = float(self.config.budget_seconds)
            self.pace = Pace(self.config, budget, costs, origin, self.clock())

    def events(self, stack: ExitStack, stop: Callable[[], bool]) -> Iterator[Event]:
        """What happens from here to the end; what is opened for it is left to ``stack``."""
        machine, learner = runtime.machine(), self.learner
        plan = learner.plan
        yield Started(
            self.clock(),
            self.config.tag,
            learner.step,
            plan.num_iterations,
            plan.tokens_per_step,
            plan.flops_per_token,
            machine.peak_flops,
            machine.device,
            plan.parameters,
            plan.memory(self.available)["peak"],
        )
        if learner.step == 0:
            yield Noted(self.clock(), plan.summary())
            if plan.costs:
                yield Noted(self.clock(), reason(self.config, plan))
        in_chunks = partial(learner.model.losses, rows=plan.loss_rows)
        losses = mx.compile(in_chunks, inputs=learner.model.state)
        batches = stack.enter_context(
            Loader(
                self.documents.training(learner.loader.cursor),
                learner.tokenizer,
                plan.device_batch_size,
                self.config.max_seq_len,
                learner.loader,
                stop,
            )
        )
        run = Run(
            model=learner.model,
            optimizer=learner.optimizer,
            batches=batches,
            shards=self.documents.shards,
            rates=self.rates,
            step=learner.step,
            evaluated=any(step == learner.step for step, _ in self.meter.evaluations),
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
        before = self.learner.plan
        plan = self.pace.follow(event, before)
        if plan is before:
            return
        self.learner = self.learner._replace(plan=plan)
        run.total_steps = plan.num_iterations
        if self.meter.started:
            self.meter.started = replace(self.meter.started, total_steps=run.total_steps)
        yield Noted(
            self.clock(),
            f"{run.total_steps:,} steps fit into the budget of {self.config.budget}, not "
            f"{before.num_iterations:,}.",
        )

    def rates(self, step: int) -> Rates:
        """Learning rates, momentum and weight decay after ``step`` updates."""
        plan, arch = self.learner.plan, self.learner.plan.model.arch
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
        plan, tokenizer = self.learner.plan, self.learner.tokenizer

        def cut() -> bool:  # the last one never is
            return stop() and step < self.learner.plan.num_iterations

        rows, context = plan.device_batch_size, self.config.max_seq_len
        with Loader(self.documents.validation(), tokenizer, rows, context, stop=cut) as batches:
            limit = plan.eval_batches
            yield from bits_per_byte(losses, batches, limit, tokenizer, step, self.clock)

    def sample(self, step: int) -> Iterator[Event]:
        """What the model makes of some prompts."""
        learner = self.learner
        for prompt, text in samples(learner.model, learner.tokenizer, self.documents):
            yield Sampled(self.clock(), step, prompt, text)

    def save(self, step: int, loader: LoaderState) -> Iterator[Event]:
        """Save the step, then let go of the oldest ones beyond ``keep``.

        The log is on the disk before: a power cut loses no line of a saved step.
        """
        begun, learner = self.clock(), self.learner
        check_arrays(learner.model.named_parameters(), step, loader.cursor)
        check_arrays(learner.optimizer.state, step, loader.cursor)
        self.log.sync()
        costs = self.pace.costs(begun) if self.pace else None
        plan = learner.plan.model_copy(update={"costs": costs})
        trainer = TrainerState(
            step=step,
            settings=self.config.model_dump(mode="json"),
            plan=plan.model_dump(mode="json"),
            meter=self.meter.state(),
            data=list(self.documents.names),
            revision=revision(self.config, self.home),
            fingerprints=self.fingerprints,
        )

        def write(folder: Path) -> None:
            conversational = self.documents.conversational
            layout.write_model(folder, learner.model, learner.tokenizer, conversational)
            layout.write_trainer(folder, trainer, learner.optimizer.state, loader)

        run = self.home.runs / self.config.tag
        path = store.save(run, step, write)
        store.prune(run, self.config.keep)
        yield Saved(self.clock(), step, str(path), self.clock() - begun)
