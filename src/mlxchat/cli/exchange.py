"""The commands `import` and `export`: models from and for other programs."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlxchat.checkpoint import catalog
from mlxchat.checkpoint.run_names import new_run
from mlxchat.cli.completion import run_names
from mlxchat.cli.options import (
    PATH,
    Checkpoint,
    Json,
    ModelTag,
    StepNumber,
    model_in_words,
    require_one_place,
)
from mlxchat.errors import CheckpointError, MlxchatError
from mlxchat.home import Home, expanded
from mlxchat.interop.programs import PROGRAMS, GgufType, MlxBits, Program, runnable_models
from mlxchat.model.quantization import Quantization
from mlxchat.telemetry.events import Noted, Progressed
from mlxchat.ui.console import Screen, say, say_json, say_whole
from mlxchat.ui.text import amount

if TYPE_CHECKING:
    from mlxchat.checkpoint.layout import SavedModel
    from mlxchat.evaluate.temperature import NearestTemperatures
    from mlxchat.interop.exporters import Exported
    from mlxchat.interop.importers.model import Foreign


def import_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="The directory or file of a checkpoint.",
            show_default=False,
            parser=expanded,
        ),
    ],
    step: Annotated[
        int | None,
        typer.Option(
            min=0, help="Step of the checkpoint to import. Default: the newest.", show_default=False
        ),
    ] = None,
    model_tag: Annotated[
        str | None,
        typer.Option(
            help="Name of the new run. Default: the folder's name.",
            show_default=False,
            metavar="NAME",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="The model's tokenizer.pkl or tokenizer.json. Default: the one next "
            "to the model, or in nanochat's own folder.",
            show_default=False,
            **PATH,
        ),
    ] = None,
    softcap: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=64,
            help="Soft cap of the logits. Default: the one used by its version of nanochat.",
        ),
    ] = None,
    conversational: Annotated[
        bool | None,
        typer.Option(
            "--chat/--base",
            help="Whether the model was trained on conversations. Default: as its folder suggests.",
            show_default=False,
        ),
    ] = None,
    with_optimizer: Annotated[
        bool,
        typer.Option("--with-optimizer", help="Import the optimizer state too, for use with sft."),
    ] = False,
    onto: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="For an adapter: the run or directory of its base model.",
            autocompletion=run_names,
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="For an adapter: accept a base model other than the one it was trained on.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Import a model or an adapter that was trained elsewhere.

    Reads checkpoints of nanochat (model_*.pt) of any era, the original mlxchat
    (model_*.npz), transformers (NanoChatForCausalLM) and mlx-lm (nanochat); and with
    --onto adapters of mlx-lm and PEFT. No code in the files is run. Progress goes to
    standard error.
    """
    from mlxchat.interop import importers
    from mlxchat.interop.importers.adapter import concerns_adapter

    options = {"step": step, "tokenizer": tokenizer, "softcap": softcap}
    if concerns_adapter(path, onto, force, **options, with_optimizer=with_optimizer or None):
        assert onto is not None
        _import_adapter(path, onto, model_tag, conversational, force, json)
        return
    foreign = importers.open_model(path, step, tokenizer, softcap, conversational)
    home, name = Home.from_environment(), model_tag or foreign.name
    run = new_run(home, name, foreign.conversational, "model_tag")
    with Screen(stream=sys.stderr) as screen:
        for note in foreign.notes:
            screen.show(Noted(time.time(), note))
        report = _progress(screen, "reading")
        folder = importers.import_run(run, foreign, with_optimizer, report)
    _show_imported(foreign, run, folder, with_optimizer, json)


def _import_adapter(
    path: Path,
    onto: str,
    model_tag: str | None,
    conversational: bool | None,
    force: bool,
    json: bool,
) -> None:
    from mlxchat.interop.importers.adapter import import_adapter, open_adapter
    from mlxchat.model.adapter import adapted_layers

    home = Home.from_environment()
    base = catalog.find_model(home.stages, onto, None)
    foreign = open_adapter(path, base, conversational, force)
    run = new_run(home, model_tag or foreign.name, foreign.conversational, "model_tag")
    with Screen(stream=sys.stderr) as screen:
        for note in foreign.notes:
            screen.show(Noted(time.time(), note))
    folder = import_adapter(run, foreign)
    lora = foreign.adapter.lora
    if json:
        facts = {
            "path": str(folder),
            "model_tag": run.name,
            "program": foreign.program,
            "base": str(base),
            "rank": lora.rank,
            "scale": lora.scale,
            "dora": lora.dora,
            "parameters": sum(array.size for array in foreign.adapter.arrays.values()),
            "conversational": foreign.conversational,
        }
        say_json(facts)
        return
    from mlxchat.checkpoint.layout import read_config

    count = len(adapted_layers(read_config(base), lora))
    where = f"{foreign.base.run}, {_kind(foreign.conversational)}"
    say(f"{lora}, on {amount(count, 'matrices')} of {where}: {folder}")
    say(f"Talk to it: mlxchat chat --model-tag {run.name}")


def _kind(conversational: bool) -> str:
    return "trained on conversations" if conversational else "a base model"


