"""The loader resumes exactly, ends with the data, and passes on errors of its thread."""

import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise, takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import packed

from mlxchat.data import documents as module
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.chats.sources import parse
from mlxchat.data.corpus.documents import corpus_documents, document_text
from mlxchat.data.documents import BuiltinDocuments, Cursor, Documents, Read, ShardDocuments
from mlxchat.data.loader import Loader, LoaderState
from mlxchat.data.preparation import ANSWERS
from mlxchat.data.shards import LocalShards
from mlxchat.errors import MlxchatError
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation

B, T = 4, 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog " * 20], 300)


def write(folder: Path, *shards: list[str | None], group: int = 100) -> Path:
    folder.mkdir(exist_ok=True)
    for i, texts in enumerate(shards):
        table = pa.table({"text": pa.array(texts, pa.string())})
        pq.write_table(table, folder / f"shard_{i:05d}.parquet", row_group_size=group)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> ShardDocuments:
    random = np.random.default_rng(0)
    texts = ["fox dog " * int(n) + str(i) for i, n in enumerate(random.integers(1, 30, 1500))]
    return ShardDocuments(
        LocalShards(write(tmp_path / "data", texts[:700], texts[700:1300], texts[1300:]))
    )


def epoch_of(documents: ShardDocuments, number: int) -> list[Read]:
    """The reads of one epoch of `documents`, each with the cursor after it."""
    reads = documents.training(Cursor(number))
    return list(takewhile(lambda read: read[1].epoch == number, reads))


def texts_of(reads: Iterable[Read]) -> list[str]:
    return [str(document) for batch, _ in reads for document in batch]


def loader(documents: Documents, tokenizer: Tokenizer, state: LoaderState | None = None) -> Loader:
    start = state or LoaderState()
    return Loader(documents.training(start.cursor), tokenizer, B, T, state)


@pytest.mark.parametrize("kind", ["shards", "builtin"])
def test_loading_resumes_exactly_after_any_batch(
    kind: str, shards: ShardDocuments, tokenizer: Tokenizer
) -> None:
    documents = shards if kind == "shards" else BuiltinDocuments(7)
    with loader(documents, tokenizer) as straight:
        batches = [next(straight) for _ in range(200)]
    assert batches[-1].state.cursor.epoch > 1 or kind == "builtin"
    second = [at for at, batch in enumerate(batches) if batch.state.cursor.epoch == 2]
    for at in (0, 1, 57, 140, *second[:2], 198):
        stored = LoaderState.from_arrays(batches[at].state.to_arrays())
        with loader(documents, tokenizer, stored) as resumed:
            following = next(resumed)
        assert np.array_equal(following.ids, batches[at + 1].ids)
        assert np.array_equal(following.targets, batches[at + 1].targets)
        assert following.state.cursor == batches[at + 1].state.cursor


def test_each_epoch_has_the_same_documents_in_an_order_of_its_own(shards: ShardDocuments) -> None:
    first, second, third = (epoch_of(shards, number) for number in (1, 2, 3))
    assert [cursor for _, cursor in first][:2] == [Cursor(1, 0, 100), Cursor(1, 0, 200)]
    numbers = [int(text.split()[-1]) for text in texts_of(first)]
    assert numbers == list(range(1300))
    assert texts_of(second) != texts_of(first) != texts_of(third) != texts_of(second)
    for later in (second, third):
        for shard in (0, 1):
            of_shard = [[r for r in epoch if r[1].shard == shard] for epoch in (first, later)]
            assert sorted(texts_of(of_shard[0])) == sorted(texts_of(of_shard[1]))
        groups = [int(batch[0].split()[-1]) // 100 for batch, _ in later if batch]
        assert groups != sorted(groups)
    assert texts_of(epoch_of(shards, 2)) == texts_of(second)


def test_the_order_of_later_epochs_follows_from_the_seed(tmp_path: Path) -> None:
    texts: list[str | None] = [str(number) for number in range(300)]
    source = LocalShards(write(tmp_path / "data", texts, ["v"]))
    first, second = (
        [texts_of(epoch_of(ShardDocuments(source, seed=s), n)) for n in (1, 2)] for s in (1, 2)
    )
    assert first[0] == second[0] == texts
    assert first[1] != second[1]


LATER_EPOCHS = {
    "groups": [str(number) for number in range(30)],
    "nulls": [None if number % 3 else str(number) for number in range(30)],
    "nulls at an end": ["a", "b", "c", None, None, None],
    "one row": ["a"],
    "empty": [],
}


@pytest.mark.parametrize("held", [2**16, 5])
@pytest.mark.parametrize("texts", LATER_EPOCHS.values(), ids=LATER_EPOCHS)
def test_every_cursor_of_a_later_epoch_resumes_to_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str | None], held: int
) -> None:
    """Rows of whole groups are shuffled, and of a group that is too large as many as fit."""
    monkeypatch.setattr(module, "HELD_ROWS", held)
    folder = write(tmp_path / "data", texts, ["x", "y"], ["v"], group=12)
    documents = ShardDocuments(LocalShards(folder))
    straight = texts_of(epoch_of(documents, 2))
    assert sorted(straight) == sorted([*filter(None, texts), "x", "y"])
    left = []
    for row in range(len(texts) + 1):
        resumed = takewhile(lambda read: read[1].epoch == 2, documents.training(Cursor(2, 0, row)))
        following = texts_of(resumed)
        left.append(len(following))
        assert following == straight[len(straight) - left[-1] :]
    assert left[-1] == 2
    assert all(fewer in (more, more - 1) for more, fewer in pairwise(left))


