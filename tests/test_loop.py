"""Optimizer steps by themselves: micro-batches add up to a batch, and gradients are clipped."""

import numpy as np
import pytest
from test_model import Case, case, relative

from mlxchat.data.loader import Batch, LoaderState
from mlxchat.optim.groups import GROUPS, MATRIX, Arrays, MuonAdamW, Rates, group_of
from mlxchat.runtime import mx, nn, tree_flatten
from mlxchat.train.loop import Launched, Run, compile_step

__all__ = ["case"]  # a fixture

STEPS, ROWS, LENGTH = 2, 4, 24


def rows(case: Case) -> np.ndarray:
    """Ids of all steps and, one place later, targets, none of them ignored."""
    shape = (STEPS * ROWS, LENGTH + 1)
    return np.random.default_rng(5).integers(case.config.vocab_size, size=shape, dtype=np.int32)


def prepare(case: Case, micro_rows: int = ROWS, grad_clip: float = 0.0) -> Run:
    """Steps of ROWS rows, ``micro_rows`` of them at once; Muon without momentum."""
    model, ids = case.model(), rows(case)
    learning = {group: mx.array(0.01) for group in (MATRIX, *GROUPS[case.config.arch])}
    rates = Rates(learning, momentum=mx.array(0.0), weight_decay=mx.array(0.0))
    micro_batches = ids.reshape(-1, micro_rows, LENGTH + 1)
    return Run(
        model=model,
        optimizer=MuonAdamW(model.named_parameters(), case.config.arch, mx.float32),
        batches=(Batch(ids[:, :-1], ids[:, 1:], LoaderState()) for ids in micro_batches),
        rates=lambda _: rates,
        total_steps=STEPS,
        accumulation=ROWS // micro_rows,
        grad_clip=grad_clip,
        grad_checkpoint=False,
        loss_rows=16,
        clock=lambda: 0.0,
    )


def loss_and_norm(launched: Launched) -> tuple[float, float]:
    loss, norm, _ = launched.facts.tolist()
    return loss, norm


def optimized_gradients(run: Run) -> Arrays:
    """What the optimizer was given in the first step, from the moments that it made of it."""
    state, gradients = run.optimizer.state, {}
    for name in run.model.named_parameters():
        group = group_of(name)
        if group == MATRIX:
            gradients[name] = state[f"muon.{name}"]
        else:
            beta1, _ = GROUPS[run.model.config.arch][group].betas
            gradients[name] = state[f"adamw.{name}.m"] / (1 - beta1)
    return gradients


def joint_norm(gradients: Arrays) -> float:
    return sum(g.square().sum().item() for g in gradients.values()) ** 0.5


@pytest.mark.parametrize("micro_rows", [1, ROWS])
def test_micro_batches_add_up_to_a_batch(case: Case, micro_rows: int) -> None:
    run, model, ids = prepare(case, micro_rows), case.model(), mx.array(rows(case)[:ROWS])
    loss, norm = loss_and_norm(compile_step(run)(1))
    expected_loss, tree = nn.value_and_grad(model, model.loss)(ids[:, :-1], ids[:, 1:])
    expected = dict(tree_flatten(tree))
    assert loss == pytest.approx(expected_loss.item(), abs=1e-5)
    assert norm == pytest.approx(joint_norm(expected), rel=1e-5)
    for name, gradient in optimized_gradients(run).items():
        assert mx.allclose(gradient, expected[name], rtol=1e-5, atol=1e-6), name


def test_gradients_are_clipped_and_their_norm_told_unclipped(case: Case) -> None:
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
