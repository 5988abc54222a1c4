import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from support import packed
from support.any_bytes import FILES, shards_or_a_clear_error
from support.marks import slow

from mlxchat.data import ingest as module
from mlxchat.data.ingest import IngestSummary, ingest
from mlxchat.data.own_text import LONGEST_DOCUMENT
from mlxchat.data.shards import LocalShards, check_shard
from mlxchat.errors import MlxchatError
from mlxchat.telemetry.events import Event, Noted, Progressed

Run = Callable[..., IngestSummary]


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def run(tmp_path: Path, events: list[Event]) -> Run:
    def run(source: Path, folder: Path = tmp_path / "home" / "base_data_own", seed: int = 0):
        return ingest(source, folder, events.append, seed=seed, clock=lambda: 1.0)

    return run


def texts(path: Path) -> list[str]:
    return pq.read_table(path).column("text").to_pylist()


def write_lines(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in documents))
    return path


def test_json_lines_become_shards(tmp_path: Path, run: Run) -> None:
    documents = [f"document {number}" for number in range(200)]
    summary = run(write_lines(tmp_path / "own.jsonl", documents))
    training, validation = summary.shards
    assert [path.name for path in summary.shards] == ["shard_00000.parquet", "shard_00001.parquet"]
    assert len(texts(validation)) == summary.validation_documents == 10
    assert sorted(texts(training) + texts(validation)) == sorted(documents)
    assert summary.documents == 200
    assert summary.characters == sum(map(len, documents))
    assert texts(training) != sorted(texts(training), key=documents.index)  # shuffled


def test_shards_are_readable_as_local_data(tmp_path: Path, run: Run) -> None:
    summary = run(write_lines(tmp_path / "own.jsonl", ["one", "two"]))
    source = LocalShards(summary.shards[0].parent)
    assert source.training == ("shard_00000.parquet",)
    assert source.validation == "shard_00001.parquet"
    for path in summary.shards:
        check_shard(path)


def test_the_layout_equals_nanochats(tmp_path: Path, run: Run) -> None:
    summary = run(write_lines(tmp_path / "own.jsonl", ["some text"] * 3000))
    metadata = pq.read_metadata(summary.shards[0])
    assert metadata.num_columns == 1
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [
        1024,
        1024,
        802,
    ]
    column = metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    assert not column.is_stats_set
    assert not column.has_dictionary_page


def test_shards_are_split_by_size(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 10_000)
    documents = [f"{number:04d}" + "ä" * 98 for number in range(400)]  # 200 bytes each
    summary = run(write_lines(tmp_path / "own.jsonl", documents))
    assert [len(texts(path)) for path in summary.shards] == [50] * 7 + [30, 20]
    assert sorted(text for path in summary.shards for text in texts(path)) == documents


