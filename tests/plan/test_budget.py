"""Time budgets: how they are written, the plan for one, and that a run keeps to it."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clocks import FakeClock
from support.marks import slow

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.recipes import ENDLESS, MOST_EPOCHS, Text, scale_for
from mlxchat.config.units import spell_duration, to_seconds
from mlxchat.data.loader import LoaderState
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.model.size import parameters, scaling_parameters
from mlxchat.optim.schedule import learning_rate_multiplier
from mlxchat.plan.budget import (
    TARGET_STEPS,
    Pause,
    budgeted_plan,
    last_step,
    reason,
    seconds_needed,
    with_steps,
)
from mlxchat.plan.deadline import Deadline
from mlxchat.plan.division import MARGIN
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import Plan, plan
from mlxchat.runtime import mx
from mlxchat.telemetry.events import (
    CoreMeasured,
    Ended,
    Evaluated,
    Event,
    Noted,
    Replanned,
    Sampled,
    Saved,
    Stepped,
)
from mlxchat.telemetry.meter import Meter
from mlxchat.train import measure
from mlxchat.train.loop import Cadence, Hooks, Launch, Pending, ShouldStop, train
from mlxchat.train.measure import step_seconds, step_timer
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.run import run as run_stage
from mlxchat.train.step import Compile, StepParts, compile_step
from mlxchat.ui.views import describe

RESOURCES = Resources(64 * 1024**3, 2, "none", 1024)
TERA = 1e12


@pytest.mark.parametrize(
    ("text", "seconds", "canonical"),
    [
        ("90s", 90, "1m30s"),
        ("30m", 1800, "30m"),
        ("2h", 7200, "2h"),
        ("1.5h", 5400, "1h30m"),
        ("1h30m", 5400, "1h30m"),
        (" 2D ", 172_800, "2d"),
        ("1d1h1m1.4s", 90_061, "1d1h1m1s"),
    ],
)
def test_durations_are_read_in_every_form(text: str, seconds: int, canonical: str) -> None:
    assert to_seconds(text) == seconds
    assert spell_duration(seconds) == canonical
    assert PretrainConfig(budget=text) == PretrainConfig(budget=canonical)


@pytest.mark.parametrize(
    "text", ["", "90", "s", "h", "-1h", "0s", "0.4s", "1h 30m", "30m1h", "2hours", "1e3s", "1001d"]
)
def test_a_malformed_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(MlxchatError, match="is not a duration") as raised:
        PretrainConfig(budget=text)
    assert "1h30m" in raised.value.remedy


@given(st.integers(1, 1000 * 86_400))
def test_every_duration_is_read_back(seconds: int) -> None:
    assert to_seconds(spell_duration(seconds)) == seconds


def test_a_budget_and_a_number_of_steps_exclude_each_other() -> None:
    with pytest.raises(MlxchatError, match="`num_iterations=7` cannot be given as well"):
        PretrainConfig(budget="2h", num_iterations=7)


def test_a_run_is_named_after_its_budget() -> None:
    assert PretrainConfig(budget="120m").tag == "auto-2h"
    assert PretrainConfig(budget="2h", depth=4).tag == "d4"
    assert PretrainConfig(budget="2h", model_tag="mine").tag == "mine"
    assert PretrainConfig().tag == "d12"


def test_another_budget_is_another_run() -> None:
    stored = PretrainConfig(budget="2h").model_dump(mode="json")
    assert PretrainConfig(budget="120m").differences(stored) == []
    assert PretrainConfig(budget="3h", depth=4).differences(stored) == [
        "`depth` (auto -> 4)",
        "`budget` (2h -> 3h)",
    ]
    without = PretrainConfig().model_dump(mode="json")
    assert PretrainConfig(depth=12).differences(without) == []


def planned(
    seconds: float,
    flops: float = TERA,
    guess: float | None = None,
    vocab_size: int | None = 32_768,
    text: Text = ENDLESS,
    **settings: object,
) -> Plan:
    """Return the plan for a machine that trains every model at ``flops``."""
    config = PretrainConfig.model_validate({"budget": spell_duration(round(seconds)), **settings})

    def measure(draft: Plan) -> float:
        return draft.flops_per_token * draft.tokens_per_step / flops

    return budgeted_plan(
        config, vocab_size, RESOURCES, lambda: seconds, guess or flops, measure, text=text
    )


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_more_time_makes_deeper_models_that_see_enough(arch: str) -> None:
    budgets = (300, 3600, 8 * 3600, 3 * 86_400)
    plans = [planned(seconds, recipe=arch) for seconds in budgets]
    depths = [made.model.n_layer for made in plans]
    assert depths == sorted(set(depths))
    for made, seconds in zip(plans, budgets, strict=True):
        ratio = {"classic": 20, "modern": 12}[arch]
        assert made.tokens > 0.9 * ratio * parameters(made.model)["matrices"]
        assert made.num_iterations >= 0.95 * TARGET_STEPS
        assert made.tokens_per_step <= 2**19
        assert made.costs is not None
        needed = made.num_iterations * made.costs.step
        assert 0.9 * seconds < needed < seconds


def test_the_budget_recipe_follows_from_the_tokens_that_a_depth_can_see() -> None:
    budgets = (60, 600, 3600, 8 * 3600, 3 * 86_400)
    plans = [planned(seconds, vocab_size=None, flops=TERA / 20) for seconds in budgets]
    depths = [made.model.n_layer for made in plans]
    contexts = [made.model.sequence_len for made in plans]
    vocabularies = [made.model.vocab_size for made in plans]
    assert depths == sorted(depths)
    assert contexts == sorted(contexts)
    assert vocabularies == sorted(vocabularies)
    assert depths[0] == 2
    assert depths[-1] > 4
    for made in plans:
        assert made.model.arch == "modern"
        assert made.model.n_embd == 64 * made.model.n_layer  # heads do not round it up
        assert made.model.window_pattern == "L"
        assert made.tokens_per_step >= 2048
        assert made.learning_rates["matrix"] == 0.02  # whatever the batch
        assert made.weight_decay == 0.1
        if made.model.n_layer > 2:
            assert scaling_parameters(made.model) <= 1.1 * scale_for(made.tokens).parameters


def test_little_text_is_read_a_few_times_with_dropout_by_a_small_model() -> None:
    def of(text: float, **settings: object) -> Plan:
        return planned(3600, vocab_size=None, text=Text(text), **settings)

    endless, million, many = of(math.inf), of(1e6), of(1e11)
    assert endless.most_steps is None
    assert endless.dropout == many.dropout == 0
    assert many.num_iterations == endless.num_iterations < (many.most_steps or 0)
    assert million.model.n_layer == 2
    assert million.dropout == 0.3
    assert million.num_iterations == million.most_steps
    text = Text(1e6).tokens(million.model.vocab_size)
    assert million.tokens == pytest.approx(MOST_EPOCHS * text, rel=0.01)
    more = of(2e7)
    assert scaling_parameters(more.model) <= 3 * Text(2e7).tokens(more.model.vocab_size)
    assert of(1e6, dropout=0.1).dropout == 0.1
    nanochats = of(1e6, recipe="classic")
    assert (nanochats.dropout, nanochats.most_steps) == (0, None)
    config = PretrainConfig(budget="1h")
    assert "the text has been read 8 times" in reason(config, million)
    assert "The text" not in reason(config, many)


@pytest.mark.parametrize(
    ("vocabulary", "measured"),
    [(512, 2.08), (1024, 2.64), (2048, 3.12), (4096, 3.57), (8192, 3.95)],
)
def test_bytes_per_token_are_as_measured_on_english(vocabulary: int, measured: float) -> None:
    assert 1e6 / Text(1e6).tokens(vocabulary) == pytest.approx(measured, rel=0.03)


def test_a_run_that_has_read_its_text_often_enough_is_not_prolonged() -> None:
    used, plans = simulated(lambda _: 0.4, "modern", recipe="budget", text=Text(30_000))
    assert used < 0.5
    assert {made.num_iterations for made in plans} == {plans[0].most_steps}


def test_what_is_given_overrides_the_budget_recipe() -> None:
    made = planned(3600, vocab_size=None, max_seq_len=1024, head_dim=32, matrix_lr=0.01)
    assert (made.model.sequence_len, made.model.head_dim) == (1024, 32)
    assert made.learning_rates["matrix"] == 0.01
    classic = planned(3600, arch="classic")
    assert classic.model.arch == "classic"
    assert classic.model.sequence_len < 2048
    assert planned(3600, recipe="classic").model.sequence_len == 2048


def test_given_settings_are_respected() -> None:
    made = planned(3600, depth=8, max_seq_len=1000, device_batch_size=3)
    assert (made.model.n_layer, made.model.sequence_len, made.device_batch_size) == (8, 1000, 3)
    assert made.tokens_per_step % 3000 == 0
    made = planned(3600, total_batch_size=2**18)
    assert made.tokens_per_step == 2**18


def test_the_data_ratio_that_is_given_chooses_the_depth() -> None:
    few, many = (planned(3600, target_param_data_ratio=ratio) for ratio in (5, 80))
    assert few.model.n_layer > many.model.n_layer


@pytest.mark.parametrize("wrong", [0.05, 20.0])
def test_the_measured_speed_overrides_the_presumed_one(wrong: float) -> None:
    assert planned(3600, guess=wrong * TERA) == planned(3600)


def test_a_depth_slower_than_presumed_is_measured_before_it_is_chosen() -> None:
    measured: list[int] = []

    def measure(draft: Plan) -> float:
        measured.append(draft.model.n_layer)
        shallow_is_slow = draft.model.n_layer / 8
        return draft.flops_per_token * draft.tokens_per_step / (TERA * shallow_is_slow)

    config = PretrainConfig(budget="2h")
    made = budgeted_plan(config, 32_768, RESOURCES, lambda: 7200.0, 2 * TERA, measure)
    assert measured[-1] == made.model.n_layer or made.model.n_layer in measured
    assert len(measured) <= 5


def test_without_time_to_measure_the_presumed_speed_is_used() -> None:
    config = PretrainConfig(budget="2h")
    made = budgeted_plan(config, 32_768, RESOURCES, lambda: 7200.0, TERA, lambda _: None)
    assert made.costs is not None
    speed = made.flops_per_token * made.tokens_per_step / made.costs.step
    assert speed == pytest.approx(TERA)


def test_the_model_fits_into_memory_however_much_time_there_is() -> None:
    free = planned(30 * 86_400)
    limited = planned(30 * 86_400, memory_limit="2GB")
    assert MARGIN * limited.peak <= 2e9 < free.peak
    assert limited.model.n_layer < free.model.n_layer
    assert limited.costs is not None and limited.num_iterations > TARGET_STEPS


def test_the_error_for_too_little_time_gives_numbers() -> None:
    with pytest.raises(
        MlxchatError, match=r"budget of 30s has 30 s left, which is too short for depth 12"
    ):
        planned(30, flops=1e9, depth=12)


def test_an_error_in_the_settings_is_not_hidden_by_trying_every_depth() -> None:
    with pytest.raises(MlxchatError, match="100 tokens is not a multiple"):
        planned(3600, total_batch_size=100)


def test_the_reason_for_a_budgeted_plan_is_stated() -> None:
    config = PretrainConfig(budget="1h", recipe="classic")
    made = planned(3600, recipe="classic")
    depth = made.model.n_layer
    assert f"Budget 1h: depth {depth}, the deepest model that gets about 20 (here" in reason(
        config, made
    )
    short = planned(60, flops=TERA / 10, recipe="classic")
    assert "the shallowest" in reason(config, short)
    deep = planned(3600, depth=8, recipe="classic")
    assert "depth 8, which gets" in reason(config.model_copy(update={"depth": 8}), deep)
    made = planned(3600)
    size = scaling_parameters(made.model)
    text = reason(PretrainConfig(budget="1h"), made)
    assert f"depth {made.model.n_layer}, {made.tokens / size:.2g} tokens for each of its" in text


@given(st.integers(0, 500), st.integers(1, 500), st.integers(0, 60), st.floats(0, 50))
def test_the_last_step_is_the_last_that_fits_into_the_time(
    step: int, more: int, every: int, pause: float
) -> None:
    pauses = [Pause(every, pause), Pause(0, 2.0)]
    left = seconds_needed(step, step + more, 0.5, pauses)
    total = last_step(step, left + 1e-9, 0.5, pauses)
    assert total >= step + more
    assert seconds_needed(step, total, 0.5, pauses) <= left + 1e-9
    assert seconds_needed(step, total + 1, 0.5, pauses) > left


SHORT = plan(
    PretrainConfig(
        depth=1, max_seq_len=32, device_batch_size=1, total_batch_size=32, num_iterations=1000
    ),
    300,
    RESOURCES,
)


def multiplier(made: Plan, step: int) -> float:
    return learning_rate_multiplier(
        step, made.num_iterations, made.warmup_steps, made.warmdown_ratio, made.final_lr_frac
    )


@given(st.integers(1, 998), st.floats(0.05, 3), st.floats(0, 1))
def test_replanning_does_not_make_the_learning_rate_jump(
    step: int, factor: float, ratio: float
) -> None:
    before = SHORT.model_copy(update={"warmdown_ratio": ratio})
    total = step + max(1, int((1000 - step) * factor))
    after = with_steps(before, step, total)
    assert Plan.model_validate(after.model_dump()) == after  # a checkpoint can be read again
    assert after.num_iterations == total
    assert multiplier(after, step) <= multiplier(before, step) + 1e-9
    left, rate = total - step, multiplier(before, step)
    assert multiplier(after, step) >= rate * left / (left + rate) - 1e-9  # of whole steps
    if ratio * total > 1:
        assert multiplier(after, total) == 0


class Charged(FakeClock):
    """A clock that training advances."""

    step = 1.0  # seconds of a training step


Drift = Callable[[float], float]  # seconds of a step by the share of the budget that is used


def simulated(
    drift: Drift, arch: str, text: Text = ENDLESS, **settings: object
) -> tuple[float, list[Plan]]:
    """Return the share of the budget that the loop uses, and the plan of each step."""
    config = PretrainConfig.model_validate(
        {
            "budget": "1000s",
            "depth": 1,
            "arch": arch,
            "max_seq_len": 32,
            "eval_every": 250,
            "sample_every": 2000,
            **settings,
        }
    )
    clock = FakeClock()
    origin = clock.now
    plans = [budgeted_plan(config, 300, RESOURCES, lambda: 980.0, 1e6, lambda _: 0.8, text=text)]
    taken: list[Plan] = []

    def passing(seconds: float, event: Event | None = None) -> Iterator[Event]:
        clock.now += seconds
        if event:
            yield event

    def launch(step: int) -> Pending:
        taken.append(plans[-1])
        clock.now += drift((clock.now - origin) / 1000)
        return Pending(step, mx.zeros(3), LoaderState())

    deadline = Deadline(config, 1000.0, plans[0].costs, origin, clock.now)
    clock.now += 20  # what was needed to begin
    hooks = Hooks(
        clock,
        evaluate=lambda step: passing(6.0, Evaluated(clock(), step, 1.0, 1.0, 1, 6.0)),
        core=lambda step: passing(30.0, CoreMeasured(clock(), step, 0.0, 0.0, 11, 30.0, {})),
        sample=lambda step: passing(3.0, Sampled(clock(), step, "", "")),
        save=lambda step, _: passing(0.5, Saved(clock(), step, "", 0.5)),
    )
    cadence = Cadence(
        config.eval_every, config.core_every, config.sampling_interval(0), config.save_every
    )
    for event in train(launch, lambda: plans[-1].num_iterations, hooks, cadence):
        plans.append(deadline.follow(event, plans[-1], clock.seconds()))
    return (clock.now - origin) / 1000, taken


DRIFTS: dict[str, Drift] = {
    "as planned": lambda _: 0.8,
    "twice as fast": lambda _: 0.4,
    "three times as slow": lambda _: 2.4,
    "getting warm": lambda used: 0.8 + 0.6 * used,
    "another program": lambda used: 2.0 if 0.4 < used < 0.6 else 0.8,
    "another program at the end": lambda used: 1.6 if used > 0.8 else 0.8,
    "another program at first": lambda used: 1.6 if used < 0.5 else 0.8,
}


@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize("drift", DRIFTS)
def test_a_run_keeps_to_its_budget_whatever_its_speed(drift: str, arch: str) -> None:
    used, plans = simulated(DRIFTS[drift], arch)
    assert 0.97 < used <= 1.01
    rates = [multiplier(made, step) for step, made in enumerate(plans)]
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.06
    assert all(b <= a for a, b in pairwise(rates[plans[0].warmup_steps :]))
    assert rates[-1] < 0.1


def test_core_is_part_of_the_budget() -> None:
    used, plans = simulated(DRIFTS["as planned"], "classic", core_every=300, core_max_per_task=11)
    assert 0.97 < used <= 1.01
    without = simulated(DRIFTS["as planned"], "classic")[1]
    measured = 1 + plans[-1].num_iterations // 300
    assert len(without) - len(plans) == pytest.approx(30 * measured / 0.8, rel=0.1)


TINY = PretrainConfig(
    budget="100s",
    depth=1,
    dataset="builtin",
    vocab_size=300,
    max_seq_len=32,
    device_batch_size=4,
    total_batch_size=256,
    eval_every=40,
    eval_tokens=512,
    sample_every=0,
    save_every=10,
    keep=1,
    model_tag="run",
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Charged:
    monkeypatch.setattr(measure, "matmul_flops", lambda dtype: 1e9)
    return Charged()


def charged_to(clock: Charged) -> Compile:
    """Have compiling take five seconds, and a step as long as the clock says."""

    def compiled(step: StepParts, stop: ShouldStop = lambda: False) -> Launch:
        launch = compile_step(step, stop)
        clock.now += 5

        def launch_charged(number: int) -> Pending:
            clock.now += clock.step
            return launch(number)

        return launch_charged

    return compiled


def pretraining(home: Path, clock: Charged, config: PretrainConfig) -> Pretraining:
    return Pretraining(config, Home(home), lambda _: None, clock, charged_to(clock))


def run(home: Path, clock: Charged, stop_at: int = 0, config: PretrainConfig = TINY) -> list[Event]:
    seen: list[Event] = []

    def stop() -> bool:
        return bool(stop_at) and any(isinstance(e, Stepped) and e.step >= stop_at for e in seen)

    meter = Meter()
    for event in run_stage(pretraining(home, clock, config), meter, stop):
        seen.append(event)
    steps = [event.step for event in seen if isinstance(event, Stepped)]
    assert stop_at or meter.total_steps == steps[-1]
    return seen


@pytest.mark.slow
def test_a_run_ends_when_its_budget_does(prepared: Path, clock: Charged) -> None:
    began = clock.now
    events = run(prepared, clock)
    assert 97 <= clock.now - began <= 100
    assert isinstance(events[-1], Ended)
    assert events[-1].reason == "finished"
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert any("how fast this machine trains, to plan for 1m40s" in note for note in notes)
    assert any("Budget 1m40s: depth 1, " in note for note in notes)
    assert isinstance(run_again(prepared, clock), Noted)


def run_again(home: Path, clock: Charged) -> Event:
    (event,) = run_stage(pretraining(home, clock, TINY))
    return event


@pytest.mark.parametrize("stop_at", [slow(5), slow(30), slow(60)])
def test_a_resumed_run_has_the_rest_of_the_budget(
    prepared: Path, clock: Charged, stop_at: int
) -> None:
    began = clock.now
    run(prepared, clock, stop_at)
    used = clock.now - began
    saved = Pretraining(TINY, Home(prepared)).saved()
    assert saved is not None
    assert saved.plan.costs is not None
    assert saved.plan.costs.spent == pytest.approx(used, abs=1)
    clock.now += 100_000  # nobody trains
    resumed = clock.now
    run(prepared, clock)
    assert 97 <= used + clock.now - resumed <= 103
    with pytest.raises(MlxchatError, match=r"`budget` \(1m40s -> 3m20s\)"):
        run(prepared, clock, config=TINY.model_copy(update={"budget": "3m20s"}))


@pytest.mark.slow
def test_a_machine_that_slows_down_takes_fewer_steps_and_says_so(
    prepared: Path, clock: Charged
) -> None:
    began, notes, steps = clock.now, [], 0
    for event in run_stage(pretraining(prepared, clock, TINY)):
        if isinstance(event, Stepped):
            steps = event.step
            clock.step = 1.0 if steps < 20 else 2.0
        if isinstance(event, Replanned):
            notes.append(describe(event, Meter()) or "")
            assert event.total_steps != event.before
    assert 97 <= clock.now - began <= 103
    assert any("to fit the budget of 1m40s" in note for note in notes)
    finished = Pretraining(TINY, Home(prepared)).saved()
    assert finished is not None
    assert finished.trainer.finished
    assert finished.trainer.step == steps < 60


def test_a_budget_used_up_by_the_tokenizer_is_refused(tmp_path: Path, clock: Charged) -> None:
    events = run_stage(pretraining(tmp_path, clock, TINY))
    next(events)  # a tokenizer is about to be trained
    clock.now += 200
    with pytest.raises(MlxchatError, match="has 0 s left"):
        list(events)


def test_measuring_takes_no_longer_than_it_may(clock: Charged) -> None:
    made = plan(TINY.model_copy(update={"budget": None, "num_iterations": 9}), 300, RESOURCES)
    timed = step_timer(20.0, clock.seconds, charged_to(clock))
    others = [made.model_copy(update={"tokens_per_step": n}) for n in range(1, 4)]
    assert timed(made) == pytest.approx(1.0)  # eleven seconds: it compiles, and takes six steps
    assert timed(others[0]) == pytest.approx(1.0)  # half of what is left, and half of that counted
    assert timed(others[1]) is not None
    assert timed(others[2]) is None
    assert clock.now - 1e9 <= 20 + 7
    assert timed(made) == pytest.approx(1.0)  # known
    many = made.model_copy(update={"accumulation": 40})
    assert step_seconds(many, 3.0, clock.seconds, charged_to(clock)) == pytest.approx(
        10.0
    )  # four took a second
