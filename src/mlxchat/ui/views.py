"""The three ways to show events: JSON, plain lines, and a live panel with bars."""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from mlxchat.counts import duration, score_within, share_within
from mlxchat.telemetry.clock import Timer
from mlxchat.telemetry.events import (
    CoreMeasured,
    Drawing,
    Ended,
    Evaluated,
    Evaluating,
    Event,
    Judged,
    Noted,
    Progressed,
    Replanned,
    Rewarded,
    Sampled,
    Saved,
    Started,
    Stepped,
    event_to_json,
)
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.dashboard import dashboard, shown_loss, speed
from mlxchat.ui.output import LiteralConsole, control_keys_hidden
from mlxchat.ui.text import (
    TaskProgress,
    amount,
    as_options,
    bars,
    in_one_line,
    task_line,
)
from mlxchat.ui.wrapping import in_lines

REFRESHES_PER_SECOND = 4
QUIET = 10.0  # seconds without a line after which a plain log says how far it is
_SUMMARY_TASK = "all shards"  # the task that sums up the others is shown below them


def describe(event: Event, meter: Meter) -> str | None:
    """Return the line that describes an event, or None for events that come in streams."""
    match event:
        case Started():
            begins = f"step {event.step:,} of {event.total_steps:,}"
            size = f"{event.parameters:,} parameters, {event.tokens_per_step:,} tokens per step"
            return f"{event.tag}: {begins}, {size}, on {event.where}"
        case Evaluated():
            bits = f"{event.bits_per_byte:.4f} bits per byte"
            if event.best:
                bits += ", the best so far"
            elif meter.best:
                bits += f" (best: {meter.best[1]:.4f}, step {meter.best[0]:,})"
            return f"step {event.step:,}: validation {bits}, loss {event.loss:.4f}"
        case Judged():
            return f"step {event.step:,}: {_judgement(event, meter)}"
        case CoreMeasured():
            return (
                f"step {event.step:,}: CORE {score_within(event.core, event.error)}, of at most "
                f"{amount(event.max_per_task, 'examples')} per task"
            )
        case Sampled():
            worth = "" if event.reward is None else f", reward {event.reward:g}"
            prompt = event.prompt.strip()
            return f'step {event.step:,}: sample{worth} after "{prompt}": {event.text.strip()}'
        case Saved():
            return f"step {event.step:,}: saved {event.path}"
        case Replanned():
            return (
                f"Changed from {event.before:,} to {amount(event.total_steps, 'steps')}, to fit "
                f"the budget of {event.budget}."
            )
        case Ended(reason="finished"):
            return f"Finished {amount(event.step, 'steps')} in {duration(meter.elapsed)}."
        case Ended(step=0):
            return "Stopped before the first step, so nothing was saved."
        case Ended():
            return f"Stopped after step {event.step:,}. Repeat the command to resume from there."
        case Noted():
            return as_options(event.text)
        case Stepped() | Rewarded() | Evaluating() | Drawing() | Progressed():
            return None


def _judgement(event: Judged, meter: Meter) -> str:
    text = f"{amount(event.questions, 'held-out questions')}: pass@1 "
    text += share_within(event.pass_1, (event.pass_1_low, event.pass_1_high))
    if event.best:
        text += ", the best so far"
    elif meter.best_score:
        text += f" (best: {meter.best_score[1]:.1%}, step {meter.best_score[0]:,})"
    if event.samples > 1:
        text += f", pass@{event.samples} "
        text += share_within(event.pass_k, (event.pass_k_low, event.pass_k_high))
    return f"{text}, reward {event.reward:.3f}, {amount(event.length, 'tokens')} per answer"


def step_line(event: Stepped, meter: Meter) -> str:
    """Return the line that describes a step, for a log that people read."""
    if meter.rewarded is not None:
        return _rewarded_line(event, meter, meter.rewarded)
    parts = [
        f"step {event.step:,}/{meter.total_steps:,}",
        f"loss {shown_loss(meter, event)}",
        f"lr {event.learning_rate:.3g}",
        f"norm {event.gradient_norm:.3g}",
    ]
    if meter.tokens_per_second is not None:
        parts.append(f"{meter.tokens_per_second:,.0f} tokens/s")
    if meter.mfu is not None:
        parts.append(f"MFU {meter.mfu:.1%}")
    if meter.matmul_share is not None:
        parts.append(f"{meter.matmul_share:.1%} of matmul speed")
    if meter.waiting_share is not None:
        parts.append(f"{meter.waiting_share:.0%} waiting for ranks")
    if meter.seconds_left is not None:
        parts.append(f"{duration(meter.seconds_left)} left")
    return ", ".join(parts)