def test_documents_are_dealt_out_early_to_bound_memory(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHUFFLED_CHARACTERS", 1000)
    documents = [f"{number:04d}" * 5 for number in range(1000)]
    summary = run(write_lines(tmp_path / "own.jsonl", documents))
    validation = sorted(int(text[:4]) for text in texts(summary.shards[-1]))
    assert len(validation) == summary.validation_documents == 50
    assert validation[0] < 100 and validation[-1] > 900  # from all over the source
    assert sorted(text for path in summary.shards for text in texts(path)) == documents


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_large_documents_reach_both_training_and_validation(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    for limit in (1, 150, 1000):
        monkeypatch.setattr(module, "SHUFFLED_CHARACTERS", limit)
        source = write_lines(tmp_path / "own.jsonl", ["x" * 100] * count)
        summary = run(source, tmp_path / f"limit_{limit}")
        assert [len(texts(path)) for path in summary.shards] == [count - 1, 1]


def test_the_seed_decides_order_and_validation(tmp_path: Path, run: Run) -> None:
    source = write_lines(tmp_path / "own.jsonl", [str(number) for number in range(100)])
    first, again, other = (
        [texts(path) for path in run(source, tmp_path / name, seed).shards]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other


def test_text_is_split_at_blank_lines(tmp_path: Path, run: Run) -> None:
    paragraphs = [f"Paragraph {number}.\nIts second line. " + "word " * 300 for number in range(40)]
    (tmp_path / "book.txt").write_text("\n\n\n".join(paragraphs), newline="\r\n")
    summary = run(tmp_path / "book.txt")
    documents = [text for path in summary.shards for text in texts(path)]
    assert max(map(len, documents)) <= LONGEST_DOCUMENT
    assert len(documents) == 8
    found = [paragraph for document in documents for paragraph in document.split("\n\n")]
    assert sorted(found) == sorted(paragraph.rstrip() for paragraph in paragraphs)


def test_an_endless_line_is_split_between_words(tmp_path: Path, run: Run) -> None:
    words = [f"wörd{number}" for number in range(40_000)]
    (tmp_path / "line.txt").write_text(" ".join(words), encoding="utf-8")
    summary = run(tmp_path / "line.txt")
    documents = [text for path in summary.shards for text in texts(path)]
    assert max(map(len, documents)) <= LONGEST_DOCUMENT
    assert sorted(word for text in documents for word in text.split()) == sorted(words)


def test_an_endless_word_is_split_anywhere(tmp_path: Path, run: Run) -> None:
    (tmp_path / "line.txt").write_text("x" * 20_000)
    assert run(tmp_path / "line.txt").characters == 20_000


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
)
def test_parquet_with_other_columns_and_string_types_is_read(
    tmp_path: Path, run: Run, kind: pa.DataType
) -> None:
    column = pa.array(["one", None, " ", "two", "one"]).cast(kind)
    pq.write_table(pa.table({"id": range(5), "text": column}), tmp_path / "own.parquet")
    summary = run(tmp_path / "own.parquet")
    assert sorted(text for path in summary.shards for text in texts(path)) == ["one", "one", "two"]
    assert pq.read_schema(summary.shards[0]).field("text").type == pa.string()


def test_a_folder_is_read_with_its_subfolders(
    tmp_path: Path, run: Run, events: list[Event]
) -> None:
    source = tmp_path / "texts"
    (source / "deeper").mkdir(parents=True)
    (source / ".hidden").mkdir()
    write_lines(source / "deeper" / "a.jsonl", ["one"])
    (source / "b.TXT").write_bytes(b"\xef\xbb\xbftwo")
    (source / "empty.txt").write_text(" \n\n")
    (source / "image.png").write_bytes(b"\xff")
    (source / "._b.txt").write_bytes(b"\xff")
    (source / ".hidden" / "c.txt").write_bytes(b"\xff")
    summary = run(source)
    assert sorted(text for path in summary.shards for text in texts(path)) == ["one", "two"]
    assert summary.files == 3
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert notes == [
        f"Files ignored in {source}: 2 hidden (._b.txt, .hidden); 1 of another type (image.png).",
        f"{source / 'empty.txt'} contains no text and is skipped.",
    ]


def test_progress_counts_bytes_of_the_source(
    tmp_path: Path, run: Run, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPORT_BYTES", 1000)
    source = write_lines(tmp_path / "own.jsonl", ["some text"] * 5000)
    run(source)
    progress = [event for event in events if isinstance(event, Progressed)]
    assert len(progress) > 5
    assert [event.done for event in progress] == sorted(event.done for event in progress)
    size = source.stat().st_size
    assert progress[-1] == Progressed(1.0, "own.jsonl", size, size, "bytes")


def test_the_task_has_the_name_of_the_folder_one_is_in(
    tmp_path: Path, run: Run, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts").mkdir()
    write_lines(tmp_path / "texts" / "own.jsonl", ["one", "two"])
    monkeypatch.chdir(tmp_path / "texts")
    run(Path())
    assert isinstance(events[-1], Progressed) and events[-1].task == "texts"


BOOK = "Täglich.\n\nNichts Neues: 日記.\n\nEnde.\n"


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_of_every_kind_and_encoding_packed_or_not(
    tmp_path: Path, run: Run, suffix: str, encoding: str
) -> None:
    source = tmp_path / "texts"
    source.mkdir()
    (source / f"one{suffix}").write_bytes(BOOK.encode(encoding))
    (source / f"two{suffix}.gz").write_bytes(gzip.compress(BOOK.encode(encoding)))
    summary = run(source)
    assert [text for path in summary.shards for text in texts(path)] == [BOOK.strip()] * 2


def test_another_encoding_is_given(tmp_path: Path, events: list[Event]) -> None:
    (tmp_path / "a.txt").write_bytes(BOOK[:8].encode("latin-1"))
    (tmp_path / "b.txt").write_bytes(BOOK.encode("utf-16"))  # its mark counts more
    summary = ingest(tmp_path, tmp_path / "home", events.append, encoding="latin-1")
    found = sorted(text for path in summary.shards for text in texts(path))
    assert found == ["Täglich.", BOOK.strip()]
    with pytest.raises(MlxchatError, match=r"`encoding=utf-9`"):
        ingest(tmp_path, tmp_path / "other", events.append, encoding="utf-9")
    assert not (tmp_path / "other").exists()


FINE = b'{"text": "fine"}\n'


def test_null_text_is_skipped_and_counted(tmp_path: Path, run: Run, events: list[Event]) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(FINE * 2 + b'{"text": null}\n' * 3)
    reason = 'has a "text" that is null'
    assert run(path).skipped == {reason: 3}
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert notes == [f"Skipped: 3. The first is {path}, line 3, which {reason}."]
    table = pa.table({"text": ["one", None, "two"]})
    pq.write_table(table, tmp_path / "own.parquet")
    assert run(tmp_path / "own.parquet", tmp_path / "other").skipped == {reason: 1}


BAD_LINES = {
    "half a pair": (b'{"text": "half \\ud83d pair"}\n', "holds half a surrogate pair"),
    "long integer": (b'{"text": "ok", "id": %s}\n' % (b"9" * 5000), "is not valid JSON"),
    "cut off": (b'{"text": "ok\n', "is not valid JSON"),
    "no text": (b'{"content": "ok"}\n', 'has no string "text"'),
    "latin-1": (b'{"text": "na\xefve"}\n', "is not UTF-8"),
    "nested": (b"[" * 100_000 + b"\n", "is not valid JSON"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_are_named_and_can_be_skipped(tmp_path: Path, run: Run, case: str) -> None:
    line, fault = BAD_LINES[case]
    path = tmp_path / "own.jsonl"
    path.write_bytes(FINE + line + FINE)
    with pytest.raises(MlxchatError, match=f"own.jsonl, line 2 {fault}") as caught:
        run(path)
    assert "`skip_bad`" in caught.value.remedy
    summary = ingest(path, tmp_path / "home" / "own", lambda _: None, skip_bad=True)
    assert (summary.documents, summary.skipped) == (2, {fault: 1})


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("b.jsonl", b"{\n", r"b\.jsonl, line 1 is not valid JSON"),
        ("b.csv", b"name,size\nx,1\n", r"b\.csv has no column with text"),
        ("b.txt.gz", b"no gzip", r"b\.txt\.gz is damaged: Not a gzipped file"),
        ("b.md", b"na\xefve", r"b\.md, line 1 is not UTF-8"),
    ],
)
def test_one_bad_file_of_a_folder_is_named(
    tmp_path: Path, run: Run, name: str, content: bytes, said: str
) -> None:
    write_lines(tmp_path / "a.jsonl", ["one", "two"])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MlxchatError, match=said) as caught:
        run(tmp_path)
    assert caught.value.remedy


def test_the_encoding_that_a_mark_says_is_named(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "own.txt"
    path.write_bytes("\ufefffine\n".encode("utf-16-le") + b"\0\xd8a\0\n\0")
    with pytest.raises(MlxchatError, match=r"own\.txt, line 2 is not UTF-16\.") as caught:
        run(path)
    assert "`encoding`" not in caught.value.remedy


def test_a_file_of_which_all_was_skipped_is_not_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_bytes(b"na\xefve\n\nd\xe9j\xe0 vu\n")
    with pytest.raises(MlxchatError, match=r"own\.txt, line 1, which is not UTF-8\."):
        ingest(path, tmp_path / "home" / "own", lambda _: None, skip_bad=True)


def test_what_is_passed_over_is_said(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "texts"
    source.mkdir()
    others = [source / name for name in ("b.pdf", "c.parquet.zip", "package.json")]
    for path in others:
        path.touch()
    with pytest.raises(MlxchatError, match=r"files ignored: 3 of another type \(b\.pdf, "):
        run(source)
    write_lines(source / "a.jsonl", ["one", "two"])
    assert run(source).passed_over == {str(path): "of another type" for path in others}


def test_a_small_file_that_stands_for_much_is_refused(tmp_path: Path, run: Run) -> None:
    path = packed.by_reference(tmp_path / "own.parquet")
    with pytest.raises(MlxchatError, match=r"own\.parquet unpacks to more than 64,000,000 bytes"):
        run(path)
    assert list((tmp_path / "home").iterdir()) == []


def test_long_documents_end_a_row_group(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROW_GROUP_BYTES", 1000)
    summary = run(write_lines(tmp_path / "own.jsonl", ["x" * 400] * 10))
    metadata = pq.read_metadata(summary.shards[0])
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 3, 3]


def bad_files() -> dict[str, tuple[str, bytes, str]]:
    """Name of the case: file name, its bytes, what the error says."""
    good = b'{"text": "fine"}\n'
    return {
        "empty": ("own.txt", b"", r"own\.txt is empty"),
        "blank": ("own.txt", b" \n\n \n", r"own\.txt is empty"),
        "empty json": ("own.jsonl", b"\n", r"own\.jsonl is empty"),
        "one document": ("own.txt", b"Just this.", r"own\.txt yields only one document,"),
        "latin-1": ("own.txt", b"fine\n\nna\xefve\n", r"own\.txt, line 3 is not UTF-8"),
        "cut letter": ("own.txt", b"fine\nna\xc3", r"own\.txt, line 2 is not UTF-8"),
        "latin-1 json": ("own.jsonl", good + b'{"text": "\xef"}', r"line 2 is not UTF-8"),
        "no json": ("own.jsonl", good + good + b"text\n", r"own\.jsonl, line 3 is not valid JSON"),
        "no text": ("own.jsonl", good + b'{"content": "x"}\n', r'line 2 has no string "text"'),
        "not text": ("own.jsonl", b'{"text": 5}\n', r'line 1 has no string "text"'),
        "a list": ("own.jsonl", b'["text"]\n', r'line 1 has no string "text"'),
        "surrogate": ("own.jsonl", good + b'{"text": "\\ud800"}\n', "line 2 holds half"),
        "nested": ("own.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
        "no parquet": ("own.parquet", b"text", r"own\.parquet is not a parquet file"),
        "other": ("own.docx", b"text", r"own\.docx is not one of \.txt, \.md, "),
    }


@pytest.mark.parametrize("case", bad_files())
def test_bad_input_is_a_one_line_error(tmp_path: Path, run: Run, case: str) -> None:
    name, content, said = bad_files()[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MlxchatError, match=said) as caught:
        run(tmp_path / name)
    assert "\n" not in caught.value.problem
    assert caught.value.remedy
    home = tmp_path / "home"
    assert not home.exists() or list(home.iterdir()) == []


def test_parquet_without_a_text_column_is_refused(tmp_path: Path, run: Run) -> None:
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "own.parquet")
    with pytest.raises(MlxchatError, match=r"own\.parquet has no column text .*content") as caught:
        run(tmp_path / "own.parquet")
    assert caught.value.remedy.startswith("It should be") and "elete" not in caught.value.remedy


def test_damaged_parquet_is_refused(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "own.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(MlxchatError, match=r"own\.parquet"):
        run(path)


def test_a_missing_or_empty_source_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(MlxchatError, match="does not exist"):
        run(tmp_path / "nowhere")
    (tmp_path / "texts").mkdir()
    with pytest.raises(MlxchatError, match=r"There is no \.txt, .* in"):
        run(tmp_path / "texts")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MlxchatError, match="is neither a file nor a folder") as caught:
        run(tmp_path / "pipe")
    assert "to a regular file" in caught.value.remedy


def test_an_existing_dataset_is_left_alone(tmp_path: Path, run: Run) -> None:
    summary = run(write_lines(tmp_path / "own.jsonl", ["one", "two"]))
    before = [path.read_bytes() for path in summary.shards]
    with pytest.raises(MlxchatError, match="already contains shards") as caught:
        run(write_lines(tmp_path / "own.jsonl", ["three", "four"]))
    assert "another dataset" in caught.value.remedy
    assert [path.read_bytes() for path in summary.shards] == before


def test_an_interruption_leaves_no_files(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "own.jsonl", ["some text " * 100] * 3000)

    def interrupt(_: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(source, tmp_path / "home" / "base_data_own", interrupt)
    assert list((tmp_path / "home").iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed_by_the_next(tmp_path: Path, run: Run) -> None:
    source = write_lines(tmp_path / "own.jsonl", ["some text " * 100] * 3000)
    program = (
        "import sys, time; from pathlib import Path; from mlxchat.data.ingest import ingest; "
        "ingest(Path(sys.argv[1]), Path(sys.argv[2]), lambda event: (print(flush=True), "
        "time.sleep(60)))"
    )
    home = tmp_path / "home"
    command = [sys.executable, "-c", program, str(source), str(home / "base_data_killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (left,) = home.iterdir()
        with pytest.raises(MlxchatError, match="Another process is writing"):
            run(source, home / "base_data_killed")
        run(source, home / "base_data_other")
        assert left.exists()  # its process lives
        process.kill()
    summary = run(source)
    assert sorted(home.iterdir()) == [home / "base_data_other", summary.shards[0].parent]
    run(source, home / "base_data_killed")


def test_a_disk_failure_is_reported_and_leaves_no_files(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "own.jsonl", ["one", "two"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "sync", full)
    with pytest.raises(MlxchatError, match="No space left"):
        run(source)
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("name", ["own.jsonl", *map(slow, sorted(FILES.keys() - {"own.jsonl"}))])
def test_any_bytes_give_shards_or_a_clear_error(name: str) -> None:
    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(FILES[name])
    def bring_in(content: bytes) -> None:
        shards_or_a_clear_error(name, content)

    bring_in()
