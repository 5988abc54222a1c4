"""What learns in a run: a new model with its optimizer, or those of a checkpoint."""

from collections.abc import Generator
from typing import NamedTuple

from mlxchat.ckpt import layout
from mlxchat.data.loader import LoaderState
from mlxchat.data.tokenizer import Tokenizer
from mlxchat.model.gpt import GPT
from mlxchat.model.initial import initialise
from mlxchat.optim.groups import MuonAdamW
from mlxchat.runtime import hold_memory, machine, mx
from mlxchat.telemetry import Event, Noted
from mlxchat.train.fitting import Capacity, memory_limit
from mlxchat.train.inputs import Clock, SavedRun
from mlxchat.train.plan import Plan, refitted
from mlxchat.train.probe import planned
from mlxchat.train.settings import PretrainConfig


class Learner(NamedTuple):
    """A model and all that its training goes on from."""

    plan: Plan
    tokenizer: Tokenizer
    model: GPT
    optimizer: MuonAdamW
    step: int
    loader: LoaderState


def begin(
    config: PretrainConfig, tokenizer: Tokenizer, available: Capacity, begun: float, clock: Clock
) -> Generator[Event, None, Learner]:
    """That of a new run, by a plan that is measured first where there is a time budget.

    Args:
        config: the settings.
        tokenizer: the run's.
        available: the memory that it may take.
        begun: when the time budget began, by the clock.
        clock: seconds since the epoch.

    Raises:
        MlxchatError: the settings cannot work, or not in that memory.
    """
    if config.budget:
        yield Noted(clock(), f"Measuring how fast this machine trains, for {config.budget}.")
    made = planned(config, tokenizer.vocab_size, available, begun, clock)
    _hold_memory(made, config, available)
    model = GPT(made.model, machine().compute_dtype)
    initialise(model, mx.random.key(config.seed))
    return Learner(made, tokenizer, model, _optimizer(model), 0, LoaderState())


def go_on(
    config: PretrainConfig, saved: SavedRun, available: Capacity, clock: Clock
) -> Generator[Event, None, Learner]:
    """That of a saved run, computed otherwise where the memory or the settings ask for it.

    Raises:
        MlxchatError: it does not fit into the memory, or as `resume`.
    """
    made = refitted(saved.plan, config, available)
    _hold_memory(made, config, available)
    learner = resume(made, saved)
    if made != saved.plan:
        yield Noted(clock(), f"Computed otherwise than before, to learn the same: {made.summary()}")
    return learner


def resume(made: Plan, saved: SavedRun) -> Learner:
    """As it was saved, to be trained by a plan that may compute the same otherwise.

    Raises:
        MlxchatError: a file of the checkpoint is missing, damaged or of another model.
    """
    stored = layout.read_model(saved.folder, machine().compute_dtype)
    optimizer = _optimizer(stored.model)
    state = layout.read_arrays(saved.folder / layout.OPTIMIZER)
    layout.check_arrays(saved.folder / layout.OPTIMIZER, state, optimizer.state)
    optimizer.state = state
    loader = layout.read_loader(saved.folder)
    step = saved.trainer.step
    return Learner(made, stored.tokenizer, stored.model, optimizer, step, loader)


def _hold_memory(made: Plan, config: PretrainConfig, available: Capacity) -> None:
    limit = memory_limit(config, made.model, made.rows, available)
    hold_memory(limit, made.memory(available)["peak"], config.wired_bytes)


def _optimizer(model: GPT) -> MuonAdamW:
    return MuonAdamW(model.named_parameters(), model.config.arch, machine().compute_dtype)