def _show_imported(
    foreign: "Foreign", run: Path, folder: Path, with_optimizer: bool, json: bool
) -> None:
    from mlxchat.model.size import parameters

    config, count = foreign.config, sum(parameters(foreign.config).values())
    if json:
        facts = {
            "path": str(folder),
            "model_tag": run.name,
            "step": foreign.step,
            "program": foreign.program,
            "era": config.era,
            "parameters": count,
            "softcap": config.softcap,
            "conversational": foreign.conversational,
            "optimizer": with_optimizer,
        }
        say_json(facts)
        return
    kind = _kind(foreign.conversational)
    layers = amount(config.n_layer, "layers")
    say(f"{count:,} parameters in {layers}, nanochat's era {config.era!r}, {kind}: {folder}")
    say(f"Talk to it: mlxchat chat --model-tag {run.name}")


def export_command(
    to: Annotated[
        Program,
        typer.Option(help=f"The program to export for ({runnable_models()}).", show_default=False),
    ],
    model_tag: ModelTag = None,
    step: StepNumber = None,
    checkpoint: Checkpoint = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="New folder to write to. Default: one in the current folder, such as d12-mlx-lm.",
            **PATH,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            help="Data type of the matrices; not for gguf. Default: float32; bfloat16 "
            "for a quantized model."
        ),
    ] = None,
    quantize: Annotated[
        Literal[MlxBits, GgufType] | None,
        typer.Option(
            help="mlx-lm: quantize to this many bits. gguf: data type of the matrices. "
            "Default: f16.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Export a model for another program, together with its tokenizer and a model card.

    An adapter is merged into the model's weights, except for peft, which gets the adapter alone.
    Progress goes to standard error.
    """
    require_one_place(model_tag, step, checkpoint)
    from mlxchat import runtime
    from mlxchat.checkpoint import copies, layout
    from mlxchat.interop import exporters
    from mlxchat.quantize import quantize as quantize_in_place
    from mlxchat.train.stage import history_of

    home = Home.from_environment()
    source = catalog.locate(home.stages, model_tag, step, checkpoint)
    about = history_of(source, home)
    folder = (out or Path(f"{about.tag}-{to}")).absolute()
    exporters.require_possible(to, source, folder, quantize)
    quantized = layout.is_quantized(source)
    quantization = _quantization(to, source, quantize, quantized)
    precision = exporters.precision(to, dtype, quantization is not None or quantized)
    runtime.bound_buffer_cache()
    with Screen(stream=sys.stderr) as screen:
        screen.show(Noted(time.time(), f"The model: {model_in_words(source, checkpoint)}."))
        saved = layout.read_model(source, precision)
        for note in _changes(to, saved, quantized):
            screen.show(Noted(time.time(), note))
        if quantization:
            about = about.unmeasured()
            saved = saved if saved.base is None else copies.fused(saved)
            quantize_in_place(saved.model, quantization.formats(saved.model.config))
        nearest = None
        if not PROGRAMS[to].caps_logits:
            nearest = _nearest_temperatures(saved, source, home, screen)
        report = _progress(screen, "writing")
        written = exporters.write(
            to,
            folder,
            saved,
            about,
            precision,
            report,
            quantize=quantize,
            temperatures=nearest,
        )
    _show_exported(to, source, written, json)


def _changes(program: Program, saved: "SavedModel", quantized: bool) -> Iterator[str]:
    """Yield notes on how the exported model differs from the saved one."""
    if saved.base is not None and not PROGRAMS[program].takes_adapters:
        yield "The adapter is merged into the weights."
    if quantized and PROGRAMS[program].quantized == "dense":
        yield (
            "It is quantized: its weights are exported as ordinary numbers, not in the quantized "
            "format."
        )


def _show_exported(to: Program, source: Path, written: "Exported", json: bool) -> None:
    commands = written.usage.at(str(written.folder))
    if json:
        facts = {"program": to, "source": str(source), "path": str(written.folder)}
        say_json(facts | {"bytes": written.bytes, "commands": commands})
        return
    say(f"{amount(written.bytes, 'bytes')} in {written.folder}")
    say(written.usage.remark or "Run it there:")
    for line in commands:
        say_whole(f"  {line}")


def _progress(screen: Screen, task: str, unit: str = "bytes") -> Callable[[int, int], None]:
    """Return a function that shows how many of the bytes are done, or of another unit."""
    return lambda done, total: screen.show(Progressed(time.time(), task, done, total, unit))


def _quantization(
    program: Program, source: Path, quantize: str | None, quantized: bool
) -> Quantization | None:
    """Return how MLX is to quantize the model before it is written; None if it is not."""
    if quantize is None or PROGRAMS[program].quantized != "as it is":
        return None
    if quantized:
        raise CheckpointError(
            f"The model in {source} is already quantized.", "Leave out --quantize."
        )
    return Quantization(bits=int(quantize))


def _nearest_temperatures(
    saved: "SavedModel", source: Path, home: Home, screen: Screen
) -> "NearestTemperatures | None":
    """Measure them on the validation text of the model's run; None if that is unavailable."""
    from mlxchat.evaluate.temperature import nearest_temperatures
    from mlxchat.train.stage import validation_documents

    try:
        with closing(validation_documents(source, home)) as documents:
            report = _progress(screen, "measuring the temperature", "rows")
            return nearest_temperatures(saved, documents, report)
    except MlxchatError as error:
        text = f"The temperature is measured on the built-in corpus instead. {error.problem}"
        screen.show(Noted(time.time(), text))
        return None
