"""The inputs of pretraining: its dataset, and its tokenizer, which is trained if there is none.

A resumed run needs the very files that it was started with: `reopen_documents`, or, without opening
anything, `check_documents`.
"""

import math
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from mlxchat.checkpoint.trainer import TrainerState
from mlxchat.config.pretrain import MAX_CHARACTERS, DataConfig, PretrainConfig
from mlxchat.config.recipes import CLASSIC_RECIPE
from mlxchat.data.documents import BuiltinDocuments, ShardDocuments, TextDocuments
from mlxchat.data.fetch import pin
from mlxchat.data.fingerprint import frames
from mlxchat.data.hub import Hub
from mlxchat.data.shards import DATASETS, Dataset, LocalShards, pinned_revision, shard_names
from mlxchat.data.streaming import StreamingShards
from mlxchat.errors import ConfigError, DataError, NotFound, command
from mlxchat.home import Home
from mlxchat.names import as_listed
from mlxchat.plan.estimate import VocabularySource
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Event, Noted, Progressed, Report
from mlxchat.tokenizer.bpe import TOKENIZER_FILE, Tokenizer
from mlxchat.train.resume import require_names, require_revision, require_same_files

DOCUMENT_CHARACTERS = 10_000  # read of one document, at most; nanochat's
TRAINED_ON_PER_TOKEN = 5000  # characters, at most, for a vocabulary that the budget recipe chose
NEAR = 2  # times the vocabulary that it chose: a tokenizer with as many, or as few, will do
TASK = "reading text for the tokenizer"


class StreamedDocuments(ShardDocuments):
    """Documents of shards that are streamed from the hub; closing them closes its connections."""

    def __init__(
        self, source: StreamingShards, hub: Hub, known: Mapping[str, str], seed: int
    ) -> None:
        super().__init__(source, text_shards=1, known=known, seed=seed)
        self._hub = hub

    def close(self) -> None:
        """Stop downloading."""
        super().close()
        self._hub.close()


def open_documents(config: DataConfig, home: Home, report: Report) -> TextDocuments:
    """Open the dataset that the settings name.

    Raises:
        NotFound: there is no such dataset on disk, and ``streaming`` is off.
        ConfigError: it cannot be streamed.
    """
    if config.is_builtin:
        return BuiltinDocuments(config.seed)
    folder = _folder(config, home)
    if config.streaming:
        return _stream(config, folder, config.num_shards, report, {})
    shards = LocalShards(folder, config.num_shards)
    dataset = DATASETS.get(config.dataset) if config.data_dir is None else None
    if dataset and shards.validation != dataset.validation:
        raise NotFound(
            f"The validation shard, {dataset.validation}, is not in {folder}.",
            f"Get it: {command('data fetch', dataset=dataset.name, num_shards=1)}",
        )
    known = frames(folder, (*shards.training, shards.validation))
    return ShardDocuments(shards, known=known, seed=config.seed)


def open_validation(config: DataConfig, home: Home, names: list[str]) -> TextDocuments:
    """Open the dataset of a saved run for its validation documents, from disk only.

    Args:
        config: the run's settings.
        home: where the data is.
        names: the files of the dataset when the run was saved.

    Raises:
        NotFound: there is no such dataset on disk.
        DataError: its validation shard is not the run's.
    """
    on_disk = config.model_copy(update={"streaming": False, "num_shards": None})
    documents = open_documents(on_disk, home, lambda _: None)
    if documents.names[-1:] != tuple(as_listed(names[-1:], documents.names)):
        documents.close()
        raise DataError(f"The validation shard of the run, {names[-1]}, is missing.")
    return documents


def data_in_words(config: DataConfig) -> list[str]:
    """Return the dataset's name, for one from the hub with address and licence."""
    name = config.dataset
    if config.data_dir:
        return ["shards of its own"]
    if config.is_builtin:
        return ["the built-in corpus of mlxchat"]
    if name not in DATASETS:
        return [name]
    dataset = DATASETS[name]
    return [f"{name} (https://huggingface.co/datasets/{dataset.repo}; {dataset.licence_note})"]


def revision(config: DataConfig, home: Home) -> str | None:
    """Return the hub's commit that the dataset's files are from; None if none is recorded."""
    return None if config.is_builtin else pinned_revision(_folder(config, home))


def reopen_documents(
    config: PretrainConfig, home: Home, report: Report, state: TrainerState[PretrainConfig]
) -> TextDocuments:
    """Open the very files that a run was started with; the dataset as it is if it has no files.

    What is still to be streamed into an empty folder is from the revision that the run was started
    with.

    Args:
        config: the settings.
        home: where the data is.
        report: called with the progress of downloads.
        state: the run's state when it was saved.

    Raises:
        DataError: some of those files are missing or from another revision. One that has changed
            raises it when it is read.
    """
    if not state.data:
        return open_documents(config, home, report)
    folder, names = _folder(config, home), state.data
    if state.revision and config.streaming and revision(config, home) is None:
        pin(folder, state.revision)
    check_documents(config, home, names, state.revision)
    if config.streaming:
        return _stream(config, folder, len(names) - 1, report, state.fingerprints)
    known = frames(folder, names) | state.fingerprints
    return ShardDocuments(LocalShards(folder, names=names), known=known, seed=config.seed)


