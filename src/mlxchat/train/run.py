"""A run from its settings to a trained model: the sequence of events, common to all stages."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from itertools import count
from typing import Any

from mlxchat import __version__, runtime
from mlxchat.checkpoint import catalog, store
from mlxchat.checkpoint.best import scored_steps
from mlxchat.checkpoint.evaluation_files import (
    evaluations_by_run,
    evaluations_of,
    rename_evaluations,
)
from mlxchat.checkpoint.files import require_connected
from mlxchat.checkpoint.run_names import require_own_spelling
from mlxchat.data.documents import Documents
from mlxchat.device_failures import explained
from mlxchat.disk import storing
from mlxchat.errors import ConfigError, command
from mlxchat.plan.memory import Resources
from mlxchat.system import python_version, system_version
from mlxchat.telemetry.events import Ended, Event, Noted, Replanned, Report, Started
from mlxchat.telemetry.log import RunLog
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.status import StatusFile, status_path
from mlxchat.telemetry.tracked import TrackedRun, tracked_settings
from mlxchat.telemetry.trackers import require_tracker
from mlxchat.telemetry.tracking import Tracking
from mlxchat.train.activities import Activities
from mlxchat.train.batches import Batches
from mlxchat.train.divergence import NotFiniteError, diverged
from mlxchat.train.loop import Cadence, Hooks, train
from mlxchat.train.measure import resources_of_all
from mlxchat.train.parts import step_parts
from mlxchat.train.ranks import differing
from mlxchat.train.resume import SavedRun, TrainState, resume
from mlxchat.train.sharing import send
from mlxchat.train.stage import Prepared, Stage
from mlxchat.train.world import RanksDifferError

CLEARLY_WORSE_SCORE = 0.03  # of the questions; less may be chance


def run(
    stage: Stage[Any, Any],
    meter: Meter | None = None,
    stop: Callable[[], bool] = lambda: False,
    fresh: bool = False,
) -> Iterator[Event]:
    """Start a run, or resume the one of the same name; yields what happens.

    Args:
        stage: what is trained, and how.
        meter: folds the events before they are yielded, and goes into the checkpoints.
        stop: polled; return True to save and stop.
        fresh: set an earlier run of that name aside and start from scratch.

    Raises:
        ConfigError: the settings cannot work, or are not those of the run to resume.
        DataError: data or tokenizer cannot be read, or are not those of the run to resume.
        CheckpointError: the checkpoint cannot be read.
        MemoryLimitError: training does not fit into the memory.
        LockedError: another process trains this run.
        DiskError: checkpoint or log cannot be written.
        DivergedError: the loss or a weight is NaN or infinite.
        DeviceError: the device failed.
    """
    config, home, clock = stage.config, stage.home, stage.clock
    meter, started_at = meter or Meter(), clock.seconds()
    require_tracker(config.track)
    with ExitStack() as stack:
        # Only one process at a time may write to a run.
        stack.enter_context(store.locked(stage.folder))
        require_connected(home.log(config.tag))
        store.tidy(stage.folder)

        require_own_spelling(home, config.tag, "model_tag")

        # Was it started before?
        saved = None if fresh else stage.saved()
        if saved and saved.trainer.finished:
            yield Noted(clock(), f"The run {config.tag} is finished: {saved.folder}")
            stage.world.dismiss()
            return
        _require_own_name(stage)
        core = stage.core()  # what is missing is said before the tokenizer is trained

        runtime.bound_buffer_cache()
        # Measured now, while the device is idle and empty; `Started` reports it.
        runtime.product_flops(runtime.compute_dtype(config.dtype))

        # Data
        documents = stack.enter_context(closing(stage.open(saved)))
        for note in stage.notes(documents):
            yield Noted(clock(), note)

        # Plan, tokenizer, model and optimizer: as saved, or new
        resources = resources_of_all(stage.world, config.dtype)
        if saved:
            state, notes = yield from _resume(stage, saved, resources, meter)
        else:
            state, notes = yield from _begin(stage, documents, resources, started_at, fresh)
        send(stage, documents, state)

        # Log, status file and tracker: other programs follow the run by them.
        path = home.log(config.tag)
        log = stack.enter_context(RunLog(path, state.step))
        status = stack.enter_context(
            StatusFile(status_path(path), meter, runtime.memory_use, clock)
        )
        track = stack.enter_context(_tracking(stage, state, meter, stop))

        # Training
        activities = Activities(
            stage,
            documents,
            state,
            meter,
            log,
            core,
            stage.deadline(state.plan, started_at),
            saved.trainer.revision if saved else None,
            stop,
        )
        batches = stack.enter_context(stage.batches(documents, state, activities.stop))
        for event in _events(activities, batches, notes):
            store.require_lock(stage.folder)
            meter.update(event)
            log.write(event)
            status.update(event)
            track(event)
            yield event
        stage.world.dismiss()
        log.check()


def _require_own_name(stage: Stage[Any, Any]) -> None:
    """Check that no run of another stage has the same name: commands and log go by that.

    Raises:
        ConfigError: one has.
    """
    tag = stage.config.tag
    for runs in stage.home.stages:
        if runs != stage.folder.parent and store.latest(runs / tag):
            raise ConfigError(
                f"The name {tag} is already used by another run: {runs / tag}.",
                "Choose another name with `model_tag`.",
            )


def _resume(
    stage: Stage[Any, Any], saved: SavedRun[Any], resources: Resources, meter: Meter
) -> Generator[Event, None, Prepared]:
    """Load a saved run, and its meter."""
    state = yield from resume(stage.config, saved, resources, stage.clock)
    meter.restore(saved.trainer.meter)
    return Prepared(state, ())


def _begin(
    stage: Stage[Any, Any],
    documents: Documents,
    resources: Resources,
    started_at: float,
    fresh: bool,
) -> Generator[Event, None, Prepared]:
    """Prepare a new run; with ``fresh``, an earlier one is set aside once that has succeeded."""
    state, notes = yield from stage.prepare(documents, resources, started_at)
    stage.world.rows(state.plan.rows_per_step)
    if fresh:
        yield from _set_aside(stage)
    return Prepared(state, (state.plan.summary(), *notes))


def _tracking(
    stage: Stage[Any, Any], state: TrainState, meter: Meter, stop: Callable[[], bool]
) -> AbstractContextManager[Report]:
    """Return a context whose function gives events to the tracker, if the settings name one."""
    config, clock = stage.config, stage.clock
    if config.track is None:
        return nullcontext(lambda _: None)
    here = {
        "stage": stage.name,
        "device": runtime.machine().device,
        "ranks": stage.world.size,
        "mlxchat": __version__,
    }
    settings = tracked_settings(config.for_trackers(), state.plan.for_trackers(), here)
    folder = str(stage.home.log(config.tag).parent)
    return Tracking(
        TrackedRun(config.track, config.tag, folder, state.step, settings),
        meter,
        tell=lambda text: stage.report(Noted(clock(), text)),
        stop=stop,
    )


def _set_aside(stage: Stage[Any, Any]) -> Iterator[Event]:
    """Rename the checkpoints, the log and the evaluations of an earlier run.

    Raises:
        MlxchatError: the folder of evaluations cannot be read, or something cannot be renamed.
    """
    home, folder = stage.home, stage.folder
    if not folder.exists():
        return
    store.require_lock(folder)
    names = (f"{folder.name}.old{number}" for number in count(1))
    aside = next(n for n in names if not (folder.with_name(n).exists() or home.log(n).exists()))
    evaluations = evaluations_of(evaluations_by_run(home).get(folder.name, ()), folder)
    with storing(f"The earlier run {aside}", "choose another name with `model_tag`"):
        rename_evaluations(evaluations, folder.name, aside)
        if home.log(folder.name).exists():
            home.log(folder.name).parent.rename(home.log(aside).parent)
        folder.rename(folder.with_name(aside))
    yield Noted(stage.clock(), f"The earlier run was renamed to {aside}.")


def _events(activities: Activities, batches: Batches, notes: tuple[str, ...]) -> Iterator[Event]:
    """Train to the end, or until stopped; yields what happens.

    Args:
        activities: the activities of the run.
        batches: the batches to train on.
        notes: notes on the plan of a new run.

    Raises:
        DivergedError: the loss or a weight is NaN or infinite.
        DeviceError: the device failed.
    """
    stage, state = activities.stage, activities.state
    config, clock = stage.config, stage.clock
    yield _started(stage, state)
    for note in notes:
        yield Noted(clock(), note)

    parts = step_parts(stage, state, batches, activities.leader.step)
    events = train(
        stage.compile(parts, activities.stop),
        lambda: state.plan.num_iterations,
        Hooks(
            clock,
            activities.evaluate,
            activities.measure_core,
            activities.sample,
            activities.save,
            activities.stop,
        ),
        Cadence(
            config.eval_every,
            activities.core.every if activities.core else 0,
            config.sampling_interval(state.plan.num_iterations),
            config.save_every,
        ),
        step=state.step,
        evaluated=activities.meter.evaluated(state.step),
        core_measured=any(point.step == state.step for point in activities.meter.core),
        shards=activities.documents.shards,
        ahead=not stage.on_policy,
        computes_at_launch=runtime.machine().backend == "cpu",
    )
    try:
        with explained():
            for event in events:
                now = clock.seconds()
                if isinstance(event, Ended) and event.reason == "finished":
                    yield from _better_step(stage)
                yield event
                yield from _keep_deadline(activities, event, now)
    except NotFiniteError as error:
        raise diverged(error, stage.folder, activities.documents.names) from error
    except RanksDifferError as error:
        raise differing(error) from error


def _started(stage: Stage[Any, Any], state: TrainState) -> Started:
    """Return the event that says what is trained, and on which device."""
    machine, plan, ranks = runtime.machine(), state.plan, stage.world.size
    product = runtime.product_flops(runtime.compute_dtype(stage.config.dtype))
    return Started(
        stage.clock(),
        tag=stage.config.tag,
        step=state.step,
        total_steps=plan.num_iterations,
        tokens_per_step=plan.tokens_per_step,
        flops_per_token=plan.flops_per_token,
        peak_flops=ranks * machine.peak_flops if machine.peak_flops else None,
        device=machine.device,
        parameters=plan.parameters,
        estimated_memory=plan.peak,
        matmul_flops=ranks * product if product else None,
        ranks=ranks,
        python=python_version(),
        system=system_version(),
    )


def _better_step(stage: Stage[Any, Any]) -> Iterator[Event]:
    """Say so if an earlier step that is saved is clearly better than the last one."""
    found = catalog.better_than_newest(stage.folder)
    if found is None:
        yield from _better_scored(stage)
        return
    best, last = found
    use = command("chat", model_tag=stage.folder.name, step=best.step)
    yield Noted(
        stage.clock(),
        f"Step {best.step:,} is better than the last one ({best.bits_per_byte:.4f} bits per byte; "
        f"step {last.step:,} has {last.bits_per_byte:.4f}), so its checkpoint is kept. To use it: "
        f"{use}. sft and eval chat accept `step` too.",
    )


def _better_scored(stage: Stage[Any, Any]) -> Iterator[Event]:
    saved = store.steps(stage.folder)
    scored = scored_steps(store.directory(stage.folder, saved[-1]), saved)
    if not scored or scored[-1].step != saved[-1]:
        return
    best, last = max(scored, key=lambda one: (one.pass_1, one.step)), scored[-1]
    if best.pass_1 - last.pass_1 > CLEARLY_WORSE_SCORE:
        use = command("chat", model_tag=stage.folder.name, step=best.step)
        yield Noted(
            stage.clock(),
            f"Step {best.step:,} answers more held-out questions correctly than the last one "
            f"({best.pass_1:.1%}; step {last.step:,} has {last.pass_1:.1%}), so its checkpoint is "
            f"kept. To use it: {use}",
        )


def _keep_deadline(activities: Activities, event: Event, now: float) -> Iterator[Event]:
    """Change the number of steps if the time budget requires it after an event at ``now``."""
    deadline, state = activities.deadline, activities.state
    if deadline is None:
        return
    before, state.plan = state.plan, deadline.follow(event, state.plan, now)
    if state.plan is before:
        return
    steps = state.plan.num_iterations, before.num_iterations
    yield Replanned(activities.stage.clock(), activities.meter.step, *steps, deadline.budget)
