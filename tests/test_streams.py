"""Steps on two CPU streams equal those on one, and leave OpenBLAS its threads."""

from dataclasses import replace

import pytest
from support.cases import Case
from support.steps import joint_norm, loss_and_norm, optimized_gradients, prepare

from mlxchat import openblas
from mlxchat.autotune import fixed
from mlxchat.model.gpt import Arrays
from mlxchat.runtime import machine, mx
from mlxchat.streams import in_parts, one_thread_each
from mlxchat.train import measure
from mlxchat.train.loop import StepParts, compile_step
from mlxchat.train.measure import fastest_streams

on_cpus = pytest.mark.skipif(machine().backend != "cpu", reason="only CPUs have these streams")


def on_streams(step: StepParts, streams: int, checkpoint: bool) -> StepParts:
    plan = step.plan.model_copy(update={"streams": streams, "grad_checkpoint": checkpoint})
    return replace(step, plan=plan)


def first_step(case: Case, micro_rows: int, streams: int, checkpoint: bool) -> tuple[float, Arrays]:
    step = on_streams(prepare(case, micro_rows, grad_clip=0.1), streams, checkpoint)
    loss, _ = loss_and_norm(compile_step(step)(1))
    return loss, optimized_gradients(step) | step.model.named_parameters()


@pytest.mark.parametrize(("micro_rows", "checkpoint"), [(4, False), (2, True)])
def test_a_step_on_two_streams_equals_one_on_one(
    case: Case, micro_rows: int, checkpoint: bool
) -> None:
    expected_loss, expected = first_step(case, micro_rows, 1, checkpoint)
    loss, found = first_step(case, micro_rows, 2, checkpoint)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert mx.allclose(array, expected[name], rtol=1e-4, atol=1e-6), name
    assert joint_norm(found) == pytest.approx(joint_norm(expected), rel=1e-5)


def test_two_streams_give_the_same_bits_again(case: Case) -> None:
    (loss, found), (again, found_again) = (first_step(case, 4, 2, False) for _ in range(2))
    assert loss == again
    assert all(mx.array_equal(array, found_again[name]) for name, array in found.items())


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
    one, two = measure._trial(1), measure._trial(2)
    for a, b in zip(one, two, strict=True):
        assert mx.linalg.norm(a - b) <= 1e-5 * mx.linalg.norm(a)
