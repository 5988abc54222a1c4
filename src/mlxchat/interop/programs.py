"""The programs that a model can be exported for, one row each.

A new format is one module in `interop/exporters` (see `exporters.Exporter`) and one row here.
Nothing heavy is imported, so that `mlxchat export --help` can be made from the table.
"""

from dataclasses import dataclass
from typing import Literal

Program = Literal["mlx-lm", "transformers", "nanochat", "peft"]


@dataclass(frozen=True)
class ExportFormat:
    """The properties of a program that models are exported for.

    Attributes:
        program: the program's name, as in `mlxchat export --to`.
        module: the module in `interop/exporters` that writes the files.
        library: the hub's name for the program, `library_name` in a model card.
        models: which models the program runs, as a phrase for the help text.
        reads_quantized: whether it reads the weights of a model that is quantized by MLX.
        encodes_literally: whether it takes a special token in a message for plain text.
        takes_adapters: whether it gets the adapter on a model, without the model. Others get the
            model with the adapter as part of its weights.
    """

    program: Program
    module: str
    library: str
    models: str
    reads_quantized: bool = False
    encodes_literally: bool = False
    takes_adapters: bool = False


PROGRAMS: dict[Program, ExportFormat] = {
    row.program: row
    for row in (
        ExportFormat("mlx-lm", "mlx_lm", "mlx", "all models", reads_quantized=True),
        ExportFormat("transformers", "transformers", "transformers", "classic models"),
        ExportFormat(
            "nanochat",
            "nanochat",
            "pytorch",
            "all models, at the commit that is printed",
            encodes_literally=True,
        ),
        ExportFormat("peft", "peft", "peft", "adapters of classic models", takes_adapters=True),
    )
}


def runnable_models() -> str:
    """Say which models each program runs, for the help text of the command.

    >>> print(runnable_models())
    mlx-lm: all models; transformers: classic models; nanochat: all models, at the commit that is printed; peft: adapters of classic models
    """  # noqa: E501
    return "; ".join(f"{row.program}: {row.models}" for row in PROGRAMS.values())
