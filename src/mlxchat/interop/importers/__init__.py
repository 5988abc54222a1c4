"""Import of other programs' models, without running any of their code.

Each reader returns a `Foreign`: the names and shapes of the tensors, which are read one by one when
they are needed.
"""

from collections.abc import Callable
from pathlib import Path

from mlxchat.checkpoint import layout, store, trainer
from mlxchat.checkpoint.layout import Origin
from mlxchat.errors import CheckpointError, ConfigError, NotFound
from mlxchat.interop.importers import hugging_face, nanochat
from mlxchat.interop.importers.model import Foreign, read_network
from mlxchat.interop.importers.optimizer import find_optimizer, read_foreign_optimizer
from mlxchat.model.gpt import GPT
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.runtime import bound_buffer_cache, mx


def open_model(
    path: Path,
    step: int | None = None,
    tokenizer: Path | None = None,
    softcap: float | None = None,
    conversational: bool | None = None,
) -> Foreign:
    """Open a model of nanochat, the original mlxchat, transformers or mlx-lm.

    Nothing large is read.

    Args:
        path: a directory of checkpoints, a file in one, or a directory with a config.json.
        step: the checkpoint in the directory; None for the newest.
        tokenizer: the tokenizer's file or folder; None to look where the program puts it.
        softcap: the bound of the logits; None for the era's.
        conversational: whether it was trained on conversations; None to judge by its place.

    Raises:
        NotFound: there is no such model.
        CheckpointError: it is damaged, asks for more than data, or has another architecture.
        ConfigError: ``step`` is given for a directory without steps.
    """
    if not (path.is_dir() or path.is_file()):
        raise NotFound(
            f"There is no directory or file {path}.", "Name a model's directory or file."
        )
    if (path / layout.CONFIG).exists():
        if step is not None:
            raise ConfigError(
                f"{path} contains only one checkpoint, so there is no step to choose.",
                "Leave out `step`.",
            )
        return hugging_face.open_hugging_face(path, tokenizer, softcap, conversational)
    return nanochat.open_nanochat(path, step, tokenizer, softcap, conversational)


def import_run(
    run: Path,
    foreign: Foreign,
    with_optimizer: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Read a model, and save it as the only step of a run.

    Args:
        run: the run's folder.
        foreign: the model as it was opened.
        with_optimizer: import the optimizer's state too, for fine-tuning to start from.
        report: called with the bytes of the tensors read so far, and of all.

    Returns:
        The directory of the checkpoint.

    Raises:
        NotFound: there is no state of an optimizer.
        CheckpointError: a tensor is damaged, or the optimizer's state cannot be used.
        CheckpointError: a model has been saved in that run.
        DiskError: the disk is full or cannot be written.
        LockedError: another process writes there.
    """
    with store.locked(run):
        if store.require_steps(run):
            raise CheckpointError(
                f"There is already a model in {run}.", "Choose another name with `model_tag`."
            )
        return _import_into(run, foreign, with_optimizer, report)


def _import_into(
    run: Path, foreign: Foreign, with_optimizer: bool, report: Callable[[int, int], None]
) -> Path:
    config, state = foreign.config, None
    file = find_optimizer(foreign.path, foreign.step, config) if with_optimizer else None
    bound_buffer_cache()
    model = read_network(foreign, report)
    if file:
        expected = {name: array.shape for name, array in MuonAdamW(model).state.items()}
        state = read_foreign_optimizer(file, config, expected)
    origin = Origin(
        program=foreign.program,
        path=str(foreign.path.resolve()),
        step=foreign.step,
        bits_per_byte=foreign.bits_per_byte,
    )

    def write(folder: Path) -> None:
        layout.write_model(folder, model, foreign.tokenizer, foreign.conversational)
        origin.write(folder)
        if state is not None:
            mx.save_safetensors(str(folder / trainer.OPTIMIZER), state)

    return store.save(run, foreign.step, write, _size(model, state))


def _size(model: GPT, optimizer: dict[str, mx.array] | None) -> int:
    arrays = [*model.named_parameters().values(), *(optimizer or {}).values()]
    return sum(array.nbytes for array in arrays)
