"""A run from its settings to a trained model, whatever its stage: it begins anew, or goes on.

What a model makes of some prompts while it is trained.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

from mlxchat import runtime
from mlxchat.checkpoint import layout, store
from mlxchat.checkpoint.files import require_connected
from mlxchat.checkpoint.layout import TrainerState
from mlxchat.data.documents import Documents
from mlxchat.data.loader import Batch, Loader, LoaderState, first_rows
from mlxchat.engine.generate import Tool, continue_greedily
from mlxchat.engine.tools import ToolUse
from mlxchat.errors import ConfigError
from mlxchat.evaluate.loss import bits_per_byte
from mlxchat.model.gpt import GPT
from mlxchat.optim import schedule
from mlxchat.optim.optimizer import Rates
from mlxchat.plan.memory import Capacity
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Event, Noted, Replanned, Sampled, Saved, Started
from mlxchat.telemetry.log import RunLog
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.status import StatusFile, status_path
from mlxchat.tokenizer.bpe import ASSISTANT_END, Tokenizer
from mlxchat.train.divergence import NotFiniteError, check_arrays, ended
from mlxchat.train.loop import Run, train
from mlxchat.train.measure import capacity
from mlxchat.train.resume import Learner, go_on
from mlxchat.train.stage import Stage

MOST = 7
TOKENS = 16  # of a sample at most, and a quarter of the context


def samples(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Iterable[tuple[str, list[int]]],
    tools: Callable[[], Tool] | None,
) -> Iterator[tuple[str, str]]:
    """The first prompts that leave room in the context, each with its greedy continuation.

    Args:
        prompts: in words, and as ids.
        tools: that the model may use; None for none.
    """
    context = model.config.sequence_len
    length = min(TOKENS, context // 4)
    room = context - length
    fitting = list(islice(((words, ids) for words, ids in prompts if len(ids) <= room), MOST))
    if not fitting:
        return
    stop = frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)})
    continuations = continue_greedily(model, [ids for _, ids in fitting], stop, length, tools)
    for (words, _), tokens in zip(fitting, continuations, strict=True):
        yield words, tokenizer.decode(tokens)


def conduct(
    stage: Stage[Any, Any],
    meter: Meter | None = None,
    stop: Callable[[], bool] = lambda: False,
    fresh: bool = False,
) -> Iterator[Event]:
    """Begin a run, or go on with the one of the same name; yields what happens.

    Args:
        stage: what is trained, and how.
        meter: folds the events before they are yielded, and goes into the checkpoints.
        stop: asked again and again whether to save and end.
        fresh: set an earlier run of that name aside and begin anew.

    Raises:
        MlxchatError: the settings cannot work, are not those of the run to go on with, or data,
            tokenizer or checkpoint cannot be read; the loss is NaN or infinite; or checkpoint or
            log cannot be written.
    """
    clock, home, tag = stage.clock, stage.home, stage.config.tag
    begun = clock()
    meter = meter or Meter()
    with ExitStack() as stack:
        stack.enter_context(store.locked(stage.folder))
        require_connected(home.log(tag))
        store.tidy(stage.folder)
        saved = None if fresh else stage.saved()
        if saved and saved.finished:
            yield Noted(clock(), f"The run {tag} is finished: {saved.folder}")
            return
        _require_own_name(stage)
        runtime.bound_buffer_cache()
        documents = stack.enter_context(closing(stage.open(saved)))
        for note in stage.notes(documents):
            yield Noted(clock(), note)
        available, revision = capacity(), None
        if saved:
            revision = saved.trainer.revision
            learner = yield from go_on(stage.config, saved, available, clock)
            meter.restore(saved.trainer.meter)
        else:
            learner = yield from stage.begin(documents, available, begun)
            if fresh:
                yield from _set_aside(stage)
        path = home.log(tag)
        log = stack.enter_context(RunLog(path, learner.step))
        status = stack.enter_context(
            StatusFile(status_path(path), meter, runtime.memory_use, clock)
        )
        training = _Training(stage, documents, revision, meter, log, begun, available, learner)
        for event in training.events(stack, lambda: log.failed or stop()):
            meter.update(event)
            log.write(event)
            status.update(event)
            yield event
        log.check()


def _require_own_name(stage: Stage[Any, Any]) -> None:
    """A name is one run's only, whatever its stage: log and commands know it by that.

    Raises:
        MlxchatError: one of another stage has it.
    """
    tag = stage.config.tag
    for runs in stage.home.stages:
        if runs != stage.folder.parent and store.latest(runs / tag):
            raise ConfigError(
                f"{tag} is the name of another run: {runs / tag}.",
                "Name this one with `model_tag`.",
            )


def _set_aside(stage: Stage[Any, Any]) -> Iterator[Event]:
    """Rename an earlier run's checkpoints and log."""
    home, run = stage.home, stage.folder
    if not run.exists():
        return
    names = (f"{run.name}.old{number}" for number in count(1))
    aside = next(n for n in names if not (run.with_name(n).exists() or home.log(n).exists()))
    if home.log(run.name).exists():
        home.log(run.name).parent.rename(home.log(aside).parent)
    run.rename(run.with_name(aside))
    yield Noted(stage.clock(), f"The earlier run was set aside as {aside}.")


