"""The dataset of a pretraining run.

A resumed run needs exactly the files it was started with. `reopen_documents` opens and checks them;
`check_documents` only checks.
"""

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from mlxchat.checkpoint.trainer import TrainerState
from mlxchat.config.pretrain import DataConfig, PretrainConfig
from mlxchat.config.recipes import ENDLESS, Text
from mlxchat.data.documents import BuiltinDocuments, ShardDocuments, TextDocuments
from mlxchat.data.fetch import pin
from mlxchat.data.fingerprint import quick_fingerprints
from mlxchat.data.hub import Hub
from mlxchat.data.shards import (
    DATASETS,
    Dataset,
    LocalShards,
    how_to_get,
    pinned_revision,
    shard_names,
    status,
)
from mlxchat.data.streaming import StreamingShards
from mlxchat.errors import ConfigError, DataError, NotFound, command
from mlxchat.home import Home
from mlxchat.names import as_listed
from mlxchat.telemetry.events import Report
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train.resume import require_names, require_revision, require_same_files

SAMPLE_CHARACTERS = 500_000  # that tell how many bytes a token has


class StreamedDocuments(ShardDocuments):
    """Documents of shards streamed from the hub; closing them closes the hub's connections."""

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
    remedy = "" if config.data_dir else _how_to_get(config.dataset, home)
    shards = LocalShards(folder, config.num_shards, remedy=remedy)
    dataset = DATASETS.get(config.dataset) if config.data_dir is None else None
    if dataset and shards.validation != dataset.validation:
        raise NotFound(
            f"The validation shard, {dataset.validation}, is not in {folder}.",
            f"Download it: {command('data fetch', dataset=dataset.name, num_shards=1)}",
        )
    known = quick_fingerprints(folder, (*shards.training, shards.validation))
    return ShardDocuments(shards, known=known, seed=config.seed)


def _how_to_get(dataset: str, home: Home) -> str:
    """Return the remedy where a dataset is not on disk."""
    return how_to_get(dataset, [folder.name for folder in status(home) if folder.has_validation])


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
    known = quick_fingerprints(folder, names) | state.fingerprints
    return ShardDocuments(LocalShards(folder, names=names), known=known, seed=config.seed)


def fingerprints_on_disk(
    config: DataConfig, home: Home, documents: TextDocuments
) -> dict[str, str]:
    """Return the quick fingerprints of the dataset's files that are on disk, by name."""
    return quick_fingerprints(_folder(config, home), documents.names)


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
            "Only a dataset on the hub can be streamed.",
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
    known = quick_fingerprints(folder, (*dataset.training(num_shards), dataset.validation)) | known
    most = config.max_cached_shards
    source = StreamingShards(folder, dataset, most, hub, report, num_shards)
    return StreamedDocuments(source, hub, known, config.seed)


def size_of_text(
    config: PretrainConfig, documents: TextDocuments, tokenizer: Tokenizer | None = None
) -> Text:
    """Return how much text there is for the budget recipe; other recipes do not ask.

    Args:
        config: the run's settings.
        documents: the text.
        tokenizer: encodes a sample, which tells the bytes of a token; None if there is none yet.
    """
    if config.streaming or config.recipe_name != "budget":
        return ENDLESS
    size = documents.text_bytes()
    if tokenizer is None or math.isinf(size):
        return Text(size)
    sample = ""
    for text in documents.texts():
        sample += text[: SAMPLE_CHARACTERS - len(sample)]
        if len(sample) >= SAMPLE_CHARACTERS:
            break
    return Text(size, len(sample.encode()) / max(1, len(tokenizer.encode(sample))))


def text_on_disk(config: PretrainConfig, home: Home, tokenizer: Tokenizer | None = None) -> Text:
    """Return what `size_of_text` does; without end as well if the text is not on disk yet."""
    if config.streaming:
        return ENDLESS
    try:
        with closing(open_documents(config, home, lambda _: None)) as documents:
            return size_of_text(config, documents, tokenizer)
    except (NotFound, DataError):
        return ENDLESS