def with_names_on_disk(
    config: PretrainConfig, home: Home, state: TrainerState[PretrainConfig]
) -> TrainerState[PretrainConfig]:
    """Return a saved state with the names of its files in the form that their folder has now.

    A disk or a program that copied them may have changed the Unicode form of letters with marks.
    """
    listed = as_listed(state.data, shard_names(_folder(config, home)))
    renamed = dict(zip(state.data, listed, strict=True))
    known = {renamed.get(name, name): found for name, found in state.fingerprints.items()}
    return state.model_copy(update={"data": listed, "fingerprints": known})


def require_same_data(
    config: PretrainConfig, home: Home, state: TrainerState[PretrainConfig]
) -> None:
    """Check that the dataset's files are those that a saved run was started with.

    Raises:
        DataError: one has changed, or nothing was saved to compare them with.
    """
    require_same_files(config.tag, _folder(config, home), config.data_dir, state)


def check_documents(
    config: PretrainConfig, home: Home, saved: list[str], saved_revision: str | None = None
) -> None:
    """Raise what opening or reopening the dataset would raise, as far as the disk shows it.

    Nothing is downloaded or written.

    Args:
        config: the settings.
        home: where the data is.
        saved: the files of the run to resume; none for a new run.
        saved_revision: the hub's commit that they were from, if one was recorded.

    Raises:
        MlxchatError: as `open_documents` and `reopen_documents`.
    """
    folder = _folder(config, home)
    require_revision(config.tag, folder, revision(config, home), saved_revision)
    if config.streaming and not config.is_builtin:
        dataset = _streamed(config)
        training = dataset.training(len(saved) - 1 if saved else config.num_shards)
        require_names(config.tag, folder, saved, (*training, dataset.validation))
    elif saved:
        require_names(config.tag, folder, saved, shard_names(folder))
    else:
        open_documents(config, home, lambda _: None).close()


def _folder(config: DataConfig, home: Home) -> Path:
    """Return the folder of the shards."""
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
    return StreamedDocuments(source, hub, known, config.seed)


def tokenizer_folder(config: DataConfig, home: Home) -> Path:
    """Return the folder of the run's tokenizer, which all datasets of the hub share."""
    of_its_own = config.data_dir is None and config.dataset not in DATASETS
    default = home.root / f"tokenizer_{config.dataset}" if of_its_own else home.tokenizer
    return config.tokenizer_dir or default


def stored_tokenizer(config: DataConfig, home: Home) -> Tokenizer | None:
    """Read the run's tokenizer; None if it has yet to be trained.

    Raises:
        ConfigError: it has another vocabulary size than the settings say.
    """
    folder = tokenizer_folder(config, home)
    if not (folder / TOKENIZER_FILE).exists():
        return None
    tokenizer = Tokenizer.load(folder)
    if config.vocab_size not in (None, tokenizer.vocab_size):
        raise ConfigError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size:,} tokens, "
            f"not {config.vocab_size:,}.",
            "Leave out `vocab_size` to use it, train another with mlxchat tokenizer train, or set "
            "`tokenizer_dir`.",
        )
    return tokenizer


def vocabulary(
    config: PretrainConfig, home: Home, largest: int | None = None
) -> tuple[int, VocabularySource]:
    """Return the size of the run's vocabulary, and what determines it.

    Args:
        largest: of a tokenizer yet to be trained; None for the recipe's.
    """
    if config.vocab_size:
        return config.vocab_size, "vocab_size"
    if tokenizer := stored_tokenizer(with_tokenizer_near(config, home, largest), home):
        return tokenizer.vocab_size, "tokenizer"
    largest = largest or config.numbers.vocabulary
    return min(largest, _supported_vocabulary(config, home) or largest), "default"


def _supported_vocabulary(config: DataConfig, home: Home) -> int | None:
    """Return the size of the vocabulary that the text supports; None if none is on disk yet."""
    if config.streaming:
        return None
    try:
        with closing(open_documents(config, home, lambda _: None)) as documents:
            return documents.suggested_vocabulary()
    except NotFound:
        return None


def text_bytes(config: PretrainConfig, documents: TextDocuments) -> float:
    """Return about how many bytes of text an epoch has, for the budget recipe.

    It is infinite where text is streamed, and with other recipes, which do not ask for it.
    """
    if config.streaming or config.recipe_name != "budget":
        return math.inf
    return documents.text_bytes()


