"""What a run reads: its dataset, its tokenizer, trained where there is none, and its checkpoint."""

import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from mlxchat.checkpoint.layout import TrainerState
from mlxchat.config.pretrain import MAX_CHARACTERS, DataConfig, PretrainConfig
from mlxchat.config.recipes import CLASSIC
from mlxchat.data.documents import BuiltinDocuments, ShardDocuments, TextDocuments
from mlxchat.data.download import pin
from mlxchat.data.fingerprint import frames
from mlxchat.data.hub import Hub
from mlxchat.data.shards import DATASETS, Dataset, LocalShards, pinned_revision, shard_names
from mlxchat.data.streaming import StreamingShards
from mlxchat.errors import ConfigError, DataError, NotFound, command
from mlxchat.home import Home
from mlxchat.plan.estimate import VocabularySource
from mlxchat.telemetry.events import Clock, Event, Noted, Progressed, Report
from mlxchat.tokenizer.bpe import TOKENIZER_FILE, Tokenizer
from mlxchat.train.resume import (
    SavedRun,
    read_saved,
    require_names,
    require_revision,
    require_same_files,
)

DOCUMENT_CHARACTERS = 10_000  # of one document at most; nanochat's
TASK = "reading text for the tokenizer"


class StreamedDocuments(ShardDocuments):
    """Those of a hub; closing them closes the connections to it."""

    def __init__(self, source: StreamingShards, hub: Hub, known: Mapping[str, str]) -> None:
        super().__init__(source, text_shards=1, known=known)
        self._hub = hub

    def close(self) -> None:
        """Stop fetching."""
        super().close()
        self._hub.close()


def open_documents(config: DataConfig, home: Home, report: Report) -> TextDocuments:
    """The dataset that the settings name.

    Raises:
        MlxchatError: there is no such dataset, or nothing of it on disk and no ``streaming``.
    """
    if config.is_builtin:
        return BuiltinDocuments(config.seed)
    folder = _folder(config, home)
    if config.streaming:
        return _stream(config, folder, config.num_shards, report, {})
    shards = LocalShards(folder, config.num_shards)
    known = DATASETS.get(config.dataset) if config.data_dir is None else None
    if known and shards.validation != known.validation:
        raise NotFound(
            f"The validation shard, {known.validation}, is not in {folder}.",
            f"Get it: {command('data fetch', dataset=known.name, num_shards=1)}",
        )
    return ShardDocuments(shards, known=frames(folder, (*shards.training, shards.validation)))


def revision(config: DataConfig, home: Home) -> str | None:
    """The hub's commit that the dataset's files are of, None where none is recorded."""
    return None if config.is_builtin else pinned_revision(_folder(config, home))


def reopen_documents(
    config: PretrainConfig, home: Home, report: Report, begun: TrainerState
) -> TextDocuments:
    """The very files that a run began with; of a dataset that has none, the dataset.

    What is yet to be streamed into an empty folder is of the revision that the run began with.

    Args:
        begun: the state of the run as it was saved.

    Raises:
        MlxchatError: some of those files are not there, or they are of another revision. Another
            file of the same name is one when it is to be read.
    """
    if not begun.data:
        return open_documents(config, home, report)
    folder, names = _folder(config, home), begun.data
    if begun.revision and config.streaming and revision(config, home) is None:
        pin(folder, begun.revision)
    check_documents(config, home, names, begun.revision)
    if config.streaming:
        return _stream(config, folder, len(names) - 1, report, begun.fingerprints)
    known = frames(folder, names) | begun.fingerprints
    return ShardDocuments(LocalShards(folder, names=names), known=known)


def check_documents(
    config: PretrainConfig, home: Home, begun_with: list[str], begun_revision: str | None = None
) -> None:
    """Raise what opening or reopening the dataset would raise, as far as the disk shows it.

    Nothing is fetched, or written.

    Args:
        begun_with: the files of the run to go on with; none for a new one.
        begun_revision: the hub's commit that they were of, where one was recorded.
    """
    folder = _folder(config, home)
    require_revision(config.tag, folder, revision(config, home), begun_revision)
    if config.streaming and not config.is_builtin:
        dataset = _streamed(config)
        training = dataset.training(len(begun_with) - 1 if begun_with else config.num_shards)
        require_names(config.tag, folder, begun_with, (*training, dataset.validation))
    elif begun_with:
        require_names(config.tag, folder, begun_with, shard_names(folder))
    else:
        open_documents(config, home, lambda _: None).close()


def _folder(config: DataConfig, home: Home) -> Path:
    """Of the shards."""
    return config.data_dir or home.data(config.dataset)


def _streamed(config: DataConfig) -> Dataset:
    if config.dataset not in DATASETS or config.data_dir is not None:
        raise ConfigError(
            "Only a dataset of the hub can be streamed.",
            f"Use `dataset` {' or '.join(DATASETS)}, or leave out `streaming`.",
        )
    return DATASETS[config.dataset]


