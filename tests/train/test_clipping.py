"""Gradients are clipped by their joint norm."""

import pytest
from support.cases import Case, relative
from support.steps import ROWS, joint_norm, loss_and_norm, optimized_gradients, prepare

from mlxchat.train.step import compile_step


def test_gradients_are_clipped_and_the_norm_before_is_reported(case: Case) -> None:
    limit = 0.01
    clipped, free = (prepare(case, ROWS // 2, grad_clip) for grad_clip in (limit, 1e6))
    launch_clipped, launch_free = compile_step(clipped), compile_step(free)
    told = loss_and_norm(launch_clipped(1))
    assert told == pytest.approx(loss_and_norm(launch_free(1)))
    assert told[1] > 10 * limit
    unclipped = optimized_gradients(free)
    assert joint_norm(unclipped) == pytest.approx(told[1], rel=1e-5)
    for name, gradient in optimized_gradients(clipped).items():
        assert relative(gradient, limit / told[1] * unclipped[name]) < 1e-4, name
    # AdamW's first step is the same at every scale; its second weighs the gradients of both.
    launch_clipped(2)
    launch_free(2)
    assert relative(clipped.model.lm_head.weight, free.model.lm_head.weight) > 1e-4
