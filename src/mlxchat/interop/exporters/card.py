"""A model card: what a model is, what it learnt from, how good it is, how it is run. Pure.

Safetensors in files of a bounded size, with an index where there are several.

Names of the files and form of the index are Hugging Face's.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlxchat import __version__
from mlxchat.checkpoint.history import History, Training
from mlxchat.checkpoint.layout import INDEX, MODEL, SavedModel
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.quantized import formats_of
from mlxchat.model.size import parameters
from mlxchat.runtime import mx

FILE = "README.md"
LIBRARIES = {"mlx-lm": "mlx", "transformers": "transformers", "nanochat": "pytorch"}
FOLDER = "{folder}"  # in commands: where the model is, quoted as their language has it
_SPECIAL = (
    "What looks like a special token in a message, such as `<|user_end|>`, is one there; mlxchat "
    "takes it for plain text."
)


class Usage(NamedTuple):
    """How a program runs the model."""

    language: str  # of the commands
    commands: tuple[str, ...]
    remark: str  # what else is to be known; empty where nothing is

    def at(self, place: str) -> list[str]:
        """The commands for a model that is there."""
        quoted = shlex.quote(place)
        if self.language == "python":
            quoted = json.dumps(place, ensure_ascii=False)
        return [command.replace(FOLDER, quoted) for command in self.commands]


def card(program: str, saved: SavedModel, history: History, usage: Usage) -> str:
    """The text of a README.md in the form of the hub's.

    Args:
        program: that it was written for.
    """
    sections = [
        "\n".join(_front(program)),
        f"# {history.tag}",
        _what(saved),
        "\n".join(_figures(saved, history)),
        f"## With {program}",
        "\n".join([f"```{usage.language}", *usage.at("DIR"), "```"]),
        "`DIR` is this directory.",
        usage.remark,
        _SPECIAL if saved.conversational and program != "nanochat" else "",
        "## Origin",
        _origin(history),
        "## Licence",
        _licence(history),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _front(program: str) -> Iterator[str]:
    yield "---"
    yield f"library_name: {LIBRARIES[program]}"
    yield "pipeline_tag: text-generation"
    yield "tags: [nanochat, mlxchat]"
    yield "---"


def _what(saved: SavedModel) -> str:
    config = saved.model.config
    kind = (
        "It was trained on conversations and answers."
        if saved.conversational
        else "It is a base model, which continues a text; it was not trained to answer."
    )
    return (
        f"A GPT with the network of [nanochat](https://github.com/karpathy/nanochat), of the era "
        f"{config.era!r} ({_described(config)}). {kind}"
    )


def _described(config: GPTConfig) -> str:
    parts = ["rotary embeddings", "normalised queries and keys", "squared ReLU"]
    if config.traits.lambdas:
        parts.append("learnt weights of the residual stream")
    if config.traits.value_embeddings:
        parts.append("value embeddings")
    if "S" in config.window_pattern:
        parts.append("windowed attention")
    if config.traits.smear:
        parts.append("smear and backout")
    return ", ".join(parts)


def _figures(saved: SavedModel, history: History) -> Iterator[str]:
    config = saved.model.config
    yield "| | |"
    yield "|---|---|"
    yield f"| parameters | {sum(parameters(config).values()):,} |"
    yield (
        f"| network | {config.n_layer} layers of width {config.n_embd}, {config.n_head} heads, "
        f"{config.n_kv_head} of keys and values |"
    )
    yield f"| context | {config.sequence_len:,} tokens |"
    yield f"| vocabulary | {config.vocab_size:,} tokens |"
    if formats := formats_of(saved.model):
        yield f"| quantized | {', '.join(sorted({str(f) for f in formats.values()}))} |"
    yield f"| step | {history.step:,} |"
    for training in history.trainings:
        yield f"| {training.stage} | {_learnt(training)} |"
    if history.bits_per_byte is not None:
        yield f"| validation | {history.bits_per_byte:.4f} bits per byte |"


def _learnt(training: Training) -> str:
    read = "" if training.tokens is None else f"{training.tokens:,} tokens"
    data = ", ".join(training.data)
    return " of ".join(filter(None, [read, data])) or "not known"


def _origin(history: History) -> str:
    told = [f"Written by mlxchat {__version__}."]
    if imported := history.origin:
        of = f"step {imported.step} of a run" if imported.step else "a model"
        told.append(f"It was imported: {of} of {imported.program}.")
    for training in history.trainings:
        after = f", which began with `{training.began_with}`" if training.began_with else ""
        told.append(
            f"mlxchat trained it: step {training.step} of the {training.stage} run "
            f"`{training.run}`{after}."
        )
    return " ".join(told)


def _licence(history: History) -> str:
    told = [
        "Whoever publishes this model says under which licence; the licences of its data may bind "
        "them."
    ]
    data = dict.fromkeys(each for training in history.trainings for each in training.data)
    if data:
        told.append(f"It learnt from {'; '.join(data)}.")
    if history.unknown:
        told.append(f"What {history.unknown} learnt from is not known here.")
    return " ".join(told)


MOST_BYTES = 5 * 10**9  # what the hub's programs write in one file

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Shards:
    """How tensors are written.

    Args:
        limit: bytes of a file, unless one tensor has more.
        report: is told the bytes written, and of all.
    """

    limit: int
    report: Report

    def write(self, folder: Path, tensors: Mapping[str, mx.array], form: str) -> None:
        """Write tensors by name.

        Args:
            form: what the files' metadata call it, ``mlx`` or ``pt``.

        Raises:
            OSError, RuntimeError: they cannot be written.
        """
        sizes = {name: array.nbytes for name, array in tensors.items()}
        files = list(self._files(sizes))
        total, done, places = sum(sizes.values()), 0, {}
        for number, names in enumerate(files, 1):
            file = MODEL
            if len(files) > 1:
                file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            shard = {name: tensors[name] for name in names}
            mx.save_safetensors(str(folder / file), shard, {"format": form})
            places.update(dict.fromkeys(names, file))
            done += sum(sizes[name] for name in names)
            self.report(done, total)
        if len(files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": places}
            (folder / INDEX).write_text(json.dumps(index, indent=2), "utf-8")

    def _files(self, sizes: Mapping[str, int]) -> Iterator[list[str]]:
        names, held = list[str](), 0
        for name, size in sizes.items():
            if names and held + size > self.limit:
                yield names
                names, held = [], 0
            names.append(name)
            held += size
        yield names


def cast_matrices(model: GPT, dtype: mx.Dtype) -> None:
    """Hold a model's matrices in a dtype, the scales of quantized ones among them; vectors and
    scalars stay as they are.

    One after another: the old and the new model are never held together.
    """
    parameters = model.named_parameters()
    for name in list(parameters):
        array = parameters.pop(name)
        if array.ndim > 1 and mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(dtype)
            mx.eval(array)
            model.load_weights([(name, array)], strict=False)
            mx.clear_cache()  # else MLX keeps what the old one had
