"""The order of steps, evaluations, samples and checkpoints, with steps that compute nothing."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from mlxchat.data.documents import Cursor
from mlxchat.data.loader import LoaderState, Stopped
from mlxchat.errors import DataError
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import CoreMeasured, Ended, Evaluated, Event, Sampled, Saved, Stepped
from mlxchat.train.divergence import NotFiniteError
from mlxchat.train.loop import Cadence, Hooks, Pending, train

GOOD = [3.0, 1.0, 0.02]  # loss, gradient norm, learning rate
NEVER = Cadence()


@dataclass
class Run:
    """A run whose steps, evaluations, samples and checkpoints only leave a trace.

    ``trace`` has the launches too, which yield no event.
    """

    total: int = 6
    cadence: Cadence = NEVER
    metrics: dict[int, list[float]] = field(default_factory=dict)  # of steps that are not GOOD
    failing: dict[str, int] = field(default_factory=dict)  # the step at which an activity fails
    stop_at: str = ""  # the entry in the trace after which the run is asked to stop
    resumed_at: int = 0
    evaluated: bool = False
    core_measured: bool = False
    computes_at_launch: bool = False
    epoch: int = 1
    best: tuple[int, ...] = ()  # the steps whose evaluation is the best so far
    trace: list[str] = field(default_factory=list)
    now: float = 0.0

    @property
    def clock(self) -> Clock:
        """One whose time of day is set back as time passes, which changes no duration."""
        return Clock(lambda: 1e9 - 3600 * self.now, lambda: self.now)

    def stop(self) -> bool:
        return self.stop_at in self.trace

    def launch(self, number: int) -> Pending:
        if self.failing.get("data") == number:
            raise DataError("There is no more data.", "Get some.")
        if self.stop():
            raise Stopped
        self.trace.append(f"launch {number}")
        self.now += 1
        loss, norm, learning_rate = self.metrics.get(number, GOOD)
        metrics = mx.array([norm, learning_rate, loss])
        return Pending(number, metrics, LoaderState(Cursor(self.epoch, 2, number)))

    def evaluate(self, step: int) -> Iterator[Event]:
        for batch in range(2):
            if self.failing.get("evaluation") == step:
                raise DataError("The validation shard is gone.", "Put it back.")
            self.now += 0.25
            yield Evaluated(self.now, step, 1.0, 2.0, batch, 0.5, best=step in self.best)

    def measure_core(self, step: int) -> Iterator[Event]:
        yield CoreMeasured(self.now, step, 0.1, 0.01, 500, 0.5, {})

    def sample(self, step: int) -> Iterator[Event]:
        yield Sampled(self.now, step, "prompt", "text")

    def save(self, step: int, state: LoaderState) -> Iterator[Event]:
        assert state.cursor.row == step  # the loader's state is that of the step, not a later one
        yield Saved(self.now, step, "folder", 0.0)

    def events(self, total: Callable[[], int] | None = None) -> Iterator[Event]:
        hooks = Hooks(
            self.clock, self.evaluate, self.measure_core, self.sample, self.save, self.stop
        )
        events = train(
            self.launch,
            total or (lambda: self.total),
            hooks,
            self.cadence,
            step=self.resumed_at,
            evaluated=self.evaluated,
            core_measured=self.core_measured,
            shards=4,
            computes_at_launch=self.computes_at_launch,
        )
        for event in events:
            self.trace.append(f"{type(event).__name__} {event.step}".lower())
            yield event

    def without_launches(self) -> list[str]:
        list(self.events())
        return [entry for entry in self.trace if not entry.startswith("launch")]


def test_the_next_step_is_launched_before_a_result_is_read() -> None:
    run = Run(total=3)
    events = list(run.events())
    assert run.trace == [
        "launch 1",
        "launch 2",
        "stepped 1",
        "launch 3",
        "stepped 2",
        "stepped 3",
        "saved 3",
        "ended 3",
    ]
    assert events[-1] == Ended(run.clock(), 3, "finished")
    first = events[0]
    assert isinstance(first, Stepped)
    assert (first.loss, first.gradient_norm) == (3.0, 1.0)
    assert first.learning_rate == pytest.approx(0.02)
    assert (first.position.epoch, first.position.shard, first.position.shards) == (1, 2, 4)


def test_core_is_measured_after_an_evaluation_and_before_samples_and_checkpoints() -> None:
    run = Run(total=3, cadence=Cadence(eval_every=2, core_every=2, sample_every=2, save_every=2))
    trace = run.without_launches()
    assert [entry for entry in trace if entry.endswith(" 0")] == ["evaluated 0"] * 2
    for step in (2, 3):
        of_step = [entry for entry in trace if entry.endswith(f" {step}") and "ended" not in entry]
        expected = [*["evaluated"] * 2, "coremeasured", "sampled", "saved"]
        assert of_step[1:] == [f"{name} {step}" for name in expected]


@pytest.mark.parametrize("measured", [True, False])
def test_a_resumed_run_measures_what_an_interruption_left_out(measured: bool) -> None:
    run = Run(resumed_at=4, core_measured=measured, cadence=Cadence(core_every=4))
    expected = ["coremeasured 6"] if measured else ["coremeasured 4", "coremeasured 6"]
    assert [entry for entry in run.without_launches() if "core" in entry] == expected


def test_the_loss_of_many_micro_batches_does_not_drift() -> None:
    share = mx.array([11.09 / 1000])
    metrics = mx.concatenate([mx.array([1.0, 0.02]), *[share] * 1000])
    loss, norm, learning_rate = Pending(1, metrics, LoaderState()).read()
    assert loss == pytest.approx(1000 * float(share.item()), rel=1e-12)
    assert (norm, learning_rate) == (1.0, pytest.approx(0.02))


def test_evaluations_samples_and_checkpoints_keep_their_cadence() -> None:
    run = Run(total=5, cadence=Cadence(eval_every=2, sample_every=3, save_every=4))
    assert run.without_launches() == [
        *["evaluated 0"] * 2,
        "stepped 1",
        "stepped 2",
        *["evaluated 2"] * 2,
        "stepped 3",
        "sampled 3",
        "stepped 4",
        *["evaluated 4"] * 2,
        "saved 4",
        "stepped 5",
        *["evaluated 5"] * 2,
        "sampled 5",
        "saved 5",
        "ended 5",
    ]


@pytest.mark.parametrize(
    ("epoch", "save_every", "saved"),
    [(2, 5, [2, 5, 6]), (1, 5, [5, 6]), (2, 0, [6]), (2, 2, [2, 4, 6])],
)
def test_the_best_step_so_far_is_saved_once_text_is_read_again(
    epoch: int, save_every: int, saved: list[int]
) -> None:
    cadence = Cadence(eval_every=2, save_every=save_every)
    run = Run(cadence=cadence, epoch=epoch, best=(0, 2))
    entries = run.without_launches()
    assert [entry for entry in entries if "saved" in entry] == [f"saved {step}" for step in saved]


def test_without_a_cadence_only_the_last_step_is_saved() -> None:
    entries = Run().without_launches()
    assert entries == [*(f"stepped {step}" for step in range(1, 7)), "saved 6", "ended 6"]


def test_no_step_is_launched_while_another_is_evaluated_or_saved() -> None:
    run = Run(total=4, cadence=Cadence(eval_every=2))
    list(run.events())
    assert run.trace.index("launch 3") > run.trace.index("evaluated 2")


def test_the_time_of_a_step_does_not_include_what_is_between_steps() -> None:
    run = Run(total=4, cadence=Cadence(eval_every=1))
    assert [event.seconds for event in run.events() if isinstance(event, Stepped)] == [1.0] * 4


def test_the_times_of_steps_add_up_to_the_time_of_the_run() -> None:
    run = Run(total=3)  # launching a step takes a second, before the result of the last is read
    assert [event.seconds for event in run.events() if isinstance(event, Stepped)] == [2.0, 1.0, 0]


@pytest.mark.parametrize("eval_every", [0, 1, 2, 3])
def test_a_step_that_is_computed_when_it_is_launched_takes_that_long(eval_every: int) -> None:
    run = Run(total=4, computes_at_launch=True, cadence=Cadence(eval_every=eval_every))
    assert [event.seconds for event in run.events() if isinstance(event, Stepped)] == [1.0] * 4


@pytest.mark.parametrize(("evaluated", "first"), [(True, "stepped 5"), (False, "evaluated 4")])
def test_a_resumed_run_continues_after_its_step(evaluated: bool, first: str) -> None:
    run = Run(resumed_at=4, evaluated=evaluated, cadence=Cadence(eval_every=4))
    entries = run.without_launches()
    assert entries[0] == first
    assert [entry for entry in entries if "stepped" in entry] == ["stepped 5", "stepped 6"]


def test_an_interruption_between_micro_batches_saves_the_last_complete_step() -> None:
    run = Run(stop_at="launch 3")  # so that launching step 4 raises Stopped
    *_, last = run.events()
    assert last == Ended(run.clock(), 3, "interrupted")
    assert run.trace[-3:] == ["stepped 3", "saved 3", "ended 3"]


def test_an_interruption_saves_no_step_twice() -> None:
    run = Run(stop_at="saved 2", cadence=Cadence(save_every=2))
    list(run.events())
    assert run.trace[-2:] == ["saved 2", "ended 2"]
    assert run.trace.count("saved 2") == 1


def test_an_interruption_before_the_first_step_saves_nothing() -> None:
    run = Run(stop_at="evaluated 0", cadence=Cadence(eval_every=2))
    list(run.events())
    assert run.trace == ["evaluated 0", "ended 0"]


def test_an_interrupted_evaluation_is_cut_short_and_the_step_saved() -> None:
    run = Run(stop_at="evaluated 2", cadence=Cadence(eval_every=2))
    list(run.events())
    assert run.trace[-4:] == ["stepped 2", "evaluated 2", "saved 2", "ended 2"]


def test_the_last_evaluation_is_never_cut_short() -> None:
    run = Run(total=2, stop_at="evaluated 2", cadence=Cadence(eval_every=2), evaluated=True)
    assert run.without_launches()[-4:] == ["evaluated 2", "evaluated 2", "saved 2", "ended 2"]


def test_a_failing_evaluation_saves_the_step_first() -> None:
    run = Run(failing={"evaluation": 4}, cadence=Cadence(eval_every=4, sample_every=4))
    with pytest.raises(DataError, match="validation shard is gone"):
        list(run.events())
    assert run.trace[-2:] == ["stepped 4", "saved 4"]


def test_failing_data_saves_the_last_complete_step_first() -> None:
    run = Run(failing={"data": 4})
    with pytest.raises(DataError, match="no more data"):
        list(run.events())
    assert run.trace[-2:] == ["stepped 3", "saved 3"]


@pytest.mark.parametrize("metrics", [[math.nan, 1.0, 0.1], [3.0, math.inf, 0.1]])
def test_a_step_that_diverges_is_reported_but_not_saved(
    metrics: list[float],
) -> None:
    run = Run(metrics={4: metrics}, cadence=Cadence(save_every=3))
    with pytest.raises(NotFiniteError, match="in step 4"):
        list(run.events())
    assert run.trace[-1] == "stepped 4"
    assert [entry for entry in run.trace if "saved" in entry] == ["saved 3"]


def test_a_step_that_diverges_when_it_would_be_saved_is_not() -> None:
    run = Run(metrics={3: [math.nan, 1.0, 0.1]}, cadence=Cadence(eval_every=3, save_every=3))
    with pytest.raises(NotFiniteError):
        list(run.events())
    assert not any(entry.startswith(("saved", "evaluated 3")) for entry in run.trace)


@pytest.mark.parametrize("total", [4, 9])
def test_the_number_of_steps_may_change_after_any_event(total: int) -> None:
    run = Run(total=6)
    for event in run.events():
        if isinstance(event, Stepped) and event.step == 2:
            run.total = total
    assert run.trace[-3:] == [f"stepped {total}", f"saved {total}", f"ended {total}"]
