import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import packed

from mlxchat.data import parquet
from mlxchat.data.cells import python_rows
from mlxchat.data.files import TEXT_COLUMN, Wanted, allowed_bytes
from mlxchat.data.parquet import parquet_rows
from mlxchat.data.parquet_pages import Page, pages
from mlxchat.data.text_files import LARGEST_VALUE, Reading
from mlxchat.errors import DataError

MESSAGES = Wanted(("messages",), "conversations")


def read(path: Path, wanted: Wanted = TEXT_COLUMN, start: int = 0) -> list[object]:
    (name,) = wanted.names
    return [row.values[name] for row in parquet_rows(Reading(path), wanted, start)]


def page_sizes(path: Path) -> list[Page]:
    metadata = pq.read_metadata(path)
    with path.open("rb") as file:
        return [
            page
            for group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
            for page in pages(file, metadata.row_group(group).column(column))
        ]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_headers_of_pages_are_read(tmp_path: Path, version: str) -> None:
    texts = [f"document {number}" for number in range(1000)]
    table = pa.table({"text": texts})
    options = {"compression": "none", "data_page_version": version, "row_group_size": 600}
    pq.write_table(table, tmp_path / "plain.parquet", use_dictionary=False, **options)
    found = page_sizes(tmp_path / "plain.parquet")
    assert [page.values for page in found] == [600, 400]
    assert [page.unpacked for page in found] == [page.packed for page in found]
    assert found[0].unpacked >= sum(len(text) + 4 for text in texts[:600])
    assert {page.kind for page in found} == {"values"}

    pq.write_table(table, tmp_path / "dictionary.parquet", use_dictionary=True, **options)
    found = page_sizes(tmp_path / "dictionary.parquet")
    kinds = [(page.kind, page.values) for page in found]
    assert kinds == [
        ("dictionary", 600),
        ("references", 600),
        ("dictionary", 400),
        ("references", 400),
    ]

    encoding = {"text": "DELTA_BYTE_ARRAY"}
    options |= {"use_dictionary": False, "column_encoding": encoding}
    pq.write_table(table, tmp_path / "delta.parquet", **options)
    assert {page.kind for page in page_sizes(tmp_path / "delta.parquet")} == {"differences"}


def test_long_statistics_in_a_header_are_passed_over(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": ["a" * 300, "b" * 300]}), tmp_path / "a.parquet", use_dictionary=False
    )
    assert [page.values for page in page_sizes(tmp_path / "a.parquet")] == [2]


def test_a_damaged_header_is_a_fault_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", "two"]}), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged after row 0: a page's header"):
        read(path)


@pytest.mark.parametrize("bomb", packed.OF_TEXT)
def test_a_small_file_that_stands_for_much_is_refused(
    tmp_path: Path, bomb: Callable[[Path], Path]
) -> None:
    path = bomb(tmp_path / "own.parquet")
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"than (the )?(maximum of )?(64|32),000,000 ") as caught:
        for row in parquet_rows(Reading(path), TEXT_COLUMN):
            assert len(str(row.values["text"])) <= packed.LETTERS
    assert str(path) in caught.value.problem and caught.value.remedy


def test_the_file_of_2_kilobytes_is_that_small(tmp_path: Path) -> None:
    path = packed.by_reference(tmp_path / "own.parquet")
    assert path.stat().st_size < 2_000
    assert pq.read_metadata(path).num_rows * packed.LETTERS > 51e9


def test_a_row_too_long_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    path = packed.in_a_list(tmp_path / "own.parquet")
    with pytest.raises(
        DataError, match=r"row 1 is longer than the (maximum of )?32,000,000"
    ) as caught:
        read(path, MESSAGES)
    assert "`skip_bad`" in caught.value.remedy
    skipped: list[str] = []
    reading = Reading(path, skip=lambda place, _: skipped.append(place))
    assert list(parquet_rows(reading, MESSAGES)) == []
    assert skipped == [f"{path}, row 1"]


def test_rows_of_lists_are_bounded_together(tmp_path: Path) -> None:
    path = packed.in_rows_of_lists(tmp_path / "own.parquet")
    assert path.stat().st_size < 20_000
    seen = 0
    with pytest.raises(DataError, match="unpacks to more than 64,000,000 bytes"):
        for _ in parquet_rows(Reading(path), MESSAGES):
            seen += 1
    assert seen == 31  # of 2 MB each


def test_only_so_many_rows_are_made_into_objects_at_a_time(tmp_path: Path) -> None:
    path = packed.by_reference(tmp_path / "own.parquet")
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            for _ in parquet_rows(Reading(path), TEXT_COLUMN):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * parquet.HELD_BYTES


