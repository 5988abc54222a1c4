"""The activities of a run between steps: evaluation, CORE, samples and saving."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxchat.checkpoint import layout, store, trainer
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.data.documents import Documents
from mlxchat.data.loader import LoaderState
from mlxchat.plan.deadline import Deadline
from mlxchat.telemetry.events import Evaluated, Event, Judged, Noted, Saved
from mlxchat.telemetry.log import RunLog
from mlxchat.telemetry.meter import Meter
from mlxchat.train.core import RunCore
from mlxchat.train.divergence import check_finite
from mlxchat.train.ranks import Leader, RankBatches
from mlxchat.train.resume import TrainState
from mlxchat.train.stage import Stage


@dataclass
class Activities:
    """The activities of a run.

    Args:
        stage: the stage, with the settings.
        documents: the dataset.
        state: the model, optimizer and plan being trained; the plan may change during the run.
        meter: the summary of the run, stored in each checkpoint.
        log: the run's log, synced to disk before a step is saved.
        core: measures CORE; None if nobody asked for it.
        deadline: enforces the time budget, if there is one.
        revision: the revision of the dataset's files that a resumed run recorded; None if new.
        asked_to_stop: polled; returns True to save and stop.

    Attributes:
        leader: announces steps and evaluations to the other ranks.
    """

    stage: Stage[Any, Any]
    documents: Documents
    state: TrainState
    meter: Meter
    log: RunLog
    core: RunCore | None
    deadline: Deadline | None
    revision: str | None
    asked_to_stop: Callable[[], bool]

    def __post_init__(self) -> None:
        stage, state = self.stage, self.state
        rank_batches = RankBatches(
            stage.world,
            self._must_stop,
            state.model.named_trainable,
            show=lambda text: stage.report(Noted(stage.clock(), text)),
        )
        self.leader = Leader(stage.world, lambda: state.plan, rank_batches)
        self._evaluation = stage.evaluation(self.documents, state, rank_batches.draw)

    def stop(self) -> bool:
        """Return whether to save and stop. Ranks agree on that at each step, not in between."""
        return self.stage.world.alone and self._must_stop()

    def _must_stop(self) -> bool:
        return self.log.failed or self.asked_to_stop()

    def evaluate(self, step: int) -> Iterator[Event]:
        """Measure the model on what is held out.

        The evaluation after the last step is not cut short by ``stop``.
        """

        def stop() -> bool:
            return self.stop() and step < self.state.plan.num_iterations

        self.leader.evaluation(step)
        for event in self._evaluation.events(step, stop):
            if isinstance(event, Evaluated):
                yield replace(event, best=self.meter.is_best(event.bits_per_byte))
            elif isinstance(event, Judged):
                yield replace(event, best=self.meter.is_best_score(event.pass_1))
            else:
                yield event

    def measure_core(self, step: int) -> Iterator[Event]:
        """Measure CORE. Whoever asks the run to end does not wait for it, after any step."""
        if self.core:
            yield from self.core.events(step, self.state, self.stage.clock, self.leader.wait)

    def sample(self, step: int) -> Iterator[Event]:
        """Show what the model writes."""
        yield from self.stage.sampled(self.documents, self.state, step)

    def save(self, step: int, loader: LoaderState) -> Iterator[Event]:
        """Save a checkpoint, then remove the oldest ones beyond ``keep``, but not the best.

        The log is synced first: a power failure loses no line of a checkpoint.
        """
        stage, state = self.stage, self.state
        began = stage.clock.seconds()
        check_finite(state.model.named_trainable(), step, loader.cursor)
        check_finite(state.optimizer.state, step, loader.cursor)
        self.log.sync()
        record = self._trainer_state(step, began)

        def write(folder: Path) -> None:
            conversational = self.documents.conversational
            saved = SavedModel(state.model, state.tokenizer, conversational, state.base)
            layout.write_saved(folder, saved)
            trainer.write_state(folder, record, state.optimizer.state, loader)
            if state.base_history:
                state.base_history.write(folder)

        path = store.save(stage.folder, step, write, state.nbytes, stage.clock)
        store.prune(stage.folder, stage.config.keep)
        yield Saved(stage.clock(), step, str(path), stage.clock.seconds() - began)

    def _trainer_state(self, step: int, seconds: float) -> trainer.TrainerState[Any]:
        costs = self.deadline.costs(seconds) if self.deadline else None
        return trainer.TrainerState(
            step=step,
            stage=self.stage.name,
            settings=self.stage.config,
            plan=self.state.plan.model_copy(update={"costs": costs}),
            meter=self.meter.state(),
            data=list(self.documents.names),
            revision=self.stage.revision or self.revision,
            fingerprints=self.documents.fingerprints,
        )
