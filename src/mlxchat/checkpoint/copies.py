"""A changed copy of a saved model, such as a quantized one: a run of its own, named after it."""

from dataclasses import replace
from pathlib import Path

from mlxchat.checkpoint import history, layout, store
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.run import require_name
from mlxchat.errors import CheckpointError, command
from mlxchat.home import Home
from mlxchat.model.lora import fuse_adapter


def fused(saved: SavedModel, dequantize: bool = True) -> SavedModel:
    """Make the adapter on a model part of its weights, in place, and return the whole model.

    Args:
        saved: a model with an adapter, not prepared for inference.
        dequantize: as for `fuse_adapter`.
    """
    fuse_adapter(saved.model, dequantize)
    return replace(saved, base=None)


def destination(
    home: Home, source: Path, kind: str, ending: str, fresh: bool = False
) -> tuple[Path, int]:
    """Return the run folder and the step under which to save a changed copy of a model.

    The copy of a run of some stage is a run of that stage, with an ending after its name. A
    checkpoint keeps its step; a directory from elsewhere becomes step 0 of a run of its name, one
    of fine-tuning if the model has a chat template.

    Args:
        home: where runs are.
        source: the model's directory.
        kind: what it is made, such as ``quantized``.
        ending: of the name, such as ``4bit``.
        fresh: whether a copy that there is may be replaced.

    Raises:
        CheckpointError: there is such a copy, and it may not.
        ConfigError: the model is in a folder that no run can be named after.
    """
    stage = source.resolve().parent.parent
    tag, step = history.tag_and_step(source)
    remedy = f"Rename {source}, or import it under a name with `model_tag`."
    name = require_name(f"{tag}-{ending}", remedy)
    elsewhere = home.finetuned if layout.has_chat_template(source) else home.runs
    run = (stage if stage in home.stages else elsewhere) / name
    if store.directory(run, step).exists() and not fresh:
        raise CheckpointError(
            f"There is already a {kind} copy: {store.directory(run, step)}.",
            f"Talk to it: {command('chat', model_tag=run.name)}. Or replace it with `fresh`.",
        )
    return run, step


def save_copy(run: Path, step: int, saved: SavedModel, past: History, fresh: bool = False) -> Path:
    """Save a model as a step of a run, without what training needs to resume.

    Args:
        run, step: as `destination` returns them; the caller has the run locked.
        saved: the model. If there is an adapter on it, the adapter is what is saved.
        past: the history of the original model.
        fresh: whether to replace that step, if it is there.

    Raises:
        CheckpointError: that step has been saved meanwhile.
        DiskError: the disk is full or not writable.
    """

    def write(folder: Path) -> None:
        layout.write_saved(folder, saved)
        past.write(folder)

    return store.save(run, step, write, replaces=fresh)
