"""What `mlxchat export` does."""

import json as json_format
import sys
import time
from pathlib import Path

from mlxchat import runtime
from mlxchat.checkpoint import catalog, layout
from mlxchat.errors import CheckpointError
from mlxchat.home import Home
from mlxchat.interop import exporters
from mlxchat.interop.programs import Program
from mlxchat.model.quantization import Quantization
from mlxchat.quantize import quantize
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Progressed
from mlxchat.train.stage import history_of
from mlxchat.ui.console import Screen, say
from mlxchat.ui.text import amount


def export(
    program: Program,
    model_tag: str | None,
    model_step: int | None,
    checkpoint: Path | None,
    out: Path | None,
    dtype: str | None,
    bits: int | None,
    json: bool,
) -> None:
    """Write a model for another program, showing how far it is on standard error.

    Args:
        model_tag, model_step, checkpoint: which.
        out: where to; None for the run's name and the program's, here.
        dtype: MLX's name; None for float32, of a quantized model bfloat16.
        bits: of a weight, where it is to be quantized.
    """
    home = Home.from_environment()
    source = catalog.locate(home.stages, model_tag, model_step, checkpoint)
    about = history_of(source, home)
    folder = (out or Path(f"{about.tag}-{program}")).absolute()
    exporters.require_possible(program, source, folder)
    quantization = None if bits is None else Quantization(bits=bits)
    if quantization:
        _require_quantizable(program, source)
    whole = quantization is None and not layout.is_quantized(source)
    precision: mx.Dtype = getattr(mx, dtype or ("float32" if whole else "bfloat16"))
    runtime.bound_buffer_cache()
    with Screen(stream=sys.stderr) as screen:

        def report(done: int, total: int) -> None:
            screen.show(Progressed(time.time(), "writing", done, total, "bytes"))

        saved = layout.read_model(source, precision)
        if quantization:  # how good the model was then, it is no longer
            about = about.model_copy(update={"bits_per_byte": None})
            quantize(saved.model, quantization.formats(saved.model.config))
        written = exporters.write(program, folder, saved, about, precision, report)
    commands = written.usage.at(str(folder))
    if json:
        facts = {"program": program, "source": str(source), "path": str(written.folder)}
        say(json_format.dumps(facts | {"bytes": written.bytes, "commands": commands}))
        return
    say(f"{amount(written.bytes, 'bytes')} in {folder}")
    say(written.usage.remark or "Run it there:")
    for line in commands:
        say(f"  {line}")


def _require_quantizable(program: Program, source: Path) -> None:
    if program != "mlx-lm":
        raise CheckpointError(
            f"{program} cannot read a model that is quantized by MLX.",
            "Leave out --quantize, or export --to mlx-lm.",
        )
    if layout.is_quantized(source):
        raise CheckpointError(
            f"The model in {source} is quantized already.", "Leave out --quantize."
        )