def text_bytes_on_disk(config: PretrainConfig, home: Home) -> float:
    """Return what `text_bytes` does; infinite as well if the text is not on disk yet."""
    if config.streaming:
        return math.inf
    try:
        with closing(open_documents(config, home, lambda _: None)) as documents:
            return text_bytes(config, documents)
    except (NotFound, DataError):
        return math.inf


def chooses_vocabulary(config: PretrainConfig) -> bool:
    """Return whether the budget recipe chooses the vocabulary."""
    if config.recipe_name != "budget" or config.vocab_size is not None:
        return False
    return config.tokenizer_dir is None or not (config.tokenizer_dir / TOKENIZER_FILE).exists()


def with_tokenizer_near(config: PretrainConfig, home: Home, wanted: int | None) -> PretrainConfig:
    """Return the settings with the folder of a tokenizer for about ``wanted`` tokens.

    It is the one that the settings name. By default it is the dataset's if the tokenizer there has
    between half and twice as many, otherwise a folder in that one, named by the number: a large
    model would learn less from so few, and a small one spend most of its time on the head.
    """
    if wanted is None or config.tokenizer_dir is not None:
        return config
    tokenizer, folder = stored_tokenizer(config, home), tokenizer_folder(config, home)
    if tokenizer and wanted <= NEAR * tokenizer.vocab_size <= NEAR**2 * wanted:
        return config
    return config.model_copy(update={"tokenizer_dir": folder / str(wanted)})


def ready_tokenizer(
    config: PretrainConfig,
    home: Home,
    documents: TextDocuments,
    report: Report,
    clock: Clock,
    wanted: int | None = None,
) -> Generator[Event, None, Tokenizer]:
    """Read the run's tokenizer, or train it if there is none.

    Args:
        wanted: the vocabulary that the budget recipe chose; None for another recipe's.

    Raises:
        MlxchatError: as `stored_tokenizer` and `train_tokenizer`.
    """
    config = with_tokenizer_near(config, home, wanted)
    folder, largest = tokenizer_folder(config, home), wanted or config.numbers.vocabulary
    if tokenizer := stored_tokenizer(config, home):
        if wanted is None and config.vocab_size is None and tokenizer.vocab_size > largest:
            yield Noted(
                clock(),
                f"Using the tokenizer of {tokenizer.vocab_size:,} tokens in {folder}; the recipe "
                f"{config.recipe_name} has {largest:,}. To train one of that size: "
                f"{command('tokenizer train', vocab_size=largest, tokenizer_dir='FOLDER')}, then "
                "train with `tokenizer_dir`.",
            )
        return tokenizer
    yield Noted(
        clock(), f"There is no tokenizer yet: training one, which will be stored in {folder}."
    )
    characters = MAX_CHARACTERS
    if config.recipe_name == "budget":
        characters = TRAINED_ON_PER_TOKEN * (config.vocab_size or largest)
    return train_tokenizer(
        documents,
        folder,
        config.vocab_size,
        report,
        largest=largest,
        max_characters=characters,
        clock=clock,
    )


def train_tokenizer(
    documents: TextDocuments,
    folder: Path,
    vocab_size: int | None,
    report: Report,
    *,
    largest: int = CLASSIC_RECIPE.vocabulary,
    max_characters: int = MAX_CHARACTERS,
    clock: Clock = SYSTEM_CLOCK,
) -> Tokenizer:
    """Train a tokenizer and store it in ``folder``; an older one there is replaced at the end.

    Args:
        documents: the text to train on.
        folder: where to store the tokenizer.
        vocab_size: size of the vocabulary; None for what the text supports, at most ``largest``.
        report: called with the progress.
        largest: see ``vocab_size``.
        max_characters: characters to read, at most.
        clock: seconds since the epoch.

    Raises:
        DataError: there is no text, or not enough for ``vocab_size``.
    """

    def texts() -> Iterator[str]:
        done = reported = 0
        for text in documents.texts():
            yield text[:DOCUMENT_CHARACTERS]
            done += min(len(text), DOCUMENT_CHARACTERS)
            if done - reported >= 1_000_000:
                reported = done
                report(Progressed(clock(), TASK, done, None, "characters"))
            if done >= max_characters:
                break
        report(Progressed(clock(), TASK, done, done, "characters"))
        if not done:
            raise DataError("The training data contain no text.", "Use data that contain some.")

    tokenizer = Tokenizer.train(
        texts(), vocab_size or min(largest, documents.suggested_vocabulary())
    )
    if vocab_size is not None and tokenizer.vocab_size < vocab_size:
        raise DataError(
            f"The text supports a vocabulary of {tokenizer.vocab_size:,} tokens, not "
            f"{vocab_size:,}.",
            f"Use `vocab_size={tokenizer.vocab_size}` or less, or more text.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished", dir=folder) as unfinished:
        tokenizer.save(Path(unfinished))
        for path in Path(unfinished).iterdir():
            path.replace(folder / path.name)
    return tokenizer
