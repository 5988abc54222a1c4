"""The tokenizer of a model that another program wrote."""

from collections.abc import Sequence
from pathlib import Path

from mlxchat.checkpoint.files import damaged, read_json
from mlxchat.ckpt import nanochat, tokenizer_pickle
from mlxchat.errors import MlxchatError
from mlxchat.tokenizer import files
from mlxchat.tokenizer.bpe import FILE, Tokenizer, vocabulary_fault

FILES = (FILE, nanochat.TOKENIZER)


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
    raise MlxchatError(
        f"There is no tokenizer in {listed}.",
        f"Say where the model's {nanochat.TOKENIZER} or {FILE} is: --tokenizer FILE",
    )


def _read(path: Path) -> Tokenizer:
    if path.suffix != ".json":
        return tokenizer_pickle.read(path)
    try:
        ranks, pattern, special = files.from_json(read_json(path))
        if fault := vocabulary_fault(ranks, special):
            raise damaged(path, f"it {fault}")
        return Tokenizer(ranks, pattern, special)
    except ValueError as error:
        raise damaged(path, error) from error
