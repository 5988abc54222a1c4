"""What learns in a run: a new model with its optimizer, or those of a checkpoint."""

from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from mlxchat import runtime
from mlxchat.checkpoint import history, layout
from mlxchat.checkpoint.history import History
from mlxchat.config.run import RunConfig
from mlxchat.data.loader import LoaderState
from mlxchat.model.gpt import GPT
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.plan.memory import Capacity, memory_limit
from mlxchat.plan.plan import Plan, refitted
from mlxchat.runtime import machine
from mlxchat.telemetry.events import Clock, Event, Noted
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train.saved import SavedRun


class Learner(NamedTuple):
    """A model and all that its training goes on from."""

    plan: Plan
    tokenizer: Tokenizer
    model: GPT
    optimizer: MuonAdamW
    step: int
    loader: LoaderState
    past: History | None = None  # of the model that the run began with

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are saved: weights and the optimizer's state."""
        arrays = *self.model.named_parameters().values(), *self.optimizer.state.values()
        return sum(array.nbytes for array in arrays)


def go_on(
    config: RunConfig, saved: SavedRun, available: Capacity, clock: Clock
) -> Generator[Event, None, Learner]:
    """That of a saved run, computed otherwise where the memory or the settings ask for it.

    Raises:
        MlxchatError: it does not fit into the memory, or as `resume`.
    """
    made = refitted(saved.plan, config, available)
    hold_memory(made, config, available)
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
    optimizer = new_optimizer(stored.model)
    load_optimizer(optimizer, saved.folder)
    loader = layout.read_loader(saved.folder)
    step = saved.trainer.step
    past = history.past(saved.folder)
    return Learner(made, stored.tokenizer, stored.model, optimizer, step, loader, past)


def load_optimizer(optimizer: MuonAdamW, folder: Path) -> None:
    """Give an optimizer the state in a saved step.

    Raises:
        MlxchatError: there is none, it is damaged or of another model.
    """
    path = folder / layout.OPTIMIZER
    state = layout.read_arrays(path)
    layout.check_arrays(path, state, optimizer.state)
    optimizer.state = state


def hold_memory(made: Plan, config: RunConfig, available: Capacity) -> None:
    """Let this process take no more than the plan's peak, and the memory limit, allow."""
    limit = memory_limit(config, made.model, made.rows, available)
    runtime.hold_memory(limit, made.memory(available)["peak"], config.wired_bytes)


def new_optimizer(model: GPT) -> MuonAdamW:
    """Of a model, at its beginning."""
    return MuonAdamW(model.named_parameters(), model.config.arch, machine().compute_dtype)