def _rewarded_line(event: Stepped, meter: Meter, rewarded: Rewarded) -> str:
    parts = [
        f"step {event.step:,}/{meter.total_steps:,}",
        f"reward {rewarded.reward:.3f}",
        f"all right {rewarded.all_right:.0%}",
        f"all wrong {rewarded.all_wrong:.0%}",
        f"{rewarded.length:.1f} tokens",
        f"entropy {rewarded.entropy:.3f}",
        f"lr {event.learning_rate:.3g}",
        f"norm {event.gradient_norm:.3g}",
        f"{speed(rewarded.tokens, rewarded.seconds)} tokens/s sampled",
        f"{speed(rewarded.learned, event.seconds - rewarded.seconds)} trained",
    ]
    if meter.waiting_share is not None:
        parts.append(f"{meter.waiting_share:.0%} waiting for ranks")
    if meter.seconds_left is not None:
        parts.append(f"{duration(meter.seconds_left)} left")
    return ", ".join(parts)


class Tasks:
    """The tasks in progress, by name.

    Args:
        timer: returns seconds since any origin, by which the tasks' speeds are measured.
    """

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._tasks: dict[str, TaskProgress] = {}
        self._finished: set[str] = set()

    def update(self, event: Progressed) -> str | None:
        """Fold in an event; return a line about the task if that finished it."""
        task = self._tasks.get(event.task)
        if task is None:
            task = self._tasks[event.task] = TaskProgress(event, self._timer())
        else:
            task.update(event, self._timer())
        if not task.finished:
            self._finished.discard(event.task)
            return None
        del self._tasks[event.task]
        if event.task in self._finished:
            return None
        self._finished.add(event.task)
        took = f" in {duration(task.seconds)}" if task.seconds >= 1 else ""
        return f"{event.task}: {amount(event.done, event.unit)}{took}"

    def shown(self) -> list[TaskProgress]:
        """Return the tasks in the order they started, with the sum of all last."""
        return sorted(self._tasks.values(), key=lambda task: task.first.task == _SUMMARY_TASK)


def _paced(pace: TaskProgress | None, event: Event, now: float) -> TaskProgress | None:
    """Return the pace of an evaluation, or of the answers of a step, after its next event.

    Args:
        pace: the pace before; None if nothing of the kind was under way.
        event: the event; any other ends what was under way.
        now: when it came.
    """
    match event:
        case Evaluating():
            name, done, total, unit = "evaluating", event.batch, event.batches, event.unit
        case Drawing(rewarded=0):
            name, done, total, unit = "drawing", event.answers, event.total, "answers"
        case Drawing():
            name, done, total, unit = "rewarding", event.rewarded, event.total, "answers"
        case _:
            return None
    progress = Progressed(event.time, name, done, total, unit)
    # The first batch compiles, so that its time would mislead.
    if pace is None or not 0 < pace.latest.done <= done:
        return TaskProgress(progress, now)
    pace.update(progress, now)
    return pace


class View(Protocol):
    """Shows events, from any thread, until it is closed."""

    def show(self, event: Event, meter: Meter) -> None:
        """Show an event that ``meter`` has already folded in."""

    def close(self) -> None:
        """Leave the output in its final state."""


class JsonView:
    """Shows each event as a line of JSON."""

    def __init__(self, console: LiteralConsole) -> None:
        self._console = console
        self._lock = threading.Lock()

    def show(self, event: Event, meter: Meter) -> None:
        """Show an event that ``meter`` has already folded in."""
        with self._lock:
            self._console.write(f"{event_to_json(event)}\n")

    def close(self) -> None:
        """Do nothing: every event has been shown."""


class PlainView:
    """Shows events as plain lines: of steps the first, the last, and about one per second.

    What takes longer than that, such as an evaluation, has a line every `QUIET` seconds.
    """

    def __init__(self, console: LiteralConsole, timer: Timer) -> None:
        self._console = console
        self._timer = timer
        self._lock = threading.Lock()
        self._tasks = Tasks(timer)
        self._pace: TaskProgress | None = None  # of the evaluation that is under way
        self._wrote_at = timer()
        self._shown_at: float | None = None
        self._held_back: str | None = None

    def show(self, event: Event, meter: Meter) -> None:
        """Show an event that ``meter`` has already folded in."""
        with self._lock:
            if isinstance(event, Stepped):
                self._step(event, meter)
                return
            if isinstance(event, Progressed):
                line = self._tasks.update(event) or self._while_quiet(self._tasks.shown())
            elif isinstance(event, Evaluating | Drawing):
                self._pace = _paced(self._pace, event, self._timer())
                line = self._while_quiet([self._pace] if self._pace else [])
            else:
                line, self._pace = describe(event, meter), None
            if isinstance(event, Started):
                self._shown_at = None
            if line is not None:
                self._write_held_back()
                self._write(line)

    def _step(self, event: Stepped, meter: Meter) -> None:
        self._held_back = step_line(event, meter)
        last, now = event.step == meter.total_steps, self._timer()
        if self._shown_at is None or last or now - self._shown_at >= 1:
            self._shown_at = now
            self._write_held_back()

    def _while_quiet(self, tasks: Sequence[TaskProgress]) -> str | None:
        """Return how far the last of the tasks is, if nothing was written for `QUIET` seconds."""
        now = self._timer()
        return task_line(tasks[-1], now) if tasks and now - self._wrote_at >= QUIET else None

    def _write_held_back(self) -> None:
        if self._held_back is not None:
            self._write(self._held_back)
            self._held_back = None

    def _write(self, line: str) -> None:
        self._wrote_at = self._timer()
        self._console.write(f"{in_one_line(line)}\n")

    def close(self) -> None:
        """Show the last step if it was left out."""
        with self._lock:
            self._write_held_back()


