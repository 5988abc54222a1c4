"""Reads conversations from files, and reports what became of every row."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlxchat.data.cells import UNREAD, python_rows
from mlxchat.data.chats import forms
from mlxchat.data.chats.sources import Source, listing
from mlxchat.data.chats.values import UnusableError
from mlxchat.errors import DataError, MlxchatError
from mlxchat.json_text import parse_json
from mlxchat.tokenizer.messages import Conversation

EXAMPLES = 5  # rows skipped that a report tells of, and reasons or splits that it names
UNUSED_NAMED = 30  # keys not used that it names
ROWS_DECODED = 1024  # of a parquet file, decoded at a time
FAULT_CHARACTERS = 200  # of what pyarrow says is wrong


@dataclass(frozen=True)
class SourceReport:
    """A count of what became of a source's rows: ``rows`` is ``used`` plus all ``skipped``.

    Of the rows used, ``held_out`` are for validation, ``changed`` counts them by what was changed,
    ``unused`` by the keys in them that were not read. ``skipped`` counts rows by reason;
    ``examples`` are the first of them, each with its place and reason. ``left_out`` are folders and
    files of the source that are for evaluation, so were not read.
    """

    source: str
    rows: int
    used: int
    held_out: int = 0
    changed: Mapping[str, int] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return the report as one line."""
        said = f"{self.source}: {self.used:,} of {_rows(self.rows)} used"
        if self.held_out:
            said += f", {self.held_out:,} of them held out"
        if self.changed:
            said += f"; changed: {_counted(self.changed)}"
        if self.unused:
            said += f"; keys not used: {_counted(self.unused, UNUSED_NAMED)}"
        if self.skipped:
            said += f"; skipped: {_counted(self.skipped)}, first {self.examples[0]}"
        if self.left_out:
            named = ", ".join(self.left_out[:EXAMPLES])
            more = len(self.left_out) - EXAMPLES
            said += f"; not read, being for evaluation: {named}"
            said += f" and {more:,} more" if more > 0 else ""
        return f"{said}."


def read_source(source: Source) -> tuple[list[Conversation], SourceReport]:
    """Read all conversations of a source into memory; a few 100,000 are fine.

    Raises:
        DataError: a file cannot be read or is not in the format of its suffix (file and line are
            named), or no row can be used.
    """
    conversations: list[Conversation] = []
    changed: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    examples: list[str] = []
    files, for_evaluation = listing(source)
    for path in files:
        for place, row in rows(path):
            try:
                usable = forms.read_row(row)
            except UnusableError as error:
                skipped[error.reason] += 1
                if len(examples) < EXAMPLES:
                    examples.append(f"{place}: {error.reason}")
                continue
            conversations.append(usable.conversation)
            changed.update(sorted(usable.changes))
            unused.update(sorted(usable.unused))
    if not conversations:
        raise _nothing(source, skipped)
    used = len(conversations)
    total = used + skipped.total()
    return conversations, SourceReport(
        str(source),
        rows=total,
        used=used,
        changed=dict(changed),
        unused=dict(unused),
        skipped=dict(skipped),
        examples=tuple(examples),
        left_out=tuple(map(str, for_evaluation)),
    )


def rows(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the decoded rows of a .jsonl, .json or .parquet file, each with its place in words.

    Raises:
        DataError: the file cannot be read, or is not in the format of its suffix.
    """
    try:
        yield from _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the file."
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[str, object]]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if raw.strip():
                place = f"{path}, line {number}"
                yield place, _decoded(raw, place, "Each line must be one JSON value.")


def _json_list(path: Path) -> Iterator[tuple[str, object]]:
    remedy = "It must be one JSON list; a file of one value a line is named .jsonl."
    entries = _decoded(path.read_bytes(), str(path), remedy)
    if not isinstance(entries, list):
        raise DataError(f"{path} does not hold a list.", remedy)
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(entries, start=1))


def _decoded(raw: bytes, place: str, remedy: str) -> object:
    try:
        return parse_json(raw)
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8.", "Convert the file to UTF-8.") from error
    except ValueError as error:
        raise DataError(f"{place} is not valid JSON: {error}.", remedy) from error


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            known = [name for name in names if name in forms.KEYS]
            others = {name: UNREAD for name in names if name not in forms.KEYS}
            if not known:
                raise DataError(
                    f"{path} has no column of conversations (its columns: {', '.join(names)}).",
                    f"These are known: {', '.join(sorted(forms.KEYS))}.",
                )
            for batch in file.iter_batches(batch_size=ROWS_DECODED, columns=known):
                for row in python_rows(batch):
                    number += 1
                    yield f"{path}, row {number}", row | others
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's fault, not the file's
            raise
        fault = " ".join(str(error).split())[:FAULT_CHARACTERS]
        raise DataError(
            f"{path} is damaged after row {number}: {fault}.", "It should be a whole parquet file."
        ) from error


_READERS: Mapping[str, Callable[[Path], Iterable[tuple[str, object]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".parquet": _parquet,
}


def _nothing(source: Source, skipped: Counter[str]) -> MlxchatError:
    remedy = 'Give rows like {"messages": [{"role": "user", "content": "..."}, ...]}.'
    if not skipped:
        return DataError(f"{source} is empty: it holds no rows.", remedy)
    return DataError(
        f"{source} has {_rows(skipped.total())}, of which none can be used: {_counted(skipped)}.",
        remedy,
    )


def _counted(reasons: Mapping[str, int], limit: int = EXAMPLES) -> str:
    """Return the most frequent reasons with their counts, and the number of others."""
    ranked = Counter(reasons).most_common()
    said = ", ".join(f"{reason} ({count:,})" for reason, count in ranked[:limit])
    if others := [count for _, count in ranked[limit:]]:
        noun = "other" if len(others) == 1 else "others"
        said += f" and {len(others):,} {noun} ({_rows(sum(others))})"
    return said


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"