def test_honest_files_are_read_whatever_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group, pages and a dictionary larger than what is read at once, of text that differs."""
    monkeypatch.setattr(parquet, "HELD_BYTES", 10_000)
    texts = [f"{number} " * 100 for number in range(400)]
    for options in ({"use_dictionary": False}, {"data_page_size": 1000}, {"row_group_size": 70}):
        pq.write_table(pa.table({"text": texts}), tmp_path / "own.parquet", **options)
        assert read(tmp_path / "own.parquet") == texts
        assert read(tmp_path / "own.parquet", start=123) == texts[123:]


def test_row_groups_are_read_in_any_order(tmp_path: Path) -> None:
    texts = [str(number) for number in range(10)]
    path = tmp_path / "own.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=4)
    assert parquet.row_groups(path) == [4, 4, 2]
    found = list(parquet_rows(Reading(path), TEXT_COLUMN, groups=[2, 0]))
    assert [row.values["text"] for row in found] == ["8", "9", "0", "1", "2", "3"]
    assert [(row.number, row.group_end) for row in found[1:3]] == [(9, 10), (0, 4)]
    assert list(parquet_rows(Reading(path), TEXT_COLUMN, groups=[])) == []
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match="is damaged"):
        parquet.row_groups(path)


def test_a_dictionary_within_lists_is_kept_until_rows_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "HELD_BYTES", 2_000)
    rows = [
        [{"role": "user", "content": f"Say {n % 7}. " * 9}, None, {"role": None}]
        for n in range(300)
    ]
    pq.write_table(pa.table({"messages": [*rows, None, []]}), tmp_path / "own.parquet")
    blank = {"role": None, "content": None}
    expected = [[row[0], None, blank] for row in rows]
    assert read(tmp_path / "own.parquet", MESSAGES) == [*expected, None, []]


STRINGS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.binary()),
]


@pytest.mark.parametrize("stored", STRINGS, ids=str)
def test_text_of_every_type_is_text(tmp_path: Path, stored: pa.DataType) -> None:
    texts = ["one", None, "zwölf", "", "one"]
    plain = pa.array(texts).cast(pa.binary() if "binary" in str(stored) else pa.string())
    if "view" in str(stored):
        column = pa.array(plain.to_pylist(), stored)
    elif pa.types.is_dictionary(stored):
        column = plain.dictionary_encode().cast(stored)
    else:
        column = plain.cast(stored)
    pq.write_table(pa.table({"text": column}), tmp_path / "own.parquet")
    assert read(tmp_path / "own.parquet") == texts


def test_bytes_that_are_no_text_stay_bytes_and_their_neighbours_text(tmp_path: Path) -> None:
    column = pa.array([b"one", b"\xff", b"two"])
    pq.write_table(pa.table({"text": column}), tmp_path / "own.parquet")
    assert read(tmp_path / "own.parquet") == ["one", b"\xff", "two"]


def test_a_string_that_is_no_text_is_bad_and_its_neighbours_are_not(tmp_path: Path) -> None:
    column = pa.array([b"one", b"\xff", b"two"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": column}), tmp_path / "own.parquet")
    with pytest.raises(DataError, match=r"own\.parquet, row 2 is not UTF-8"):
        read(tmp_path / "own.parquet")
    skipped: list[str] = []
    reading = Reading(tmp_path / "own.parquet", skip=lambda place, _: skipped.append(place))
    rows = [row.values["text"] for row in parquet_rows(reading, TEXT_COLUMN)]
    assert rows == ["one", "two"]
    assert skipped == [f"{tmp_path / 'own.parquet'}, row 2"]


def test_columns_of_other_types_are_measured(tmp_path: Path) -> None:
    """Every type that a column of a public set has, as `python_rows` gives it."""
    table = pa.table(
        {
            "messages": pa.array([[[1, 2], None], None], pa.list_(pa.list_(pa.int8()))),
            "fixed": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32())),
            "decimal": pa.array([1, None]).cast(pa.decimal128(30, 2)),
            "time": pa.array([1, 2], pa.timestamp("us")),
            "bytes": pa.array([b"ab", b"cd"], pa.binary(2)),
            "null": pa.nulls(2),
            "flag": [True, False],
        }
    )
    pq.write_table(table, tmp_path / "own.parquet")
    wanted = Wanted(table.column_names, "anything")
    found = [row.values for row in parquet_rows(Reading(tmp_path / "own.parquet"), wanted)]
    assert found == python_rows(table.to_batches()[0])


def test_a_null_of_a_wide_column_takes_its_width(tmp_path: Path) -> None:
    wide = pa.array([None] * 10_000, pa.binary(10_000))
    packed.write(tmp_path / "own.parquet", {"text": wide})
    with pytest.raises(DataError, match="a page unpacks to more than the 64,000,000"):
        read(tmp_path / "own.parquet")


def test_what_is_allowed_grows_with_the_file() -> None:
    assert allowed_bytes(2_000) == allowed_bytes(0) == 64_000_000 > LARGEST_VALUE
    assert allowed_bytes(10**9) == 10**11
