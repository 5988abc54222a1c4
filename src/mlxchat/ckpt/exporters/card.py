"""A model card: what a model is, what it learnt from, how good it is, how it is run. Pure."""

from collections.abc import Iterator
from typing import NamedTuple

from mlxchat import __version__
from mlxchat.ckpt.exporters.history import History
from mlxchat.ckpt.layout import SavedModel
from mlxchat.model.arithmetic import parameters
from mlxchat.model.config import GPTConfig
from mlxchat.model.quantized import formats_of

FILE = "README.md"
LIBRARIES = {"mlx-lm": "mlx", "transformers": "transformers", "nanochat": "pytorch"}


FOLDER = "{folder}"  # in commands: where the model is


class Usage(NamedTuple):
    """How a program runs the model."""

    language: str  # of the commands
    commands: tuple[str, ...]
    remark: str  # what else is to be known; empty where nothing is

    def at(self, place: str) -> list[str]:
        """The commands for a model that is there."""
        return [command.replace(FOLDER, place) for command in self.commands]


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
    if history.data:
        yield f"| data | {', '.join(history.data)} |"
    if history.tokens is not None:
        yield f"| trained on | {history.tokens:,} tokens in its {history.stage} |"
    if history.bits_per_byte is not None:
        yield f"| validation | {history.bits_per_byte:.4f} bits per byte |"


def _origin(history: History) -> str:
    made = f"Written by mlxchat {__version__}, which"
    if history.origin is not None:
        return f"{made} imported step {history.origin.step} of a run of {history.origin.program}."
    trained = "trained it" if history.stage else "read it"
    return f"{made} {trained}: step {history.step} of the run `{history.tag}`."


def _licence(history: History) -> str:
    data = f" It learnt from {', '.join(history.data)}." if history.data else ""
    return (
        "Whoever publishes this model says under which licence; the licence of its data may bind "
        f"them.{data}"
    )