def test_rows_are_shuffled_a_few_megabytes_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_CHARACTERS", 50)
    texts: list[str | None] = [f"{number:010}" for number in range(100)]
    documents = ShardDocuments(LocalShards(write(tmp_path / "data", texts, ["v"])))
    reads = epoch_of(documents, 2)
    assert [cursor.row for _, cursor in reads] == list(range(5, 101, 5))
    assert all(sorted(batch) == texts[row - 5 : row] for batch, (_, _, row) in reads)
    assert texts_of(reads) != texts


def test_rows_begin_with_bos_and_targets_follow(
    shards: ShardDocuments, tokenizer: Tokenizer
) -> None:
    with loader(shards, tokenizer) as batches:
        for _ in range(20):
            batch = next(batches)
            assert batch.ids.shape == batch.targets.shape == (B, T)
            assert (batch.ids[:, 0] == tokenizer.bos).all()
            assert np.array_equal(batch.ids[:, 1:], batch.targets[:, :-1])


def test_the_last_validation_batch_has_the_remaining_rows(
    shards: ShardDocuments, tokenizer: Tokenizer
) -> None:
    with Loader(shards.validation(), tokenizer, B, T) as batches:
        sizes = [len(batch.ids) for batch in batches]
    assert set(sizes[:-1]) == {B}
    assert 1 <= sizes[-1] <= B
    tokens = sum(
        len(ids)
        for documents, _ in shards.validation()
        for ids in tokenizer.encode_documents(documents, 1)
    )
    assert 0.5 * tokens < sum(sizes) * (T + 1) <= tokens


