"""What a run reads: its dataset, and its tokenizer, trained where there is none."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlxchat.data.documents import BuiltinDocuments, Documents, ShardDocuments
from mlxchat.data.hub import Hub
from mlxchat.data.shards import DATASETS, LocalShards
from mlxchat.data.streaming import StreamingShards
from mlxchat.data.tokenizer import Tokenizer, train
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry import Event, Progressed
from mlxchat.train.recipe import DataConfig

MAX_CHARACTERS = 2_000_000_000  # nanochat's
DOCUMENT_CHARACTERS = 10_000  # of one document at most; nanochat's
TASK = "reading text for the tokenizer"


def open_documents(config: DataConfig, home: Home, report: Callable[[Event], None]) -> Documents:
    """The dataset that the settings name.

    Raises:
        MlxchatError: there is no such dataset, or nothing of it on disk and no ``streaming``.
    """
    if config.is_builtin:
        return BuiltinDocuments(config.seed)
    folder = config.data_dir or home.data(config.dataset)
    if not config.streaming:
        shards = LocalShards(folder, config.num_shards)
        known = DATASETS.get(config.dataset) if config.data_dir is None else None
        if known and shards.validation != known.validation:
            raise MlxchatError(
                f"The validation shard, {known.validation}, is not in {folder}.",
                f"Get it: mlxchat data fetch --dataset {known.name} --num-shards 1",
            )
        return ShardDocuments(shards)
    if config.dataset not in DATASETS or config.data_dir is not None:
        raise MlxchatError(
            "Only a dataset of the hub can be streamed.",
            f"Use --dataset {' or '.join(DATASETS)}, or leave out --streaming.",
        )
    source = StreamingShards(
        folder,
        DATASETS[config.dataset],
        config.max_cached_shards,
        Hub.from_environment(config.endpoint),
        report,
        config.num_shards,
    )
    return ShardDocuments(source, text_shards=1)


def tokenizer_folder(config: DataConfig, home: Home) -> Path:
    """Where the run's tokenizer is, or will be; one for all the hub's datasets."""
    of_its_own = config.data_dir is None and config.dataset not in DATASETS
    default = home.root / f"tokenizer_{config.dataset}" if of_its_own else home.tokenizer
    return config.tokenizer_dir or default


def train_tokenizer(
    documents: Documents,
    folder: Path,
    vocab_size: int | None,
    report: Callable[[Event], None],
    max_characters: int = MAX_CHARACTERS,
    clock: Callable[[], float] = time.time,
) -> Tokenizer:
    """Train a tokenizer and put it into ``folder``; one that is there stays until it is ready.

    Args:
        vocab_size: tokens; None for what the text can support.
        max_characters: read at most so much.

    Raises:
        MlxchatError: there is no text, or not enough for ``vocab_size``.
    """

    def texts() -> Iterator[str]:
        done = told = 0
        for text in documents.texts():
            yield text[:DOCUMENT_CHARACTERS]
            done += min(len(text), DOCUMENT_CHARACTERS)
            if done - told >= 1_000_000:
                told = done
                report(Progressed(clock(), TASK, done, None, "characters"))
            if done >= max_characters:
                break
        report(Progressed(clock(), TASK, done, done, "characters"))
        if not done:
            raise MlxchatError("The training data holds no text.", "Use data with text in it.")

    tokenizer = train(texts(), vocab_size or documents.suggested_vocabulary())
    if vocab_size is not None and tokenizer.vocab_size < vocab_size:
        raise MlxchatError(
            f"The text has pairs for a vocabulary of {tokenizer.vocab_size:,} tokens, "
            f"not {vocab_size:,}.",
            f"Use --vocab-size {tokenizer.vocab_size} or less, or more text.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished", dir=folder) as unfinished:
        tokenizer.save(Path(unfinished))
        for path in Path(unfinished).iterdir():
            path.replace(folder / path.name)
    return tokenizer
