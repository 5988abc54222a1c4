"""The programs that a model can be exported for, one row each.

A new format is one module in `interop/exporters` (see `exporters.Exporter`) and one row here.
Nothing heavy is imported, so that `mlxchat export --help` can be made from the table.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Program = Literal["mlx-lm", "transformers", "nanochat", "gguf", "peft"]
MlxBits = Literal["2", "3", "4", "5", "6", "8"]  # of a weight
GgufType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


@dataclass(frozen=True)
class ExportFormat:
    """The properties of a program that models are exported for.

    Attributes:
        program: the program's name, as in `mlxchat export --to`.
        module: the module in `interop/exporters` that writes the files.
        library: the hub's name for the program, `library_name` in a model card.
        models: which models the program runs, as a phrase for the help text.
        runs_in: the programs that read the format, for headings, where it has another name.
        quantizations: the values of `quantize` that an export takes.
        quantized: what becomes of a model that MLX has quantized: its weights are exported as they
            are, or with their values in a dense type, or the model is refused.
        encodes_literally: whether it takes a special token in a message for plain text.
        takes_adapters: whether it gets the adapter on a model, without the model. Others get the
            model with the adapter as part of its weights.
        caps_logits: whether it bounds the logits as the network does, by the soft cap.
    """

    program: Program
    module: str
    library: str
    models: str
    runs_in: str = ""
    quantizations: tuple[str, ...] = ()
    quantized: Literal["as it is", "dense", "refused"] = "refused"
    encodes_literally: bool = False
    takes_adapters: bool = False
    caps_logits: bool = True

    @property
    def title(self) -> str:
        """The name of what runs the model, for a heading."""
        return self.runs_in or self.program


PROGRAMS: dict[Program, ExportFormat] = {
    row.program: row
    for row in (
        ExportFormat(
            "mlx-lm",
            "mlx_lm",
            "mlx",
            "all models",
            quantizations=get_args(MlxBits),
            quantized="as it is",
        ),
        ExportFormat("transformers", "transformers", "transformers", "classic models"),
        ExportFormat(
            "nanochat",
            "nanochat",
            "pytorch",
            "all models, at the commit that is printed",
            encodes_literally=True,
        ),
        ExportFormat(
            "gguf",
            "gguf",
            "gguf",
            "classic models, for llama.cpp, Ollama and LM Studio",
            runs_in="llama.cpp, Ollama and LM Studio",
            quantizations=get_args(GgufType),
            quantized="dense",
            caps_logits=False,
        ),
        ExportFormat("peft", "peft", "peft", "adapters of classic models", takes_adapters=True),
    )
}


def runnable_models() -> str:
    """Say which models each program runs, for the help text of the command.

    >>> print(runnable_models())
    mlx-lm: all models; transformers: classic models; nanochat: all models, at the commit that is printed; gguf: classic models, for llama.cpp, Ollama and LM Studio; peft: adapters of classic models
    """  # noqa: E501
    return "; ".join(f"{row.program}: {row.models}" for row in PROGRAMS.values())
