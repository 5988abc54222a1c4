"""The commands that take models over from other programs, and write them for others."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlxchat.cli.options import Checkpoint, Json, ModelTag, SavedStep, require_one_place
from mlxchat.interop.programs import Program, runnable_models


def import_model(
    path: Annotated[
        Path, typer.Argument(help="A checkpoint's directory or file.", show_default=False)
    ],
    step: Annotated[
        int | None,
        typer.Option(min=0, help="Which of its steps. Default: the newest.", show_default=False),
    ] = None,
    model_tag: Annotated[
        str | None,
        typer.Option(help="Name of the new run. Default: the folder's.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Its tokenizer.pkl or tokenizer.json. Default: the one beside it, or where "
            "nanochat has it.",
            show_default=False,
        ),
    ] = None,
    softcap: Annotated[
        float | None,
        typer.Option(min=1, max=64, help="Bound of the logits. Default: the era's."),
    ] = None,
    conversational: Annotated[
        bool | None,
        typer.Option(
            "--chat/--base",
            help="Whether it was trained on conversations. Default: as the folder says.",
            show_default=False,
        ),
    ] = None,
    with_optimizer: Annotated[
        bool,
        typer.Option("--with-optimizer", help="Its optimizer's state too, for sft to go on from."),
    ] = False,
    json: Json = False,
) -> None:
    """Take over a model that was trained elsewhere, as a run.

    From nanochat (model_*.pt) of any of its eras, the original mlxchat
    (model_*.npz), transformers (NanoChatForCausalLM) or mlx-lm (nanochat).
    Nothing in the files is run.
    """
    from mlxchat.cli import importing

    importing.import_model(
        path, step, model_tag, tokenizer, softcap, conversational, with_optimizer, json
    )


def export(
    to: Annotated[
        Program,
        typer.Option(
            help=f"The program that will run it ({runnable_models()}).", show_default=False
        ),
    ],
    model_tag: ModelTag = None,
    step: SavedStep = None,
    checkpoint: Checkpoint = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder. Default: one here, such as d12-mlx-lm."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the matrices. Default: float32; of a quantized model bfloat16."),
    ] = None,
    quantize: Annotated[
        Literal["2", "3", "4", "5", "6", "8"] | None,
        typer.Option(help="Bits of a weight, to quantize it; mlx-lm only.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Export a model for another program, with its tokenizer and a model card."""
    from mlxchat.cli import exporting

    require_one_place(model_tag, step, checkpoint)
    bits = int(quantize) if quantize else None
    exporting.export(to, model_tag, step, checkpoint, out, dtype, bits, json)
