"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ModelTag = Annotated[
    str | None,
    typer.Option(help="Name of the run. Default: the one saved last.", show_default=False),
]
SavedStep = Annotated[
    int | None, typer.Option(help="Saved step. Default: the newest.", show_default=False)
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="A model's directory, wherever it is.", show_default=False)
]


def require_one_place(tag: str | None, step: int | None, checkpoint: Path | None) -> None:
    """A model is named by its run and step, or by its directory.

    Raises:
        typer.BadParameter: both are given.
    """
    if checkpoint and (tag or step is not None):
        raise typer.BadParameter("--checkpoint does not go with --model-tag or --step.")