def test_an_error_in_the_thread_is_raised_by_next(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = write(tmp_path / "data", ["a"] * 200, ["b"])
    documents = ShardDocuments(LocalShards(folder))
    (folder / "shard_00000.parquet").write_bytes(b"no parquet")
    with pytest.raises(MlxchatError, match=r"shard_00000\.parquet"):
        next(loader(documents, tokenizer))


def test_shards_without_documents_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = ShardDocuments(LocalShards(write(tmp_path / "data", [None, None], [], ["v"])))
    with pytest.raises(MlxchatError, match="contain no documents"):
        next(loader(documents, tokenizer))


def test_a_cursor_beyond_the_data_is_refused(shards: ShardDocuments) -> None:
    with pytest.raises(MlxchatError, match="training shard 5, but there are only 2"):
        next(shards.training(Cursor(1, 5, 0)))


def test_the_suggested_vocabulary_follows_from_the_text(shards: ShardDocuments) -> None:
    assert shards.suggested_vocabulary() == 512


def test_the_size_of_an_epoch_is_about_that_of_its_text(tmp_path: Path) -> None:
    text = [f"{number} " * 50 for number in range(400)]
    folder = write(tmp_path / "data", *[text] * 12, ["validation"])
    size = ShardDocuments(LocalShards(folder)).text_bytes()
    assert size == pytest.approx(12 * sum(map(len, text)), rel=0.1)
    assert math.isinf(BuiltinDocuments(0).text_bytes())


class Conversations:
    """A source of some conversations, read once."""

    def __init__(self, count: int) -> None:
        self.all = [
            document
            for document in islice(corpus_documents(1), count)
            if not isinstance(document, str)
        ]

    def __call__(self) -> Iterator[Read]:
        for row in range(0, len(self.all), 7):
            yield list(self.all[row : row + 7]), Cursor(1, 0, row + 7)


def test_conversations_are_kept_whole_and_only_answers_are_targets() -> None:
    conversations = Conversations(400)
    tokenizer = Tokenizer.train(map(document_text, conversations.all), 400)
    with Loader(conversations(), tokenizer, B, 256, preparation=ANSWERS) as batches:
        packed = list(batches)
    ids = np.concatenate([batch.ids for batch in packed])
    targets = np.concatenate([batch.targets for batch in packed])
    found = []
    for row, learned in zip(ids.tolist(), targets.tolist(), strict=True):
        row.append(learned[-1] if learned[-1] >= 0 else tokenizer.bos)
        starts = [i for i, token in enumerate(row) if token == tokenizer.bos]
        for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
            if end - start > 1:  # not padding
                found.append((row[start:end], learned[start : end - 1]))
    rendered = [tokenizer.render(conversation) for conversation in conversations.all]
    expected = [
        (ids, [token if said else -1 for token, said in zip(ids, mask, strict=True)][1:])
        for ids, mask in rendered
        if len(ids) <= 257
    ]
    assert len(expected) < len(rendered)
    whole = sorted(pair for pair in found if pair in expected)
    assert whole == sorted(expected)


def rows_as_nanochat_packs_them(
    rendered: Iterator[tuple[list[int], list[int]]], bos: int, capacity: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield ids and targets of rows, after the generator of nanochat's chat_sft (92d63d4).

    Before each choice one conversation after another is read until 100 wait. The longest that fits
    is taken, of several the one that has waited longest; where none fits, the row is padded.
    """
    waiting: list[tuple[list[int], list[int]]] = []
    while True:
        ids: list[int] = []
        mask: list[int] = []
        while len(ids) < capacity:
            while len(waiting) < 100:
                waiting.append(next(rendered))
            fitting = [pair for pair in waiting if len(pair[0]) <= capacity - len(ids)]
            if not fitting:
                padding = capacity - len(ids)
                ids, mask = ids + [bos] * padding, mask + [0] * padding
                break
            longest = max(len(pair[0]) for pair in fitting)
            chosen = next(n for n, pair in enumerate(waiting) if len(pair[0]) == longest)
            taken = waiting.pop(chosen)
            ids, mask = ids + taken[0], mask + taken[1]
        yield ids[:-1], [token if said else -1 for token, said in zip(ids, mask, strict=True)][1:]


def test_conversations_are_packed_row_for_row_as_nanochat_packs_them(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    lengths = np.random.default_rng(5).integers(1, 28, 900).tolist()
    rows = [
        {"prompt": f"q{number}", "completion": "moo " * length}
        for number, length in enumerate(lengths)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    documents = ChatDocuments([parse(str(path))], seed=3)
    tokenizer = Tokenizer.train(["moo q 0123456789 " * 20], 300)
    rendered = (
        tokenizer.render(conversation)
        for read, _ in documents.training(Cursor())
        for conversation in read
        if isinstance(conversation, Conversation)
    )
    expected = rows_as_nanochat_packs_them(rendered, tokenizer.bos, 97)
    with Loader(documents.training(Cursor()), tokenizer, B, 96, preparation=ANSWERS) as batches:
        for batch in islice(batches, 200):  # more than an epoch
            for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
                assert (ids, targets) == next(expected)
    assert batch.state.cursor.epoch > 1


def test_a_small_shard_that_stands_for_much_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", ["a"], ["v"])
    packed.by_reference(folder / "shard_00000.parquet")
    documents = ShardDocuments(LocalShards(folder)).training(Cursor())
    with pytest.raises(MlxchatError, match=r"00000\.parquet unpacks to more than") as caught:
        for batch, _ in documents:
            assert sum(len(str(text)) for text in batch) <= module.BATCH_CHARACTERS + packed.LETTERS
    assert "`skip_bad`" not in caught.value.remedy


def test_long_documents_make_small_batches_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 100)
    texts = ["a" * 60, "b" * 60, "c" * 10, None, "d" * 100, "e"]
    documents = ShardDocuments(LocalShards(write(tmp_path / "data", texts, ["v"])))
    reads = list(islice(documents.training(Cursor()), 3))
    assert [(batch, cursor.row) for batch, cursor in reads] == [
        (texts[:2], 2),
        ([texts[2], texts[4]], 5),
        (["e"], 6),
    ]
    assert list(islice(documents.training(reads[0][1]), 2)) == reads[1:]
