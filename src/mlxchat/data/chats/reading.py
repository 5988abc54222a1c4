"""Reads conversations from files, and reports how many rows were used, changed and skipped."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlxchat.counts import counted
from mlxchat.data.chats import forms
from mlxchat.data.chats.sources import Source, listing
from mlxchat.data.chats.values import UnusableError
from mlxchat.data.files import Wanted
from mlxchat.data.rows import rows
from mlxchat.data.text_files import Reading
from mlxchat.errors import DataError, MlxchatError
from mlxchat.tokenizer.messages import Conversation

EXAMPLES = 5  # skipped rows, reasons or splits that a report names
UNUSED_NAMED = 30  # unused keys that it names
_COLUMNS = Wanted(forms.KEYS, "conversations")


@dataclass(frozen=True)
class SourceReport:
    """The numbers of a source's rows that were used, changed and skipped.

    Attributes:
        source: the source, as the user gave it.
        rows: all rows: ``used`` and all ``skipped``.
        used: the rows whose conversations are used.
        held_out: those of them that are for validation.
        changed: rows used, by what was changed in their conversation.
        unused: rows used, by the keys in them that were not read.
        skipped: the other rows, by reason.
        examples: the first of these, each with its place and reason.
        left_out: folders and files that were not read because they are for evaluation.
        passed_over: other files that were ignored, and why; "" if there are none.
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
    passed_over: str = ""

    def summary(self) -> str:
        """Return the report as one line."""
        said = f"{self.source}: {self.used:,} of {counted(self.rows, 'rows')} used"
        if self.held_out:
            said += f", {self.held_out:,} of them held out"
        if self.changed:
            said += f"; changed: {_counted(self.changed)}"
        if self.unused:
            said += f"; keys ignored: {_counted(self.unused, UNUSED_NAMED)}"
        if self.skipped:
            said += f"; skipped: {_counted(self.skipped)}, first {self.examples[0]}"
        if self.passed_over:
            said += f"; files ignored: {self.passed_over}"
        if self.left_out:
            named = ", ".join(self.left_out[:EXAMPLES])
            more = len(self.left_out) - EXAMPLES
            said += f"; evaluation splits not read: {named}"
            said += f" and {more:,} more" if more > 0 else ""
        return f"{said}."


def read_source(source: Source) -> tuple[list[Conversation], SourceReport]:
    """Read all conversations of a source into memory; a few 100,000 are fine.

    Raises:
        DataError: a file cannot be read, is not in the format of its suffix (file and line are
            named) or repeats itself too often, or no row can be used.
    """
    conversations: list[Conversation] = []
    changed: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    examples: list[str] = []
    found = listing(source)

    def skip(place: str, reason: str) -> None:
        skipped[reason] += 1
        if len(examples) < EXAMPLES:
            examples.append(f"{place}: {reason}")

    for path in found.files:
        reading = Reading(path, source.encoding, skip if source.skip_bad else None)
        for place, row in rows(reading, _COLUMNS):
            try:
                usable = forms.read_row(row)
            except UnusableError as error:
                skip(place, error.reason)
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
        left_out=tuple(map(str, found.for_evaluation)),
        passed_over=found.passed_over,
    )


def _nothing(source: Source, skipped: Counter[str]) -> MlxchatError:
    remedy = 'Write rows like {"messages": [{"role": "user", "content": "..."}, ...]}.'
    if not skipped:
        return DataError(f"{source} is empty: it holds no rows.", remedy)
    return DataError(
        f"{source} has {counted(skipped.total(), 'rows')}, none of which can be used: "
        f"{_counted(skipped)}.",
        remedy,
    )


def _counted(reasons: Mapping[str, int], limit: int = EXAMPLES) -> str:
    """Return the most frequent reasons with their counts, and the number of others."""
    ranked = Counter(reasons).most_common()
    said = ", ".join(f"{reason} ({count:,})" for reason, count in ranked[:limit])
    if others := [count for _, count in ranked[limit:]]:
        said += f" and {counted(len(others), 'others')} ({counted(sum(others), 'rows')})"
    return said
