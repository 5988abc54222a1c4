"""The gradients of micro-batches add up to those of the whole batch."""

import pytest
from support.cases import Case
from support.steps import ROWS, joint_norm, loss_and_norm, optimized_gradients, prepare, rows

from mlxchat.runtime import mx, nn, tree_flatten
from mlxchat.train.step import compile_step


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