class LiveView:
    """Shows a panel while a model trains, bars below it, and lines that scroll away above.

    A thread draws the panel several times a second, and others print lines above it. rich holds
    its own lock for a part of each only, and would move the cursor up by the height of a panel that
    another thread has replaced meanwhile; so one lock is held while anything is drawn. The lock on
    the state is never held while calling rich, and the thread that draws never takes the lock for
    starting and stopping.
    """

    def __init__(self, console: LiteralConsole, timer: Timer) -> None:
        self._console = console
        self._timer = timer
        self._switching = threading.Lock()
        self._live: Live | None = None
        self._drawing = threading.RLock()
        self._ended = threading.Event()  # tells the thread that draws; one for each panel
        self._keys = ExitStack()  # while it is shown
        self._lock = threading.Lock()
        self._tasks = Tasks(timer)
        self._meter: Meter | None = None  # while a run is in progress
        self._latest: Stepped | None = None
        self._under_way: Evaluating | Drawing | None = None
        self._pace: TaskProgress | None = None  # of what is under way
        self._sample: Sampled | None = None
        self._since = timer()

    def show(self, event: Event, meter: Meter) -> None:
        """Show an event that ``meter`` has already folded in."""
        with self._lock:
            line = self._take(event, meter)
            busy = self._meter is not None or bool(self._tasks.shown())
        if busy and not isinstance(event, Ended):
            self._start()
        else:
            self.close()
        if line is not None:
            shown = in_lines(in_one_line(line), self._console.width)
            with self._drawing:
                self._console.print(Text(shown), soft_wrap=True)

    def _start(self) -> None:
        with self._switching:
            if self._live is None:
                self._keys.enter_context(control_keys_hidden())
                self._live = Live(
                    get_renderable=self._picture,
                    console=self._console,
                    auto_refresh=False,
                    vertical_overflow="crop",
                )
                with self._drawing:
                    self._live.start()
                self._ended = threading.Event()
                draw = partial(self._draw, self._live, self._ended)
                threading.Thread(target=draw, name="panel", daemon=True).start()

    def _draw(self, live: Live, ended: threading.Event) -> None:
        """Draw the panel several times a second until it has ended."""
        while not ended.wait(1 / REFRESHES_PER_SECOND):
            with self._drawing:
                if not ended.is_set():
                    live.refresh()

    def close(self) -> None:
        """Stop drawing, and leave the last picture on the screen."""
        with self._switching:
            if self._live is not None:
                self._ended.set()
                with self._drawing:
                    self._live.stop()
                self._live = None
                self._keys.close()
        with self._lock:
            self._meter = None

    def _take(self, event: Event, meter: Meter) -> str | None:
        if isinstance(event, Progressed):
            return self._tasks.update(event)
        if not isinstance(event, Noted):
            self._since = self._timer()
            self._under_way = event if isinstance(event, Evaluating | Drawing) else None
            self._pace = _paced(self._pace, event, self._timer())
        match event:
            case Started():
                self._meter, self._latest, self._sample = meter, None, None
            case Stepped():
                self._latest = event
            case Sampled():
                self._sample = event
            case Evaluated() | Judged():
                return None
        return describe(event, meter)

    def _picture(self) -> Group:
        with self._lock:
            meter, latest, under_way = self._meter, self._latest, self._under_way
            sample, since, tasks = self._sample, self._since, self._tasks.shown()
            now = self._timer()
            left = self._pace.seconds_left(now) if self._pace else None
        width, height = self._console.size
        parts: list[RenderableType] = []
        if meter is not None:
            tasks = tasks[-max(1, height // 4) :]
            panel = dashboard(
                meter,
                latest,
                width=width,
                height=height - 1 - len(tasks),
                waited=max(0.0, now - since),
                under_way=under_way,
                left=left,
                sample=sample,
            )
            parts.append(panel)
        if tasks:
            parts.append(bars(tasks[1 - height :], width=width, now=now))
        return Group(*parts)
