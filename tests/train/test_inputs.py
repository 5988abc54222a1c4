"""Which dataset and tokenizer a run takes, and a tokenizer's training that is interrupted."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub_server import write_shard

from mlxchat.cli.train import tokenizer_train_command
from mlxchat.config.pretrain import DataConfig, PretrainConfig
from mlxchat.config.recipes import ENDLESS, Text
from mlxchat.data.documents import BuiltinDocuments, ShardDocuments
from mlxchat.data.shards import DATASETS
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Event, Progressed
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train.inputs import open_documents, size_of_text
from mlxchat.train.tokenizer import tokenizer_folder, train_tokenizer, vocabulary


class Interrupted(BuiltinDocuments):
    """Ctrl-C while the text is read."""

    def texts(self) -> Iterator[str]:
        yield "some text"
        raise KeyboardInterrupt


class Empty(BuiltinDocuments):
    def texts(self) -> Iterator[str]:
        return iter(())


def test_the_tokenizer_is_replaced_when_the_new_one_is_ready(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    seen: list[Event] = []
    first = train_tokenizer(BuiltinDocuments(1), folder, 300, seen.append, max_characters=20_000)
    assert isinstance(seen[-1], Progressed)
    assert seen[-1].done >= 20_000
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(Interrupted(1), folder, 400, seen.append)
    assert Tokenizer.load(folder).vocab_size == first.vocab_size == 300
    train_tokenizer(BuiltinDocuments(1), folder, 310, seen.append, max_characters=20_000)
    assert Tokenizer.load(folder).vocab_size == 310
    assert sorted(path.name for path in folder.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_tokenizer_needs_text(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError, match="contains no text"):
        train_tokenizer(Empty(1), tmp_path / "tokenizer", 300, lambda _: None)
    assert not (tmp_path / "tokenizer").exists()


class Short(BuiltinDocuments):
    def texts(self) -> Iterator[str]:
        return iter(["abab"])


def test_a_vocabulary_too_large_for_the_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    with pytest.raises(MlxchatError, match="it yields 267") as raised:
        train_tokenizer(Short(1), folder, 300, lambda _: None)
    assert raised.value.remedy == "Use `vocab_size=267` or less, or add text."
    assert not folder.exists()
    assert train_tokenizer(Short(1), folder, None, lambda _: None).vocab_size == 267


def test_a_tokenizers_folder_follows_from_the_dataset(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert tokenizer_folder(DataConfig(), home) == tmp_path / "tokenizer"
    assert tokenizer_folder(DataConfig(dataset="builtin"), home) == tmp_path / "tokenizer_builtin"
    given = DataConfig(dataset="builtin", tokenizer_dir=tmp_path / "mine")
    assert tokenizer_folder(given, home) == tmp_path / "mine"


class Greek(BuiltinDocuments):
    """A megabyte, of which every character has two bytes."""

    def texts(self) -> Iterator[str]:
        for _ in range(1000):
            yield "ψυχή " * 100

    def text_bytes(self) -> float:
        return 1e6


def test_the_tokens_of_the_text_are_as_its_tokenizer_makes_them(tmp_path: Path) -> None:
    config = PretrainConfig(budget="10m")
    tokenizer = train_tokenizer(BuiltinDocuments(1), tmp_path, 300, print, max_characters=20_000)
    assert size_of_text(config, Greek(1)) == Text(1e6)
    measured = size_of_text(config, Greek(1), tokenizer)
    assert measured.tokens(300) == pytest.approx(1e6, rel=0.001)  # it knows no Greek: bytes
    assert Text(1e6).tokens(300) < 0.6e6
    assert (
        size_of_text(PretrainConfig(budget="10m", recipe="classic"), Greek(1), tokenizer) == ENDLESS
    )
    assert size_of_text(config, BuiltinDocuments(1), tokenizer) == ENDLESS


def test_the_settings_decide_which_documents_are_opened(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert isinstance(open_documents(DataConfig(dataset="builtin"), home, print), BuiltinDocuments)
    with pytest.raises(MlxchatError, match="no data"):
        open_documents(DataConfig(), home, print)
    streamed = open_documents(DataConfig(streaming=True, num_shards=7), home, print)
    assert isinstance(streamed, ShardDocuments)
    assert streamed.shards == 7
    streamed.close()


def test_a_plan_needs_no_text_where_a_download_has_failed(tmp_path: Path) -> None:
    """The folder is there then, with no shard in it, or with the validation shard alone."""
    home, config = Home(tmp_path), PretrainConfig(depth=2, vocab_size=None)
    without_folder = vocabulary(config, home)
    folder = home.data(config.dataset)
    folder.mkdir(parents=True)
    assert vocabulary(config, home) == without_folder
    write_shard(folder / DATASETS[config.dataset].validation)
    assert vocabulary(config, home) == without_folder


def test_the_command_reads_at_most_the_characters_asked_for(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer_train_command(DataConfig(dataset="builtin", vocab_size=300), 20_000, True)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [read] = [event["total"] for event in events if event.get("total") and "done" in event]
    assert 20_000 <= read < 40_000
    assert events[-1]["vocab_size"] == 300
