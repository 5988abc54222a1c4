"""Fingerprints of shards: what tells two files of the same name apart."""

import errno
import random
from pathlib import Path

import pytest
from support.runs import (
    shards,
    spoilt,
    write_texts,
)

from mlxchat.data import documents as documents_module
from mlxchat.data import fingerprint as module
from mlxchat.data.documents import ShardDocuments
from mlxchat.data.fingerprint import (
    KnownShards,
    agree,
    fingerprint,
    quick_fingerprint,
    quick_fingerprints,
)
from mlxchat.data.shards import LocalShards, shard_name
from mlxchat.errors import MlxchatError

FIRST, SECOND = (shard_name(index) for index in range(2))


def test_other_text_has_another_fingerprint(tmp_path: Path) -> None:
    words = ["fox", "hen", "owl"] * 50
    first = fingerprint(write_texts(tmp_path / "a.parquet", words))
    assert fingerprint(write_texts(tmp_path / "again.parquet", words)) == first
    for others in ([*words, "cat"], [*words[:-1], "owls"], ["a fox", *words[1:]]):
        assert fingerprint(write_texts(tmp_path / "b.parquet", others)) != first


@pytest.mark.parametrize(("compression", "most", "least"), [("zstd", 40, 1), ("none", 60, 60)])
def test_a_fingerprint_detects_a_changed_word_that_the_quick_one_misses(
    tmp_path: Path, compression: str, most: int, least: int
) -> None:
    order = random.Random(6)
    words = ["".join(order.choices("abcdefghijklmnop", k=5)) for _ in range(2000)]
    texts = [" ".join(order.choices(words, k=100)) for _ in range(100)]
    path = tmp_path / "a.parquet"

    def written(texts: list[str]) -> tuple[str, str]:
        write_texts(path, texts, compression)
        return quick_fingerprint(path), fingerprint(path)

    known, missed = written(texts), 0
    for _ in range(60):
        number, place = order.randrange(1, 99), 6 * order.randrange(100)
        text = texts[number]
        changed = f"{text[:place]}{order.choice(words)}{text[place + 5 :]}"
        assert changed != text
        found = written([*texts[:number], changed, *texts[number + 1 :]])
        assert not agree(known[1], found[1])
        missed += agree(known[0], found[0])
    assert least <= missed <= most


def test_the_quick_and_the_full_fingerprint_of_a_file_agree(tmp_path: Path) -> None:
    one, other = (write_texts(tmp_path / name, [name]) for name in ("a.parquet", "other.parquet"))
    quick, full, other_full = quick_fingerprint(one), fingerprint(one), fingerprint(other)
    assert agree(quick, full) and agree(full, quick)
    assert not agree(quick, other_full) and not agree(other_full, quick)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\xff" * 7, b"\xff\xff\xff\xffPAR1"])
def test_any_file_has_a_fingerprint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    found = quick_fingerprints(tmp_path, ["a.parquet", "gone.parquet"])
    assert found.keys() == {"a.parquet"}
    assert found["a.parquet"].startswith(f"{len(content)} ")
    assert agree(found["a.parquet"], fingerprint(tmp_path / "a.parquet"))


def test_a_shard_is_read_again_only_if_it_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read = shards(tmp_path / "data", 0, 1), []

    def reading(path: Path) -> str:
        read.append(path.name)
        return fingerprint(path)

    monkeypatch.setattr(module, "fingerprint", reading)
    source = KnownShards(LocalShards(data), {FIRST: quick_fingerprint(data / FIRST)})
    for _ in range(3):
        assert source.acquire(FIRST) == data / FIRST
    assert read == [FIRST]
    assert source.known == {FIRST: fingerprint(data / FIRST)}
    (data / FIRST).touch()
    source.acquire(FIRST)
    assert read == [FIRST] * 2
    (data / FIRST).write_bytes(spoilt(data / FIRST))
    with pytest.raises(MlxchatError, match=f"{data / FIRST} has changed since the run started"):
        source.acquire(FIRST)


def test_an_unreadable_shard_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shards(tmp_path / "data", 0, 1)

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module, "quick_fingerprint", broken)
    message = rf"{data / FIRST} cannot be read \(Input/output error\)"
    with pytest.raises(MlxchatError, match=message):
        quick_fingerprints(data, [FIRST])
    with pytest.raises(MlxchatError, match=message):
        KnownShards(LocalShards(data), {}).acquire(FIRST)


def test_no_more_shards_are_read_for_a_vocabulary_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "LARGEST_VOCABULARY", 1024)
    monkeypatch.setattr(documents_module, "CHARACTERS_PER_TOKEN", 1)
    found = ShardDocuments(LocalShards(shards(tmp_path / "data", 0, 1, 2)))
    assert found.suggested_vocabulary() == 1024
    assert found.fingerprints.keys() == {FIRST}


def test_a_refused_shard_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, released = shards(tmp_path / "data", 0, 1), []
    monkeypatch.setattr(LocalShards, "release", lambda self, name: released.append(name))
    with pytest.raises(MlxchatError):
        KnownShards(LocalShards(data), {FIRST: quick_fingerprint(data / SECOND)}).acquire(FIRST)
    assert released == [FIRST]
