"""A dry run reports what a run would refuse or remark on."""

from pathlib import Path

import pytest

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.recipes import MODERN_RECIPE, RECIPES
from mlxchat.data.documents import BuiltinDocuments
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Noted
from mlxchat.train.inputs import check_documents
from mlxchat.train.tokenizer import ready_tokenizer, train_tokenizer

THREE = ["shard_00000.parquet", "shard_00001.parquet", "shard_00002.parquet"]


def shards(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_a_dry_run_finds_that_data_is_missing(tmp_path: Path) -> None:
    config = PretrainConfig(data_dir=tmp_path / "data")
    with pytest.raises(MlxchatError, match="no data"):
        check_documents(config, Home(tmp_path), [])
    shards(tmp_path / "data", *THREE)
    check_documents(config, Home(tmp_path), [])


def test_a_saved_run_needs_the_files_it_was_started_with(tmp_path: Path) -> None:
    config = PretrainConfig(data_dir=shards(tmp_path / "data", *THREE, "shard_00003.parquet"))
    check_documents(config, Home(tmp_path), [*THREE[:2], "shard_00003.parquet"])
    with pytest.raises(MlxchatError, match=r"files that are missing: shard_00009\.parquet"):
        check_documents(config, Home(tmp_path), [*THREE[:2], "shard_00009.parquet"])


def test_a_dry_run_of_a_stream_downloads_and_writes_nothing(tmp_path: Path) -> None:
    config = PretrainConfig(streaming=True, num_shards=2, endpoint="http://localhost:1")
    saved = [*THREE[:2], "shard_01822.parquet"]
    check_documents(config, Home(tmp_path / "home"), saved)
    with pytest.raises(MlxchatError, match="files that are missing: mine"):
        check_documents(config, Home(tmp_path / "home"), [*saved[1:], "mine.parquet"])
    with pytest.raises(MlxchatError, match="`num_shards=5000`"):
        too_many = config.model_copy(update={"num_shards": 5000})
        check_documents(too_many, Home(tmp_path / "home"), [])
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("recipes", "remarks"), [(280, 1), (300, 0)])
def test_a_tokenizer_larger_than_the_recipes_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipes: int, remarks: int
) -> None:
    monkeypatch.setitem(RECIPES, "modern", MODERN_RECIPE._replace(vocabulary=recipes))
    config = PretrainConfig(arch="modern", dataset="builtin", tokenizer_dir=tmp_path)
    documents = BuiltinDocuments(1)
    train_tokenizer(documents, tmp_path, 300, lambda _: None, max_characters=20_000)

    def noted(config: PretrainConfig) -> list[object]:
        run = ready_tokenizer(config, Home(tmp_path), documents, lambda _: None, lambda: 0.0)
        return list(run)

    seen = noted(config)
    assert len(seen) == remarks
    for event in seen:
        assert isinstance(event, Noted)
        assert f"of 300 tokens in {tmp_path}; the recipe modern has 280" in event.text
        assert "mlxchat tokenizer train --vocab-size 280 --tokenizer-dir" in event.text
    assert noted(config.model_copy(update={"vocab_size": 300})) == []
