"""CORE during a run, measured by rank 0 while the other ranks wait."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from mlxchat.config.core import CoreConfig
from mlxchat.errors import DataError
from mlxchat.evaluate.answers import MAX_BATCH_TOKENS
from mlxchat.evaluate.core import CORE, CoreResult, core_scores, measure_core
from mlxchat.evaluate.core_batches import BatchLimit
from mlxchat.evaluate.core_bundle import Bundle, open_bundle
from mlxchat.evaluate.core_examples import CoreExamples, read_items
from mlxchat.evaluate.core_kept import Verdicts
from mlxchat.evaluate.core_tasks import CORE_TASKS, CoreItem
from mlxchat.home import Home
from mlxchat.plan.plan import Plan
from mlxchat.runtime import memory_room, mx
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import CoreMeasured, Event, Noted, Report
from mlxchat.train.resume import TrainState


class RunCore:
    """Evaluates the model in training on CORE.

    Its examples are encoded once, and kept for the next measurement.

    Args:
        items: the examples of each task.
        config: the settings.
    """

    def __init__(self, items: Mapping[str, Sequence[CoreItem]], config: CoreConfig) -> None:
        self.every = config.core_every
        self._items, self._max_per_task = items, config.core_max_per_task
        self._examples: CoreExamples | None = None

    @classmethod
    def open(cls, config: CoreConfig, home: Home, report: Report) -> "RunCore | None":
        """Read the examples that the settings name; None if they ask for no CORE.

        Args:
            config: the settings.
            home: where the examples are by default; they are fetched if they are missing.
            report: receives the progress of that.

        Raises:
            MlxchatError: they are missing, damaged or too few, or cannot be fetched.
        """
        if not config.core_every:
            return None
        bundle = open_bundle(config.core_bundle, home.eval_bundle, report)
        return cls(read_items(bundle, list(CORE_TASKS), config.core_max_per_task), config)

    def events(
        self, step: int, state: TrainState, clock: Clock, stop: Callable[[], bool]
    ) -> Iterator[Event]:
        """Measure CORE after a step, yielding progress and, last, a `CoreMeasured`.

        If it is not measured, a `Noted` says so: that is no reason to end a run.

        Args:
            step: the number of steps done.
            state: what is trained.
            clock: stamps the events.
            stop: asked between two batches; return True to end without a result.
        """
        began, verdicts = clock.seconds(), Verdicts()
        if self._examples is None:
            self._examples = CoreExamples(self._items, state.tokenizer, keep=True)
        examples, limit = self._examples, batches_beside(state.plan)
        try:
            for event in measure_core(state.model, examples, verdicts, limit, clock):
                if event.task == CORE:
                    yield event
                if stop():
                    yield Noted(clock(), f"CORE was not measured after step {step:,}.")
                    return
        except DataError as error:
            yield Noted(clock(), f"CORE was not measured. {error.problem}")
            return
        result = CoreResult(core_scores(examples, verdicts), self._max_per_task)
        yield CoreMeasured(
            clock(),
            step=step,
            core=result.core,
            error=result.error,
            max_per_task=self._max_per_task,
            seconds=clock.seconds() - began,
            centered={score.task: score.centered for score in result.scores},
        )


def batches_beside(plan: Plan) -> BatchLimit:
    """Return what is computed at a time beside a run: at most as much as training computes.

    So the memory is that of the plan, and who asks a run to end waits no longer than for a step.
    """
    tokens = plan.device_batch_size * plan.model.sequence_len
    memory = None
    if plan.memory_limit:  # not known in older checkpoints
        memory = max(0, memory_room(plan.memory_limit, plan.peak) - mx.get_active_memory())
    return BatchLimit(min(tokens, MAX_BATCH_TOKENS), memory)


def check_core(config: CoreConfig, home: Home) -> None:
    """Raise what `RunCore.open` would raise, as far as the disk shows it; nothing is fetched."""
    path = config.core_bundle or home.eval_bundle
    if config.core_every and (config.core_bundle or path.exists()):
        read_items(Bundle(path), list(CORE_TASKS), config.core_max_per_task)
