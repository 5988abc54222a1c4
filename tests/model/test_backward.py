"""Accumulation and gradient checkpointing save memory and do not change the gradients."""

from collections.abc import Iterator
from itertools import repeat

import numpy as np
import pytest
from support.cases import Case
from support.marks import slow

from mlxchat.data.loader import Batch, LoaderState
from mlxchat.model.backward import Backward
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT, initialise
from mlxchat.model.size import training_bytes
from mlxchat.optim import optimizer
from mlxchat.optim.optimizer import GROUPS, MATRIX, Arrays, MuonAdamW, Rates
from mlxchat.runtime import machine, mx
from mlxchat.train.loop import Run, compile_step
from mlxchat.train.measure import SCORES_HELD


def loss_and_gradients(case: Case, model: GPT, backward: Backward) -> tuple[mx.array, Arrays]:
    def loss(parameters: Arrays) -> mx.array:
        with model.holding(parameters):
            return model.loss(case.io["ids"], case.io["targets"], 16, backward)

    found: tuple[mx.array, Arrays] = mx.compile(mx.value_and_grad(loss))(model.named_parameters())
    return found


@pytest.mark.parametrize("dtype", [mx.float32, slow(mx.bfloat16)], ids=["float32", "bfloat16"])
def test_checkpointing_changes_nothing(case: Case, dtype: mx.Dtype) -> None:
    model = case.model(dtype)
    expected_loss, expected = loss_and_gradients(case, model, Backward())
    loss, gradients = loss_and_gradients(case, model, Backward(checkpoint=True))
    assert loss.item() == expected_loss.item()
    assert expected.keys() == gradients.keys() == model.named_parameters().keys()
    for name, gradient in gradients.items():
        assert mx.array_equal(gradient, expected[name]), name


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_are_added_to_those_before(case: Case, checkpoint: bool) -> None:
    model = case.model()
    before = {
        name: mx.random.normal(p.shape, key=mx.random.key(i))
        for i, (name, p) in enumerate(model.named_parameters().items())
    }
    _, alone = loss_and_gradients(case, model, Backward())
    _, summed = loss_and_gradients(case, model, Backward(before, checkpoint))
    for name, gradient in summed.items():
        assert mx.allclose(gradient, before[name] + alone[name], atol=1e-6), name


def test_parameters_are_the_models_own_again_afterwards(case: Case) -> None:
    model = case.model()
    before = model.named_parameters()
    loss_and_gradients(case, model, Backward(checkpoint=True))
    assert all(p is before[name] for name, p in model.named_parameters().items())
    with pytest.raises(RuntimeError), model.holding({"lm_head.weight": mx.zeros(1)}):
        raise RuntimeError
    assert model.lm_head.weight is before["lm_head.weight"]


@pytest.fixture
def _limits() -> Iterator[None]:
    """MLX's own afterwards."""
    before = mx.set_memory_limit(2**40)
    yield
    mx.set_memory_limit(before)


def new_run(config: GPTConfig, rows: int, accumulation: int, checkpoint: bool, chunk: int) -> Run:
    model = GPT(config, machine().compute_dtype)
    initialise(model, mx.random.key(0))
    shape = rows, config.sequence_len
    ids = np.random.default_rng(0).integers(config.vocab_size, size=shape, dtype=np.int32)
    learning = {group: mx.array(0.01) for group in (MATRIX, *GROUPS[config.arch])}
    rates = Rates(learning, momentum=mx.array(0.9), weight_decay=mx.array(0.0))
    return Run(
        model=model,
        optimizer=MuonAdamW(model.named_parameters(), config.arch, model.dtype),
        batches=repeat(Batch(ids, ids, LoaderState())),
        rates=lambda _: rates,
        total_steps=2,
        accumulation=accumulation,
        grad_clip=1.0,
        grad_checkpoint=checkpoint,
        loss_rows=chunk,
        clock=lambda: 0.0,
    )


def peak_of_two_steps(run: Run, limit: int) -> int:
    """Bytes that MLX takes at most, its computing ahead kept within a limit."""
    mx.synchronize()
    mx.clear_cache()
    elsewhere = mx.get_active_memory()
    mx.set_memory_limit(elsewhere + limit)
    mx.reset_peak_memory()
    launch = compile_step(run)
    for step in (1, 2):
        mx.eval(launch(step).facts, run.model.parameters(), run.optimizer.state)
    return int(mx.get_peak_memory()) - elsewhere


@pytest.mark.usefixtures("_limits")
@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize(("checkpoint", "accumulation"), [(False, 1), slow(False, 2), (True, 2)])
def test_the_estimate_is_what_is_taken(arch: str, checkpoint: bool, accumulation: int) -> None:
    config = GPTConfig.from_depth(4, 2048, 128, head_dim=64, arch=arch)
    run = new_run(config, 4, accumulation, checkpoint, 64)
    needed = training_bytes(
        config,
        4,
        accumulation,
        machine().compute_dtype.size,
        SCORES_HELD[machine().backend],
        64,
        checkpoint=checkpoint,
    )
    assert peak_of_two_steps(run, needed["peak"]) == pytest.approx(needed["peak"], rel=0.1)


@pytest.mark.usefixtures("_limits")
@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_an_update_takes_the_memory_of_what_was_before(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "STACK", 2**18)
    config = GPTConfig.from_depth(4, 2048, 128, head_dim=64, arch=arch)
    run = new_run(config, 1, 1, False, 64)
    update = mx.compile(run.optimizer.update)
    parameters = run.model.named_parameters()
    gradients = {name: mx.ones_like(p) for name, p in parameters.items()}
    state, rates = run.optimizer.state, run.rates(0)
    run.optimizer.state = {}
    del run
    mx.eval(parameters, gradients, state)
    mx.synchronize()
    mx.set_memory_limit(1)  # so that nothing is computed ahead
    held = sum(p.nbytes for p in parameters.values())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    parameters, state = update(parameters, gradients, state, rates)
    del gradients
    mx.eval(parameters, state)
    assert mx.get_peak_memory() - before < 0.2 * held
