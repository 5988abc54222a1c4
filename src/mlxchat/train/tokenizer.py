"""The tokenizer of a pretraining run: its location and size; it is trained if there is none."""

import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

from mlxchat.config.pretrain import MAX_CHARACTERS, DataConfig, PretrainConfig
from mlxchat.config.recipes import CLASSIC_RECIPE
from mlxchat.data.documents import TextDocuments
from mlxchat.data.shards import DATASETS
from mlxchat.errors import ConfigError, DataError, NotFound, command
from mlxchat.home import Home
from mlxchat.plan.estimate import VocabularySource
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Event, Noted, Progressed, Report
from mlxchat.tokenizer.bpe import TOKENIZER_FILE, Tokenizer
from mlxchat.train.inputs import open_documents

DOCUMENT_CHARACTERS = 10_000  # read of one document, at most; nanochat's
TRAINED_ON_PER_TOKEN = 5000  # characters, at most, for a vocabulary that the budget recipe chose
NEAR = 2  # times the vocabulary that it chose: a tokenizer with as many, or as few, will do
TASK = "reading text for the tokenizer"


def tokenizer_folder(config: DataConfig, home: Home) -> Path:
    """Return the folder of the run's tokenizer, which all datasets of the hub share."""
    of_its_own = config.data_dir is None and config.dataset not in DATASETS
    default = home.own_tokenizer(config.dataset) if of_its_own else home.tokenizer
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
        clock(), f"There is no tokenizer yet. Training one, which will be stored in {folder}."
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
            raise DataError("The training data contains no text.", "Use data that contains text.")

    tokenizer = Tokenizer.train(
        texts(), vocab_size or min(largest, documents.suggested_vocabulary())
    )
    if vocab_size is not None and tokenizer.vocab_size < vocab_size:
        raise DataError(
            f"The text is too short for a vocabulary of {vocab_size:,} tokens; it yields "
            f"{tokenizer.vocab_size:,}.",
            f"Use `vocab_size={tokenizer.vocab_size}` or less, or add text.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished", dir=folder) as unfinished:
        tokenizer.save(Path(unfinished))
        for path in Path(unfinished).iterdir():
            path.replace(folder / path.name)
    return tokenizer
