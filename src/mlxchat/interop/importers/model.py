"""A model that another program wrote: its shape, its tensors and its tokenizer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from mlxchat.checkpoint.files import damaged, read_json
from mlxchat.counts import counted
from mlxchat.errors import CheckpointError, ConfigError, NotFound
from mlxchat.interop import nanochat_files
from mlxchat.model.config import (
    CLASSIC,
    LARGEST_SOFTCAP,
    VOCABULARY_MULTIPLE,
    GPTConfig,
    era_of,
)
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.tokenizer import files
from mlxchat.tokenizer.bpe import TOKENIZER_FILE, Tokenizer, vocabulary_fault

EMBEDDING_WEIGHT, HEAD_WEIGHT = "transformer.wte.weight", "lm_head.weight"
LONGEST_TENSOR_NAME = 200
_WRAPPERS = {  # modules of torch around others: compiled, on several GPUs, recomputed
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}
_ROTARY_TABLES = {"inv_freq", "original_inv_freq"}  # of transformers; computed here
FLOATS = (mx.float32, mx.bfloat16, mx.float16)  # float32 holds all of their values

_ANOTHER = "Use a model from nanochat's main branch, with exactly its tensors."


class Tensor(Protocol):
    """A tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that `read` returns."""

    @property
    def dtype(self) -> mx.Dtype:
        """The type of its elements."""

    def read(self) -> mx.array:
        """Read its elements."""


@dataclass(frozen=True)
class Foreign:
    """A model that another program wrote.

    Attributes:
        path: the file or folder it is read from.
        program: the program that wrote it.
        step: the step of its training, 0 if that is unknown.
        name: a name for the run.
        tensors: the tensors by nanochat's names; embedding and head may have rows of padding.
        conversational: whether it was trained on conversations.
        bits_per_byte: its validation loss, if that program recorded it.
        notes: lines to show the user.
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


def plain_tensors(path: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's parameters by their names in the model itself.

    The names of modules around others are left out, and so are the tables of the rotary embedding.

    Args:
        path: the file or folder of the tensors.
        stored: the tensors by the names in it.

    Raises:
        CheckpointError: two tensors have the same name.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        if parts[-2:-1] == ["rotary_emb"] and parts[-1] in _ROTARY_TABLES:
            continue
        plain = ".".join(parts)
        if plain in tensors:
            raise damaged(path, f"{plain!a:.99} appears twice")
        tensors[plain] = tensor
    return tensors


def read_network(
    foreign: Foreign, report: Callable[[int, int], None] = lambda done, of: None
) -> GPT:
    """Read the model in float32.

    Takes the memory of the model, and for a moment that of its largest tensor once more.

    Args:
        foreign: the model.
        report: called with the bytes of the tensors read so far, and of all.

    Raises:
        CheckpointError: a tensor is damaged.
    """
    model, tensors = GPT(foreign.config), dict(foreign.tensors)
    total = sum(prod(tensor.shape) * tensor.dtype.size for tensor in tensors.values())
    done, weights = 0, []
    while tensors:
        name = next(iter(tensors))
        tensor = tensors.pop(name)
        array = tensor.read()
        done += array.nbytes
        if name in (EMBEDDING_WEIGHT, HEAD_WEIGHT):
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
    """Return a model's configuration, in the era of its tensors, and check that all are there.

    Args:
        path: the file or folder of the tensors.
        settings: the file of the fields.
        fields: nanochat's fields of its configuration.
        tensors: the tensors by name.
        softcap: the bound of the logits; None for the first that the era had.

    Raises:
        ConfigError: ``softcap`` cannot be one.
        CheckpointError: a field is wrong or contradicts the tensors; a tensor is missing,
            unexpected, of another shape or not floating-point. Each is named.
    """
    if softcap is not None and not 0 < softcap <= LARGEST_SOFTCAP:
        raise ConfigError(
            f"`softcap={softcap:g}` cannot bound the logits.",
            f"Use a number above 0 and up to {LARGEST_SOFTCAP:g}.",
        )
    for name in tensors:
        if len(name) > LONGEST_TENSOR_NAME or not name.isprintable():
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
    rows, width = (*shapes.get(EMBEDDING_WEIGHT, ()), 0, 0)[:2]
    if config.n_layer > len(shapes) or config.vocab_size > rows or config.n_embd != width:
        raise damaged(  # before building a network that may be huge
            settings,
            f"{counted(config.n_layer, 'layers')}, a vocabulary of {config.vocab_size} and a width "
            f"of {config.n_embd}; there are {len(shapes)} tensors, {EMBEDDING_WEIGHT} has shape "
            f"{(rows, width)}",
        )
    _check(path, config, tensors)
    return config


def require_vocabulary(path: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Check that a tokenizer has as many tokens as the model.

    Raises:
        CheckpointError: it has not.
    """
    if tokenizer.vocab_size != vocab_size:
        raise CheckpointError(
            f"The tokenizer has {tokenizer.vocab_size:,} tokens, but the model in {path} has "
            f"{vocab_size:,}.",
            "Name the tokenizer it was trained with: `tokenizer=FILE`",
        )


def _check(path: Path, config: GPTConfig, tensors: Mapping[str, Tensor]) -> None:
    """Check names, shapes and dtypes; embedding and head may have unused rows of padding."""
    expected = {name: array.shape for name, array in GPT(config).named_parameters().items()}
    faults = [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    faults += [f"{name} is unexpected" for name in sorted(tensors.keys() - expected.keys())]
    padded = -(-config.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    for name in sorted(expected.keys() & tensors.keys()):
        found, dtype = tensors[name].shape, tensors[name].dtype
        shapes = [expected[name]]
        if name in (EMBEDDING_WEIGHT, HEAD_WEIGHT):
            shapes.append((padded, config.n_embd))
        if tuple(found) not in shapes:
            faults.append(f"{name} has shape {tuple(found)}, not {expected[name]}")
        if dtype not in FLOATS:
            faults.append(f"{name} is of {dtype}".replace("mlx.core.", ""))
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(f"{path}: {'; '.join(faults[:3])}{more}.", _ANOTHER)


TOKENIZER_FILES = (TOKENIZER_FILE, nanochat_files.TOKENIZER)


def find_tokenizer(given: Path | None, folders: Sequence[Path]) -> Tokenizer:
    """Read the tokenizer that is given, or the first one in the folders.

    Args:
        given: a file like tokenizer.pkl or tokenizer.json, or a folder with one; None to search.
        folders: the folders to search.

    Raises:
        NotFound: there is no tokenizer.
        CheckpointError: it is not one of nanochat's.
    """
    if given is not None and given.is_file():
        return _read(given)
    places = folders if given is None else [given]
    for folder in places:
        for name in TOKENIZER_FILES:
            if (folder / name).exists():
                return _read(folder / name)
    listed = " or ".join(str(folder) for folder in places)
    raise NotFound(
        f"There is no tokenizer in {listed}.",
        f"Name the model's {nanochat_files.TOKENIZER} or {TOKENIZER_FILE}: `tokenizer=FILE`",
    )


def _read(path: Path) -> Tokenizer:
    if path.suffix != ".json":
        return nanochat_files.read_tokenizer(path)
    try:
        ranks, pattern, special = files.tokenizer_from_json(read_json(path))
        if fault := vocabulary_fault(ranks, special):
            raise damaged(path, f"it {fault}")
        return Tokenizer(ranks, pattern, special)
    except ValueError as error:
        raise damaged(path, error) from error
