"""A model that another program wrote: what it is, and how its tensors are read.

The tokenizer of a model that another program wrote.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from mlxchat.checkpoint.files import damaged, read_json
from mlxchat.errors import CheckpointError, NotFound
from mlxchat.interop import nanochat_files
from mlxchat.model.config import CLASSIC, VOCABULARY_MULTIPLE, GPTConfig, era_of
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.tokenizer import files
from mlxchat.tokenizer.bpe import FILE, Tokenizer, vocabulary_fault

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
LONGEST_NAME = 200
FLOATS = (mx.float32, mx.bfloat16, mx.float16)  # all of their values are float32's too

_ANOTHER = "Give a model of nanochat's main branch, all of its tensors and no others."


class Tensor(Protocol):
    """A tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that `read` returns."""

    @property
    def dtype(self) -> mx.Dtype:
        """Of its elements."""

    def read(self) -> mx.array:
        """Its elements."""


@dataclass(frozen=True)
class Foreign:
    """A model that another program wrote.

    Attributes:
        path: what it is read from.
        program: that wrote it.
        step: of its training, 0 where that isn't known.
        name: what to call it.
        tensors: by nanochat's names; those of embedding and head with rows for padding maybe.
        conversational: trained on conversations.
        bits_per_byte: of validation, as that program measured it; None where it doesn't say.
        notes: what to tell the user.
    """

    path: Path
    program: str
    step: int
    name: str
    config: GPTConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer
    conversational: bool
    bits_per_byte: float | None = None
    notes: tuple[str, ...] = ()


def network(foreign: Foreign, report: Callable[[int, int], None] = lambda done, of: None) -> GPT:
    """The model in float32: what takes its memory, and for a moment its largest tensor again.

    Args:
        report: is told the bytes of tensors read, and of all.

    Raises:
        MlxchatError: a tensor is damaged.
    """
    model, tensors = GPT(foreign.config), dict(foreign.tensors)
    total = sum(prod(tensor.shape) * tensor.dtype.size for tensor in tensors.values())
    done, weights = 0, []
    while tensors:
        name = next(iter(tensors))
        tensor = tensors.pop(name)
        array = tensor.read()
        done += array.nbytes
        if name in (EMBEDDING, HEAD):
            array = array[: foreign.config.padded_vocab_size]
        array = mx.contiguous(array.astype(mx.float32))
        mx.eval(array)
        weights.append((name, array))
        del array, tensor
        mx.clear_cache()
        report(done, total)
    model.load_weights(weights)
    return model


def configure(
    path: Path,
    settings: Path,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    softcap: float | None,
) -> GPTConfig:
    """The shape of a model, of the era that its tensors are of; they are all that it needs.

    Args:
        path: of the tensors.
        settings: of the file that says the fields.
        fields: nanochat's.
        softcap: bound of the logits; None for the era's first.

    Raises:
        MlxchatError: a field is wrong, or not of that model; a tensor is missing, unexpected, or of
            another shape or of no floating-point dtype. Each is named.
    """
    for name in tensors:
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise damaged(path, f"a tensor is called {name[:99]!a}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    era = era_of(shapes)
    chosen = {} if softcap is None else {"softcap": softcap}
    try:
        config = GPTConfig(
            **{"window_pattern": "L", **fields},
            arch=era.arch,
            era=era.name,
            vocab_multiple=1 if era == CLASSIC else VOCABULARY_MULTIPLE,
            **chosen,
        )
    except ValidationError as error:
        raise damaged(settings, error) from error
    rows, width = (*shapes.get(EMBEDDING, ()), 0, 0)[:2]
    if config.n_layer > len(shapes) or config.vocab_size > rows or config.n_embd != width:
        raise damaged(  # before a network is made that may be endless
            settings,
            f"{config.n_layer} layers, a vocabulary of {config.vocab_size} and a width of "
            f"{config.n_embd}; there are {len(shapes)} tensors, {EMBEDDING} of {(rows, width)}",
        )
    _check(path, config, tensors)
    return config


def require_vocabulary(path: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """The tokenizer has to be the model's, as far as can be seen.

    Raises:
        MlxchatError: it has another number of tokens.
    """
    if tokenizer.vocab_size != vocab_size:
        raise CheckpointError(
            f"The tokenizer has {tokenizer.vocab_size:,} tokens, the model in {path} "
            f"{vocab_size:,}.",
            "Give the one that it was trained with: `tokenizer=FILE`",
        )


def _check(path: Path, config: GPTConfig, tensors: Mapping[str, Tensor]) -> None:
    """Names, shapes and dtypes; classic tables may have rows for padding, which are never used."""
    expected = {name: array.shape for name, array in GPT(config).named_parameters().items()}
    faults = [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    faults += [f"{name} is unexpected" for name in sorted(tensors.keys() - expected.keys())]
    padded = -(-config.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    for name in sorted(expected.keys() & tensors.keys()):
        found, dtype = tensors[name].shape, tensors[name].dtype
        shapes = [expected[name]]
        if name in (EMBEDDING, HEAD):
            shapes.append((padded, config.n_embd))
        if tuple(found) not in shapes:
            faults.append(f"{name} has shape {tuple(found)}, not {expected[name]}")
        if dtype not in FLOATS:
            faults.append(f"{name} is of {dtype}".replace("mlx.core.", ""))
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(f"{path}: {'; '.join(faults[:3])}{more}.", _ANOTHER)


FILES = (FILE, nanochat_files.TOKENIZER)


def find(given: Path | None, folders: Sequence[Path]) -> Tokenizer:
    """The tokenizer that is given, or else the first one that lies in the folders.

    Args:
        given: a pickle as tokenizer.pkl is or a .json as tokenizer.json is, or a folder with one.

    Raises:
        MlxchatError: there is none, or it is not one of nanochat's.
    """
    if given is not None and given.is_file():
        return _read(given)
    places = folders if given is None else [given]
    for folder in places:
        for name in FILES:
            if (folder / name).exists():
                return _read(folder / name)
    listed = " or ".join(str(folder) for folder in places)
    raise NotFound(
        f"There is no tokenizer in {listed}.",
        f"Say where the model's {nanochat_files.TOKENIZER} or {FILE} is: `tokenizer=FILE`",
    )


def _read(path: Path) -> Tokenizer:
    if path.suffix != ".json":
        return nanochat_files.read(path)
    try:
        ranks, pattern, special = files.from_json(read_json(path))
        if fault := vocabulary_fault(ranks, special):
            raise damaged(path, f"it {fault}")
        return Tokenizer(ranks, pattern, special)
    except ValueError as error:
        raise damaged(path, error) from error
