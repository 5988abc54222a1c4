"""What learns in a run: a new model with its optimizer, or those of a checkpoint."""

from typing import NamedTuple

from mlxchat.ckpt import layout
from mlxchat.data.loader import LoaderState
from mlxchat.data.tokenizer import Tokenizer
from mlxchat.model.gpt import GPT
from mlxchat.model.initial import initialise
from mlxchat.optim.groups import MuonAdamW
from mlxchat.runtime import machine, mx
from mlxchat.train.inputs import SavedRun
from mlxchat.train.plan import Plan


class Learner(NamedTuple):
    """A model and all that its training goes on from."""

    plan: Plan
    tokenizer: Tokenizer
    model: GPT
    optimizer: MuonAdamW
    step: int
    loader: LoaderState


def begin(made: Plan, tokenizer: Tokenizer, seed: int) -> Learner:
    """A new one.

    Args:
        seed: of the initial parameters.
    """
    model = GPT(made.model, machine().compute_dtype)
    initialise(model, mx.random.key(seed))
    return Learner(made, tokenizer, model, _optimizer(model), 0, LoaderState())


def resume(saved: SavedRun) -> Learner:
    """As it was saved.

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
    return Learner(saved.plan, stored.tokenizer, stored.model, optimizer, step, loader)


def _optimizer(model: GPT) -> MuonAdamW:
    return MuonAdamW(model.named_parameters(), model.config.arch, machine().compute_dtype)