@dataclass
class _Training:
    """A run and all its parts."""

    stage: Stage[Any, Any]
    documents: Documents
    revision: str | None  # of the dataset's files, as the run that goes on knows it
    meter: Meter
    log: RunLog
    begun: float  # when this process took the run up, by the clock
    available: Capacity
    learner: Learner

    def __post_init__(self) -> None:
        self.clock, self.config = self.stage.clock, self.stage.config
        self.pace = self.stage.pace(self.learner.plan, self.begun)

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
            for note in self.stage.because(plan):
                yield Noted(self.clock(), note)
        batches = stack.enter_context(
            Loader(
                self.documents.training(learner.loader.cursor),
                learner.tokenizer,
                plan.device_batch_size,
                plan.model.sequence_len,
                learner.loader,
                stop,
                self.documents.conversational,
            )
        )
        run = self.run(batches, stop)
        try:
            for event in train(run):
                yield event
                yield from self.keep_pace(run, event)
        except NotFiniteError as error:
            raise ended(error, self.stage.folder, self.documents.names) from error

    def run(self, batches: Iterator[Batch], stop: Callable[[], bool]) -> Run:
        """What the loop needs."""
        learner, plan = self.learner, self.learner.plan
        in_chunks = partial(learner.model.losses, chunk_rows=plan.loss_rows)
        losses = mx.compile(in_chunks, inputs=learner.model.state)
        return Run(
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
        steps = run.total_steps, before.num_iterations
        yield Replanned(self.clock(), self.meter.step, *steps, self.pace.budget)

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
            mx.array(self.stage.momentum(plan, step)),
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

        rows, context = plan.device_batch_size, plan.model.sequence_len
        documents, answers_only = self.documents.validation(), self.documents.conversational
        with Loader(
            documents, tokenizer, rows, context, stop=cut, answers_only=answers_only
        ) as batches:
            wanted = first_rows(batches, plan.eval_rows)
            limit = math.ceil(plan.eval_rows / rows)
            yield from bits_per_byte(losses, wanted, limit, tokenizer, step, self.clock)

    def sample(self, step: int) -> Iterator[Event]:
        """What the model makes of some prompts."""
        model, tokenizer = self.learner.model, self.learner.tokenizer
        prompts = self.stage.prompts(tokenizer, self.documents)
        tools = partial(ToolUse, tokenizer) if self.documents.conversational else None
        for prompt, text in samples(model, tokenizer, prompts, tools):
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
            stage=self.stage.name,
            settings=self.config.model_dump(mode="json"),
            plan=plan.model_dump(mode="json"),
            meter=self.meter.state(),
            data=list(self.documents.names),
            revision=self.stage.revision or self.revision,
            fingerprints=self.documents.fingerprints,
        )

        def write(folder: Path) -> None:
            conversational = self.documents.conversational
            layout.write_model(folder, learner.model, learner.tokenizer, conversational)
            layout.write_trainer(folder, trainer, learner.optimizer.state, loader)
            if learner.past:
                learner.past.write(folder)

        path = store.save(self.stage.folder, step, write, learner.nbytes)
        store.prune(self.stage.folder, self.config.keep)
        yield Saved(self.clock(), step, str(path), self.clock() - begun)