def _stream(
    config: DataConfig,
    folder: Path,
    num_shards: int | None,
    report: Report,
    known: dict[str, str],
) -> StreamedDocuments:
    hub, dataset = Hub.from_environment(config.endpoint), _streamed(config)
    known = frames(folder, (*dataset.training(num_shards), dataset.validation)) | known
    most = config.max_cached_shards
    source = StreamingShards(folder, dataset, most, hub, report, num_shards)
    return StreamedDocuments(source, hub, known)


def tokenizer_folder(config: DataConfig, home: Home) -> Path:
    """Where the run's tokenizer is, or will be; one for all the hub's datasets."""
    of_its_own = config.data_dir is None and config.dataset not in DATASETS
    default = home.root / f"tokenizer_{config.dataset}" if of_its_own else home.tokenizer
    return config.tokenizer_dir or default


def stored_tokenizer(config: DataConfig, home: Home) -> Tokenizer | None:
    """The run's tokenizer, None where it is yet to be trained.

    Raises:
        MlxchatError: it has another number of tokens than the settings say.
    """
    folder = tokenizer_folder(config, home)
    if not (folder / TOKENIZER_FILE).exists():
        return None
    tokenizer = Tokenizer.load(folder)
    if config.vocab_size not in (None, tokenizer.vocab_size):
        raise ConfigError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size:,} tokens, "
            f"not {config.vocab_size:,}.",
            "Leave out `vocab_size` to use it, make another with mlxchat tokenizer train, or "
            "give `tokenizer_dir`.",
        )
    return tokenizer


def vocabulary(config: PretrainConfig, home: Home) -> tuple[int, VocabularySource]:
    """How many tokens the run's vocabulary has or will have, and what says so."""
    if config.vocab_size:
        return config.vocab_size, "vocab_size"
    if tokenizer := stored_tokenizer(config, home):
        return tokenizer.vocab_size, "tokenizer"
    largest = config.recipe.vocabulary
    if config.is_builtin:
        largest = min(largest, BuiltinDocuments(config.seed).suggested_vocabulary())
    return largest, "default"


def ready_tokenizer(
    config: PretrainConfig, home: Home, documents: TextDocuments, report: Report, clock: Clock
) -> Generator[Event, None, Tokenizer]:
    """The run's tokenizer, trained first where there is none."""
    folder, largest = tokenizer_folder(config, home), config.recipe.vocabulary
    if tokenizer := stored_tokenizer(config, home):
        if config.vocab_size is None and tokenizer.vocab_size > largest:
            yield Noted(
                clock(),
                f"Using the tokenizer of {tokenizer.vocab_size:,} tokens in {folder}; nanochat's "
                f"{config.arch} recipe has {largest:,}. For one of those: "
                f"{command('tokenizer train', vocab_size=largest, tokenizer_dir='FOLDER')}, then "
                "train with `tokenizer_dir`.",
            )
        return tokenizer
    yield Noted(clock(), f"No tokenizer yet: training one, to be kept in {folder}.")
    return train_tokenizer(
        documents, folder, config.vocab_size, report, largest=largest, clock=clock
    )


def train_tokenizer(
    documents: TextDocuments,
    folder: Path,
    vocab_size: int | None,
    report: Report,
    *,
    largest: int = CLASSIC.vocabulary,
    max_characters: int = MAX_CHARACTERS,
    clock: Clock = time.time,
) -> Tokenizer:
    """Train a tokenizer and put it into ``folder``; one that is there stays until it is ready.

    Args:
        vocab_size: tokens; None for what the text can support, ``largest`` at most.
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
            raise DataError("The training data holds no text.", "Use data with text in it.")

    tokenizer = Tokenizer.train(
        texts(), vocab_size or min(largest, documents.suggested_vocabulary())
    )
    if vocab_size is not None and tokenizer.vocab_size < vocab_size:
        raise DataError(
            f"The text has pairs for a vocabulary of {tokenizer.vocab_size:,} tokens, "
            f"not {vocab_size:,}.",
            f"Use `vocab_size={tokenizer.vocab_size}` or less, or more text.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished", dir=folder) as unfinished:
        tokenizer.save(Path(unfinished))
        for path in Path(unfinished).iterdir():
            path.replace(folder / path.name)
    return tokenizer


def saved_run(config: PretrainConfig, home: Home) -> SavedRun | None:
    """The run of the settings' name, None where nothing of it was saved.

    Raises:
        MlxchatError: it was begun with other settings (which are named) or, unless it is finished,
            with other data; or it cannot be read.
    """
    saved = read_saved(home.runs / config.tag, config)
    if saved and not saved.finished:
        folder = _folder(config, home)
        require_same_files(config.tag, folder, config.data_dir, saved.trainer)
    return saved
