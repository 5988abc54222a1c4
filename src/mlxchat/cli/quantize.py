"""The command `quantize`."""

import sys
import time
from typing import TYPE_CHECKING, Any

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
from mlxchat.home import Home
from mlxchat.model.quantization import Quantization
from mlxchat.telemetry.events import Noted
from mlxchat.ui.console import Screen, say, say_json, table
from mlxchat.ui.text import amount

if TYPE_CHECKING:
    from mlxchat.quantize import QuantizedPart


def quantize_command(
    quantization: Quantization,
    model_tag: ModelTag = None,
    step: StepNumber = None,
    checkpoint: Checkpoint = None,
    eval_tokens: EvalTokens = EVAL_TOKENS,
    fresh: Replace = False,
    json: Json = False,
) -> None:
    """Save a quantized copy of a model: at 4 bits, about a sixth of its size.

    The copy is a run of its own, such as d12-4bit, for chat, eval, serve and export; mlx-lm can
    load it if the architecture is classic. It can only be trained further with an adapter. The
    original model is kept. If the model has an adapter, it is merged first.

    If the validation text is on disk, the loss in bits per byte is measured before and
    after. Progress goes to standard error.
    """
    require_one_place(model_tag, step, checkpoint)
    from mlxchat import runtime
    from mlxchat.checkpoint import copies, layout
    from mlxchat.quantize import quantize, require_unquantized
    from mlxchat.train.stage import history_of

    home = Home.from_environment()
    source = catalog.locate(home.stages, model_tag, step, checkpoint)
    require_unquantized(source)
    run, number = copies.destination(home, source, "quantized", quantization.name, fresh)
    formats = quantization.formats(layout.read_config(source))
    runtime.bound_buffer_cache()
    with (
        store.locked(run),
        Screen(stream=sys.stderr) as screen,
        validation_text(source, home, screen, eval_tokens) as documents,
    ):
        past = history_of(source, home)
        saved = layout.read_model(source, runtime.machine().compute_dtype)
        name = model_in_words(source, checkpoint)
        screen.show(Noted(time.time(), f"The model: {name}."))
        before = measured(saved, documents, "before", eval_tokens, screen)
        if saved.base is not None:
            screen.show(Noted(time.time(), "The adapter is merged into the weights first."))
            saved = copies.fused(saved)
        parts = quantize(saved.model, formats)
        folder = copies.save_copy(run, number, saved, past, fresh)
        after = before and measured(saved, documents, "after", eval_tokens, screen)
    facts = {
        "source": str(source),
        "path": str(folder),
        "bytes_before": sum(path.stat().st_size for path in layout.weight_files(source)),
        "bytes_after": (folder / layout.MODEL).stat().st_size,
        **loss_facts(before, after),
    }
    if json:
        each = [{**part._asdict(), "bits_per_weight": part.bits_per_weight} for part in parts]
        say_json({**facts, "parts": each})
    else:
        _show(facts, parts, run.name)


def _show(facts: dict[str, Any], parts: "list[QuantizedPart]", run: str) -> None:
    rows = [
        (
            part.name,
            part.stored,
            part.parameters,
            round(part.bits_per_weight, 2),
            _megabytes(part.bytes_before),
            _megabytes(part.bytes_after),
        )
        for part in parts
    ]
    table(["weights", "stored as", "number", "bits each", "MB before", "MB after"], rows)
    small, large = facts["bytes_after"], facts["bytes_before"]
    say(
        f"{amount(large, 'bytes')} before, {amount(small, 'bytes')} after ({small / large:.1%} of "
        f"the size), in {facts['path']}"
    )
    say_losses(facts)
    say(f"Talk to it: mlxchat chat --model-tag {run}")


def _megabytes(count: int) -> float:
    return round(count / 1e6, 2)
