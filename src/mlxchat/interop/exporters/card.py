"""A model card: the network, its training data, its quality, and the commands that run it. Pure."""

import json
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from mlxchat import __version__
from mlxchat.checkpoint.history import History, Training
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.checkpoint.task_results import best_known
from mlxchat.counts import counted, ends_of
from mlxchat.interop.programs import ExportFormat
from mlxchat.model.config import GPTConfig
from mlxchat.model.quantized import formats_of
from mlxchat.model.size import parameters

CARD_FILE = "README.md"
FOLDER = "{folder}"  # in commands, stands for the model's folder, quoted as in their language
_SPECIAL = (
    "If a message contains the text of a special token, such as `<|user_end|>`, that program "
    "treats it as the special token; mlxchat treats it as plain text."
)


class Usage(NamedTuple):
    """The commands that run a model in a program.

    Attributes:
        language: the language of the commands, ``bash`` or ``python``.
        commands: lines in which `FOLDER` stands for the model's folder.
        remark: a note for the user, or empty.
    """

    language: str
    commands: tuple[str, ...]
    remark: str = ""

    def at(self, place: str) -> list[str]:
        """Return the commands for a model in the folder ``place``."""
        quoted = shlex.quote(place)
        if self.language == "python":
            quoted = json.dumps(place, ensure_ascii=False)
        return [command.replace(FOLDER, quoted) for command in self.commands]


def card(target: ExportFormat, saved: SavedModel, history: History, usage: Usage) -> str:
    """Return the text of a README.md in the hub's form, for a model exported to a program."""
    sections = [
        "\n".join(_front(target.library)),
        f"# {history.tag}",
        _what(saved),
        "\n".join(_figures(saved, history)),
        f"## With {target.title}",
        "\n".join([f"```{usage.language}", *usage.at("DIR"), "```"]),
        "`DIR` is this directory.",
        usage.remark,
        _SPECIAL if saved.conversational and not target.encodes_literally else "",
        "## Origin",
        _origin(history),
        "## Licence",
        _licence(history),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _front(library: str) -> Iterator[str]:
    yield "---"
    yield f"library_name: {library}"
    yield "pipeline_tag: text-generation"
    yield "tags: [nanochat, mlxchat]"
    yield "---"


def _what(saved: SavedModel) -> str:
    config = saved.model.config
    kind = (
        "It was fine-tuned on conversations and answers messages."
        if saved.conversational
        else "It is a base model: it continues text, and was not trained to answer."
    )
    return (
        f"A GPT with the architecture of [nanochat](https://github.com/karpathy/nanochat), era "
        f"{config.era!r} ({_described(config)}). {kind}"
    )


def _described(config: GPTConfig) -> str:
    parts = ["rotary embeddings", "normalised queries and keys", "squared ReLU"]
    if config.traits.lambdas:
        parts.append("learned residual weights")
    if config.traits.value_embeddings:
        parts.append("value embeddings")
    if "S" in config.window_pattern:
        parts.append("windowed attention")
    if config.traits.smear_and_backout:
        parts.append("smear and backout")
    return ", ".join(parts)


def _figures(saved: SavedModel, history: History) -> Iterator[str]:
    config = saved.model.config
    yield "| | |"
    yield "|---|---|"
    yield f"| parameters | {sum(parameters(config).values()):,} |"
    yield (
        f"| network | {counted(config.n_layer, 'layers')} of width {config.n_embd}, "
        f"{counted(config.n_head, 'heads')}, "
        f"{counted(config.n_kv_head, 'key/value heads')} |"
    )
    yield f"| context | {config.sequence_len:,} tokens |"
    yield f"| vocabulary | {config.vocab_size:,} tokens |"
    if formats := formats_of(saved.model):
        yield f"| quantized | {', '.join(sorted({str(f) for f in formats.values()}))} |"
    if saved.base is not None and saved.model.adapter is not None:
        yield f"| adapter | {saved.model.adapter}, on `{saved.base.run}` |"
    yield f"| step | {history.step:,} |"
    for training in history.trainings:
        yield f"| {training.stage} | {_trained_on(training)} |"
    if history.bits_per_byte is not None:
        yield f"| validation | {history.bits_per_byte:.4f} bits per byte |"
    if history.core is not None:
        step, core, error, most = history.core
        of = f"at step {step:,}, at most {counted(most, 'examples')} per task"
        low, high = ends_of(core, error)
        yield f"| CORE | {core:.4f} {of} (95% interval: {low:.4f} to {high:.4f}) |"
    for result in best_known(history.results):
        part = "" if result.max_problems is None else "the first "
        right = f"{result.share:.1%} of {part}{counted(result.asked, 'problems')} right"
        interval = f"95% interval: {result.low:.1%} to {result.high:.1%}"
        yield f"| {result.task} | {right} ({interval}) |"


def _trained_on(training: Training) -> str:
    read = "" if training.tokens is None else counted(training.tokens, "tokens")
    data = ", ".join(training.data)
    return " of ".join(filter(None, [read, data])) or "unknown"


def _origin(history: History) -> str:
    sentences = [f"Written by mlxchat {__version__}."]
    if imported := history.origin:
        what = f"step {imported.step} of a run" if imported.step else "a model"
        sentences.append(f"It was imported from {imported.program}: {what}.")
    for training in history.trainings:
        start = f", which started from `{training.began_with}`" if training.began_with else ""
        sentences.append(
            f"mlxchat trained it: step {training.step} of the {training.stage} run "
            f"`{training.run}`{start}."
        )
    return " ".join(sentences)


def _licence(history: History) -> str:
    sentences = [
        "Before you publish this model, choose a licence for it. The licences of its training "
        "data may limit your choice."
    ]
    data = dict.fromkeys(each for training in history.trainings for each in training.data)
    if data:
        sentences.append(f"It was trained on {'; '.join(data)}.")
    if history.unknown:
        sentences.append(f"The training data of {history.unknown} is unknown.")
    return " ".join(sentences)
