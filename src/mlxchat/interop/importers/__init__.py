"""Models of other programs, read without running anything of theirs.

Each reader makes a `Foreign` of what it finds: names and shapes of the tensors, which are read when
they are wanted, one after another.
"""

from pathlib import Path

from mlxchat.checkpoint import layout, store, trainer
from mlxchat.checkpoint.layout import Origin
from mlxchat.errors import ConfigError, NotFound
from mlxchat.interop.importers import hugging_face, nanochat
from mlxchat.interop.importers.model import Foreign
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx


def open_model(
    path: Path,
    step: int | None = None,
    tokenizer: Path | None = None,
    softcap: float | None = None,
    conversational: bool | None = None,
) -> Foreign:
    """A model of nanochat's, of the original mlxchat's, or of the hub's; nothing large is read.

    Args:
        path: a directory of checkpoints, one of their files, or a directory with a config.json.
        step: which of a directory's checkpoints; None for the newest.
        tokenizer: its file or folder; None for the one that lies where its program puts it.
        softcap: bound of the logits; None for the era's.
        conversational: whether it was trained on conversations; None for what its place says.

    Raises:
        MlxchatError: there is no such model, it is damaged, asks for more than data, or is of
            another architecture.
    """
    if not path.exists():
        raise NotFound(f"There is no {path}.", "Give a model's directory or file.")
    if (path / layout.CONFIG).exists():
        if step is not None:
            raise ConfigError(f"{path} has no steps to choose from.", "Leave out `step`.")
        return hugging_face.open_model(path, tokenizer, softcap, conversational)
    return nanochat.open_model(path, step, tokenizer, softcap, conversational)


def save(run: Path, foreign: Foreign, model: GPT, optimizer: dict[str, mx.array] | None) -> Path:
    """Save an imported model as the only step of a run.

    Args:
        run: its folder.
        foreign: where the model is from.
        model: in float32.
        optimizer: its state, for fine-tuning to go on from; None for none.

    Raises:
        MlxchatError: the disk is full or cannot be written, or another process writes there.
    """
    origin = Origin(
        program=foreign.program,
        path=str(foreign.path.resolve()),
        step=foreign.step,
        bits_per_byte=foreign.bits_per_byte,
    )

    def write(folder: Path) -> None:
        layout.write_model(folder, model, foreign.tokenizer, foreign.conversational)
        origin.write(folder)
        if optimizer is not None:
            mx.save_safetensors(str(folder / trainer.OPTIMIZER), optimizer)

    with store.locked(run):
        return store.save(run, foreign.step, write, _size(model, optimizer))


def _size(model: GPT, optimizer: dict[str, mx.array] | None) -> int:
    arrays = [*model.named_parameters().values(), *(optimizer or {}).values()]
    return sum(array.nbytes for array in arrays)
