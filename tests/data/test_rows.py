import bz2
import csv
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlxchat.data import rows as module
from mlxchat.data import text_files
from mlxchat.data.files import COMPRESSED, ROWS, TEXT_COLUMN, found_in, kind, stem
from mlxchat.data.rows import rows
from mlxchat.data.text_files import Reading, lines
from mlxchat.errors import ConfigError, DataError, MlxchatError

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
DOCUMENTS = [{"text": text} for text in ("one", 'two, "2"\nlines', "drei\u2028 äöü", "[]{},\\")]


def content(suffix: str, encoding: str = "utf-8") -> bytes:
    """`DOCUMENTS` as a file with that suffix."""
    if suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in DOCUMENTS)
    elif suffix == ".json":
        text = json.dumps(DOCUMENTS, ensure_ascii=False, indent=1)
    elif suffix == ".csv":
        stream = io.StringIO()
        table = csv.writer(stream)
        table.writerows([["text", "id"], *([row["text"], 1] for row in DOCUMENTS)])
        text = stream.getvalue()
    else:
        packed = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(DOCUMENTS), packed)
        return packed.getvalue()
    return text.encode(encoding)


def read(path: Path, encoding: str = "utf-8") -> list[object]:
    return [row for _, row in rows(Reading(path, encoding), TEXT_COLUMN)]


def texts(found: list[object]) -> list[str]:
    return [row["text"] for row in found if isinstance(row, dict)]


