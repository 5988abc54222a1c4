"""Steps on two CPU streams equal those on one, and leave OpenBLAS its threads."""

from dataclasses import replace
from typing import NamedTuple

import pytest
from support.cases import Case
from support.memory import memory_held
from support.steps import joint_norm, loss_and_norm, optimized_gradients, prepare

from mlxchat import autotune, openblas
from mlxchat.autotune import fixed
from mlxchat.model.gpt import Arrays
from mlxchat.runtime import machine, mx
from mlxchat.streams import in_parts, one_thread_each
from mlxchat.train import measure
from mlxchat.train.measure import fastest_streams
from mlxchat.train.step import StepParts, compile_step

on_cpus = pytest.mark.skipif(machine().backend != "cpu", reason="only CPUs have these streams")


def on_streams(step: StepParts, streams: int, checkpoint: bool) -> StepParts:
    plan = step.plan.model_copy(update={"streams": streams, "grad_checkpoint": checkpoint})
    return replace(step, plan=plan)


class FirstStep(NamedTuple):
    loss: float
    gradients: Arrays
    weights: Arrays


def first_step(case: Case, micro_rows: int, streams: int, checkpoint: bool) -> FirstStep:
    step = on_streams(prepare(case, micro_rows, grad_clip=0.1), streams, checkpoint)
    loss, _ = loss_and_norm(compile_step(step)(1))
    return FirstStep(loss, optimized_gradients(step), step.model.named_parameters())


@pytest.mark.parametrize(("micro_rows", "checkpoint"), [(4, False), (2, True)])
def test_a_step_on_two_streams_equals_one_on_one(
    case: Case, micro_rows: int, checkpoint: bool
) -> None:
    """AdamW's first update is as long for any gradient: where one is mere rounding, so is it."""
    expected = first_step(case, micro_rows, 1, checkpoint)
    found = first_step(case, micro_rows, 2, checkpoint)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.weights.keys() == expected.weights.keys() == found.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert mx.allclose(found.gradients[name], gradient, rtol=1e-4, atol=1e-6), name
        size = mx.abs(gradient)
        noise = (size > 0) & (size < 1e-5 * size.mean())
        assert noise.sum().item() <= 1e-3 * noise.size, name
        weights = mx.where(noise, expected.weights[name], found.weights[name])
        assert mx.allclose(weights, expected.weights[name], rtol=1e-4, atol=1e-6), name
    assert joint_norm(found.gradients) == pytest.approx(joint_norm(expected.gradients), rel=1e-5)


def test_two_streams_give_the_same_bits_again(case: Case) -> None:
    once, again = (first_step(case, 4, 2, False) for _ in range(2))
    assert once.loss == again.loss
    for name, weights in once.weights.items():
        assert mx.array_equal(weights, again.weights[name]), name


def test_each_part_is_computed() -> None:
    x = mx.arange(6.0)
    assert [y.item() for y in in_parts([x.sum, x.max, x.min])] == [15, 5, 0]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that OpenBLAS is given, after the 4 that it has."""
    given = [4]
    monkeypatch.setattr(openblas, "threads", lambda: given[-1])
    monkeypatch.setattr(openblas, "set_threads", given.append)
    return given


@on_cpus
def test_products_have_their_threads_again_afterwards(threads: list[int]) -> None:
    with one_thread_each(1):
        assert threads == [4]
    with pytest.raises(KeyError), one_thread_each(2):
        assert threads == [4, 1]
        raise KeyError
    assert threads == [4, 1, 4]


@on_cpus
def test_two_streams_are_used_where_they_are_faster(threads: list[int]) -> None:
    for way, streams in (("one", 1), ("two", 2)):
        with fixed(streams=way):
            assert fastest_streams() == streams
    threads.append(1)
    with fixed(streams="two"):
        assert fastest_streams() == 1


@on_cpus
def test_the_ways_that_are_measured_agree() -> None:
    one, two = measure._trial(1)(), measure._trial(2)()
    for a, b in zip(one, two, strict=True):
        assert mx.linalg.norm(a - b) <= 1e-5 * mx.linalg.norm(a)


@pytest.mark.slow
@on_cpus
def test_what_was_measured_leaves_no_arrays_behind(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "_fixed", {})
    monkeypatch.setattr(autotune, "_answers", {})
    before = memory_held()
    fastest_streams()
    assert len(autotune.tuned()) == 1
    assert memory_held() - before < 1_000_000
