"""Arbitrary bytes as a user's files, and the check that they give shards or a clear error."""

import gzip
import io
import json
import re
import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from mlxchat.data.documents import Cursor, ShardDocuments
from mlxchat.data.ingest import ingest
from mlxchat.data.shards import LocalShards
from mlxchat.errors import MlxchatError

TEXTS = st.lists(st.text(max_size=30) | st.none(), max_size=40)
LINES = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=30).map(lambda text: json.dumps({"text": text}).encode()),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner) | st.dictionaries(st.just("text") | st.text(), inner),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b" ", b"\r", b"\xef\xbb\xbf", b'{"text": 1e999}', b"9" * 5000]),
)
BYTES = st.one_of(
    st.binary(max_size=300),
    st.lists(LINES, max_size=8).map(b"\n".join),
    st.text(max_size=200).map(lambda text: text.encode("utf-16")),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@st.composite
def tables(draw: Any) -> bytes:
    """A parquet file, its text of some type and encoding."""
    kind = draw(
        st.sampled_from(
            [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.binary()]
        )
    )
    texts = [text.encode("utf-8", "surrogatepass") if text else text for text in draw(TEXTS)]
    column = pa.array([text or None for text in texts], pa.binary())
    column = column.cast(pa.string(), safe=False) if kind != pa.binary() else column
    names = draw(st.sampled_from([["text"], ["content"], ["text", "text"], ["id", "text"]]))
    table = pa.Table.from_arrays([column.cast(kind)] * len(names), names)
    stream = io.BytesIO()
    pq.write_table(
        table,
        stream,
        compression=draw(st.sampled_from(["zstd", "snappy", "gzip", "none"])),
        row_group_size=draw(st.sampled_from([1, 7, 1024])),
        use_dictionary=draw(st.booleans()),
        data_page_version=draw(st.sampled_from(["1.0", "2.0"])),
    )
    return stream.getvalue()


@st.composite
def damaged_tables(draw: Any) -> bytes:
    """A parquet file with some bytes changed, taken out or cut off."""
    content = bytearray(draw(tables()))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content) - 1))
        change = draw(st.sampled_from(["flip", "cut", "take", "put"]))
        if change == "flip":
            content[place] ^= draw(st.integers(1, 255))
        elif change == "cut":
            del content[max(place, 1) :]
        elif change == "take":
            del content[place : place + draw(st.integers(1, 9))]
        else:
            content[place:place] = draw(st.binary(max_size=9))
        content = content or bytearray(b"P")
    return bytes(content)


TABLES = st.tuples(st.sampled_from([b"", b"text\n", b"id,text\r\n", b'"text",\n']), BYTES).map(
    b"".join
)
FILES = {
    "own.txt": BYTES,
    "own.jsonl": BYTES,
    "own.csv": TABLES,
    "own.md.gz": BYTES.map(gzip.compress) | BYTES,
    "own.parquet": st.one_of(BYTES, tables(), damaged_tables()),
}


def shards_or_a_clear_error(name: str, content: bytes) -> None:
    """Bring a file in, as ``mlxchat data fetch --from`` does, and read what became of it.

    Raises:
        AssertionError: it made neither shards nor an error that is clear, or left something.
    """
    with tempfile.TemporaryDirectory() as parent:
        source, folder = Path(parent) / name, Path(parent) / "home" / "base_data_own"
        source.write_bytes(content)
        try:
            summary = ingest(source, folder, lambda event: None)
        except MlxchatError as error:
            assert list(folder.parent.iterdir()) == []
            assert str(source) in error.problem and error.remedy, error.problem
            assert "\n" not in error.problem and len(error.problem) < 500, error.problem
            of_the_whole = re.search(
                "is empty|yields only one document|has no column|is damaged|cannot be decoded"
                "|begins with a zero byte",
                error.problem,
            )
            if source.suffix != ".parquet" and not of_the_whole:
                assert re.search(r", line \d+ ", error.problem), error.problem
            return
        documents = ShardDocuments(LocalShards(folder))
        training = takewhile(lambda read: read[1].epoch == 1, documents.training(Cursor()))
        reads = [*training, *documents.validation()]
        assert sum(len(texts) for texts, _ in reads) == summary.documents
        assert sum(len(str(text)) for texts, _ in reads for text in texts) == summary.characters