def skipping(path: Path) -> tuple[list[object], list[str]]:
    """The rows of a file, and what was skipped."""
    skipped: list[str] = []
    reading = Reading(path, skip=lambda place, fault: skipped.append(f"{place} {fault}"))
    return [row for _, row in rows(reading, TEXT_COLUMN)], skipped


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("suffix", ROWS)
def test_every_kind_is_read_packed_in_every_way(tmp_path: Path, suffix: str, packed: str) -> None:
    path = tmp_path / f"own{suffix.upper()}{packed}"
    path.write_bytes(PACK[packed](content(suffix)))
    assert texts(read(path)) == [row["text"] for row in DOCUMENTS]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"own{suffix}.gz"
    path.write_bytes(gzip.compress(content(suffix, encoding)))
    assert texts(read(path)) == [row["text"] for row in DOCUMENTS]
    assert texts(read(path, "latin-1")) == [row["text"] for row in DOCUMENTS]  # counts more


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_wide_characters_without_a_mark_are_not_taken_for_utf_8(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes('{"text": "plain"}\n'.encode(encoding))
    with pytest.raises(DataError, match=r"own.jsonl begins with a zero byte") as caught:
        read(path)
    assert "`encoding`" in caught.value.remedy
    assert read(path, encoding) == [{"text": "plain"}]


def test_other_encodings_are_given(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    for encoding in ("utf-16-be", "gb18030", "utf-7"):
        path.write_bytes(content(".jsonl", encoding))
        assert texts(read(path, encoding)) == [row["text"] for row in DOCUMENTS]
    path.write_bytes('{"text": "naïve"}\n'.encode("latin-1"))
    assert read(path, "latin-1") == [{"text": "naïve"}]
    with pytest.raises(DataError, match=r"line 1 is not UTF-8") as caught:
        read(path)
    assert "`encoding`" in caught.value.remedy
    with pytest.raises(DataError, match=r"line 1 is not cp932"):
        read(path, "cp932")
    with pytest.raises(DataError, match=r"own.jsonl cannot be decoded: UTF-16 stream") as caught:
        read(path, "utf-16")
    assert "utf-16-le" in caught.value.remedy


@pytest.mark.parametrize("name", ["no-such", "zlib", "rot13", "undefined", "a\0b", ""])
def test_an_encoding_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="`encoding="):
        Reading(Path("own.txt"), name)


@pytest.mark.parametrize("packed", COMPRESSED)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_damaged_archive_is_named(tmp_path: Path, suffix: str, packed: str) -> None:
    path = tmp_path / f"own{suffix}{packed}"
    whole = PACK[packed](content(suffix))
    for damaged in (whole[:-7], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"is damaged") as caught:
            read(path)
        assert str(path) in caught.value.problem and "\n" not in caught.value.problem


@pytest.mark.parametrize("packed", COMPRESSED)
def test_an_archive_that_stands_for_much_is_refused(
    tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "allowed_bytes", lambda size: max(100_000, 100 * size))
    for suffix, line in ((".jsonl", b'{"text": "a"}\n'), (".parquet", b"0" * 16)):
        path = tmp_path / f"own{suffix}{packed}"
        path.write_bytes(PACK[packed](line * 20_000))
        with pytest.raises(DataError, match="unpacks to more than 100,000 bytes"):
            read(path)


BAD = {
    "a.jsonl": (b'{"text": "one"}\n{"text\n\xff\n \n{"text": "two"}\n', 2, 3),
    "b.jsonl": (
        b'{"text": "one"}\n' + b"9" * 5000 + b"\n[" + b"[" * 99_999 + b'\n{"text": "two"}',
        2,
        3,
    ),
    "c.json": (b'[{"text": "one"}, {"text"}, "\xff", {"text": "two"}]', 2, 3),
    "d.csv": (b'id,text\n1,one\n2,"a" b\n3\n4,two\n', 3, 4),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named_and_can_be_skipped(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    raw, first, second = BAD[name]
    path.write_bytes(raw)
    what = "row" if path.suffix == ".json" else "line"
    with pytest.raises(DataError, match=rf"{name}, {what} {first} is not valid") as caught:
        read(path)
    assert "`skip_bad`" in caught.value.remedy and "\n" not in caught.value.problem
    found, skipped = skipping(path)
    assert texts(found) == ["one", "two"]
    assert [fault.split()[2] for fault in skipped] == [str(first), str(second)]


@pytest.mark.parametrize("name", ["own.jsonl", "own.csv"])
def test_a_line_too_long_is_named_and_can_be_skipped(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LARGEST_VALUE", 1000)
    head, body = (b"text\n", b"%s\n") if name == "own.csv" else (b"\n", b'{"text": "%s"}\n')
    path = tmp_path / name
    path.write_bytes(head + body % b"one" + body % (b"a" * 5000) + body % b"two")
    with pytest.raises(DataError, match=r"line 3 is longer than the maximum of 1,000 characters"):
        read(path)
    found, skipped = skipping(path)
    assert texts(found) == ["one", "two"] and len(skipped) == 1


def test_a_long_line_takes_no_more_memory_than_it_may(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    with path.open("wb") as file:
        file.truncate(100_000_000)  # a line of zeros, which takes no room on the disk
    tracemalloc.start()
    with pytest.raises(
        DataError, match="line 1 is longer than the maximum of 32,000,000 characters"
    ):
        list(lines(Reading(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * text_files.LARGEST_VALUE


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_list_is_the_same_in_pieces_of_any_size(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "JSON_PIECE", size)
    values = [{"a": ["]", "[", '"', "\\", '\\"', {}]}, [], "", 12, None, [[1, {"b": "},{"}]]]
    path = tmp_path / "own.json"
    for text in (json.dumps(values), "\ufeff" + json.dumps(values, indent=3) + " \n"):
        path.write_text(text, "utf-8")
        assert read(path) == values
    path.write_text(" [ ] ")
    assert read(path) == []


@pytest.mark.parametrize(
    "text",
    ["{}", "5", '"[]"', "[1, 2", "[1} ", "[1] 2", "[1]]", '["', "[1,]", "[,1]", "[1 2]", "]"],
)
def test_what_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(DataError, match=r"own\.json.* (is not valid JSON|does not contain a list)"):
        read(tmp_path / "own.json")


def test_an_element_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_VALUE", 1000)
    monkeypatch.setattr(module, "JSON_PIECE", 100)
    (tmp_path / "own.json").write_text(json.dumps([{"text": "one"}, {"text": "a" * 5000}]))
    with pytest.raises(DataError, match=r"row 2 is longer than the maximum of 1,000 characters"):
        read(tmp_path / "own.json")


def test_fields_of_a_table_may_be_longer_than_python_thinks(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("text\n" + "a" * 200_000 + "\n")
    assert read(tmp_path / "own.csv") == [{"text": "a" * 200_000}]


def test_a_table_without_a_column_that_is_wanted_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("content,id\nx,1\n")
    with pytest.raises(DataError, match=r"no column with text \(its columns: content, id\)"):
        read(tmp_path / "own.csv")


def test_kinds_and_names() -> None:
    assert [kind(Path(name)) for name in ("a", "a.gz", "a.b.JSONL", "a.txt.xz", ".csv")] == [
        "",
        "",
        ".jsonl",
        ".txt",
        "",
    ]
    assert [stem(Path(name)) for name in ("a", "a.b.jsonl.gz", "test.json")] == ["a", "a.b", "test"]


def test_what_is_passed_over_in_a_folder_is_said(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/c.csv.gz", "a/.d.csv", ".git/e.csv", "f.pdf", "g.png", "h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere")
    found = found_in(tmp_path, ROWS)
    assert found.files == (tmp_path / "a" / "c.csv.gz", tmp_path / "b.jsonl")
    assert str(found) == (
        "2 hidden (.git, .d.csv); 3 of another type (f.pdf, g.png, h); 1 not a regular file, "
        "or a broken link (gone.csv); 1 a link to a folder (link)"
    )


def test_a_file_or_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "own.jsonl"))

    monkeypatch.setattr(text_files._Counting, "__init__", denied)
    with pytest.raises(MlxchatError, match=r"own\.jsonl cannot be read: Permission") as caught:
        read(tmp_path / "own.jsonl")
    assert "permissions" in caught.value.remedy
    with pytest.raises(MlxchatError, match="cannot be listed: No such file"):
        found_in(tmp_path / "gone", ROWS)
