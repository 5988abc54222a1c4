"""The command `fuse`."""

import sys
import time
from typing import Annotated, Any

import typer

from mlxchat.checkpoint import catalog, store
from mlxchat.cli.options import (
    Checkpoint,
    Json,
    ModelTag,
    Replace,
    StepNumber,
    model_in_words,
    require_one_place,
)
from mlxchat.cli.validation import (
    EVAL_TOKENS,
    EvalTokens,
    loss_facts,
    measured,
    say_losses,
    validation_text,
)
from mlxchat.errors import CheckpointError, command
from mlxchat.home import Home
from mlxchat.telemetry.events import Noted
from mlxchat.ui.console import Screen, say, say_json
from mlxchat.ui.text import amount


def fuse_command(
    model_tag: ModelTag = None,
    step: StepNumber = None,
    checkpoint: Checkpoint = None,
    keep_quantized: Annotated[
        bool,
        typer.Option(
            "--keep-quantized",
            help="If the base model is quantized, quantize the merged layers in the "
            "same way. Rounding then loses part of what the adapter learned, sometimes most of it.",
        ),
    ] = False,
    eval_tokens: EvalTokens = EVAL_TOKENS,
    fresh: Replace = False,
    json: Json = False,
) -> None:
    """Merge an adapter into its base model.

    The result is a run of its own, such as d12-lora-fused. It needs neither the adapter nor the
    base model any more, and can be trained further. If the base model is quantized, the result is
    stored in float32, unless --keep-quantized is given. chat, eval, serve and export use adapters
    directly; you only need to merge one to train it further, or for programs that cannot load
    adapters.

    If the validation text is on disk, the loss in bits per byte is measured before and
    after. Progress goes to standard error.
    """
    require_one_place(model_tag, step, checkpoint)
    from mlxchat import runtime
    from mlxchat.checkpoint import copies, layout
    from mlxchat.checkpoint.bases import is_adapter
    from mlxchat.model.quantized import formats_of
    from mlxchat.train.stage import history_of

    home = Home.from_environment()
    source = catalog.locate(home.stages, model_tag, step, checkpoint)
    if not is_adapter(source):
        raise CheckpointError(
            f"The model in {source} has no adapter to merge.",
            f"Talk to it as it is: {command('chat', checkpoint=source)}",
        )
    run, number = copies.destination(home, source, "fused", "fused", fresh)
    runtime.bound_buffer_cache()
    with (
        store.locked(run),
        Screen(stream=sys.stderr) as screen,
        validation_text(source, home, screen, eval_tokens) as documents,
    ):
        past = history_of(source, home)
        saved = layout.read_model(source, runtime.machine().compute_dtype)
        screen.show(Noted(time.time(), f"The model: {model_in_words(source, checkpoint)}."))
        before = measured(saved, documents, "before", eval_tokens, screen)
        whole = copies.fused(saved, dequantize=not keep_quantized)
        folder = copies.save_copy(run, number, whole, past, fresh)
        after = before and measured(whole, documents, "after", eval_tokens, screen)
    facts = {
        "source": str(source),
        "path": str(folder),
        "quantized": bool(formats_of(whole.model)),
        "bytes_before": sum(path.stat().st_size for path in layout.weight_files(source)),
        "bytes_after": (folder / layout.MODEL).stat().st_size,
        **loss_facts(before, after),
    }
    if json:
        say_json(facts)
    else:
        _show(facts, run.name)


def _show(facts: dict[str, Any], run: str) -> None:
    say(
        f"{amount(facts['bytes_before'], 'bytes')} in two parts before, "
        f"{amount(facts['bytes_after'], 'bytes')} after, in {facts['path']}"
    )
    say_losses(facts)
    say(f"Talk to it: mlxchat chat --model-tag {run}")
