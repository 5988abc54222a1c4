"""The findings of `mlxchat doctor` as a table, check by check, and as a report in Markdown."""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TextIO

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlxchat.counts import duration
from mlxchat.doctor.check import Finding, Health
from mlxchat.doctor.examination import Examination
from mlxchat.doctor.mac import MacAnswer
from mlxchat.errors import command
from mlxchat.ui.output import console_for
from mlxchat.ui.tables import ABREAST, in_a_cell
from mlxchat.ui.text import amount, as_options, in_one_line
from mlxchat.ui.wrapping import commands_apart, in_lines

STYLES: dict[Health, str] = {
    "ok": "green",
    "warning": "bold yellow",
    "failed": "bold red",
    "not here": "dim",
}
NAME_WIDTH = 16
_GAP = 2  # columns between those of a table
_INDENT = 2  # columns before what is below a check's name
NARROW = 60  # columns of a terminal below which a check's name has a line of its own
PIPED = ABREAST - 1  # columns where nobody's terminal gives them


def show_examination(examination: Examination, stream: TextIO | None = None) -> None:
    """Print what was found."""
    console = console_for(stream or sys.stdout)
    width = console.width if console.is_terminal else PIPED
    console.print(examination_table(examination, width), width=width, crop=False)


def examination_table(examination: Examination, width: int) -> Group:
    """Return what was found, topic by topic, for a terminal of ``width`` columns.

    Only commands, paths and addresses that are longer than that are wider: the terminal breaks
    them, so that they can be copied.
    """
    parts: list[RenderableType] = [
        *_prose(f"mlxchat {examination.mlxchat} on {examination.system}", width, "bold")
    ]
    for topic, findings in _topics(examination):
        parts += [Text(), Text(topic, style="bold cyan")]
        for finding in findings:
            if finding.outcome != "not here":
                parts += _stacked(finding, width) if width < NARROW else _beside(finding, width)
        parts += _prose(_not_here(findings), width, "dim")
    if examination.only_on_a_mac:
        parts += [Text(), Text("Questions that only a Mac can answer", style="bold cyan")]
        parts += _only_on_a_mac(examination.only_on_a_mac, width)
    return Group(*parts, Text(), *_prose(summary(examination), width, "bold"))


def summary(examination: Examination) -> str:
    """Return how many checks had each outcome, and how long they took."""
    found = {outcome: len(examination.of(outcome)) for outcome in STYLES}
    counts = ", ".join(
        amount(count, "warnings") if outcome == "warning" else f"{count:,} {outcome}"
        for outcome, count in found.items()
    )
    took = duration(examination.seconds)
    return f"{amount(len(examination.findings), 'checks')} in {took}: {counts}."


def _topics(examination: Examination) -> Iterator[tuple[str, list[Finding]]]:
    for topic, findings in groupby(examination.findings, key=lambda finding: finding.topic):
        yield topic, list(findings)


def _stacked(finding: Finding, width: int) -> list[RenderableType]:
    """Return a finding below its outcome and name."""
    room = width - _INDENT
    lines = [*_value(finding, room), *_measures(finding, room), *_rest(finding, room)]
    parts: list[RenderableType] = [Text.assemble(_outcome(finding), "  ", (finding.check, "bold"))]
    for fits, group in _by_width(lines, room):
        parts += [Padding(Group(*group), (0, 0, 0, _INDENT))] if fits else group
    return parts


def _beside(finding: Finding, width: int) -> list[RenderableType]:
    """Return a finding beside its outcome and name.

    On wide terminals a column of its own says what is measured; else that is below the value. A
    line that the column is too narrow for, such as a long command, takes the whole width.
    """
    room = width - len("warning") - NAME_WIDTH - 2 * _GAP
    wide = width >= ABREAST
    if wide:
        room = (room - _GAP) * 3 // 5
        lines = [*_value(finding, room), *_rest(finding, room)]
    else:
        lines = [*_value(finding, room), *_measures(finding, room), *_rest(finding, room)]
    aside = Text(finding.measures, "dim")
    parts, left = list[RenderableType](), (_outcome(finding), Text(finding.check, "bold"))
    for fits, group in _by_width(lines, room):
        if fits or not parts:
            row = _row(width, room)
            row.add_row(*left, Group(*group) if fits else Text(), *([aside] if wide else []))
            parts.append(row)
            left, aside = (Text(), Text()), Text()
        parts += [] if fits else group
    return parts


def _row(width: int, room: int) -> Table:
    """Return a table for a row: outcome, name, ``room`` columns for the finding, and any left."""
    drawn = Table.grid(padding=(0, _GAP, 0, 0))
    for columns in (len("warning"), NAME_WIDTH, room):
        drawn.add_column(width=columns)
        width -= columns + _GAP
    if width > 0:
        drawn.add_column(width=width)
    return drawn


def _by_width(lines: Sequence[Text], room: int) -> Iterator[tuple[bool, list[Text]]]:
    """Yield lines in groups, and whether those of the group fit into so many columns."""
    for fits, group in groupby(lines, key=lambda line: line.cell_len <= room):
        yield fits, list(group)


def _outcome(finding: Finding) -> Text:
    return Text(finding.outcome, style=STYLES[finding.outcome])


def _value(finding: Finding, room: int) -> list[Text]:
    """Return what was found and what is wanted, on one line if both fit."""
    value, wanted = in_one_line(finding.value), f"(wanted: {finding.limit})"
    together = Text.assemble(value, (f"  {wanted}", "dim"))
    if together.cell_len <= room:
        return [together]
    return [*_prose(value, room), *_prose(wanted, room, "dim")]


def _measures(finding: Finding, room: int) -> list[Text]:
    return _prose(finding.measures, room, "dim")


def _rest(finding: Finding, room: int) -> list[Text]:
    """Return what a value means and, where something is wrong, what to do and what it affects."""
    lines = _prose(_shown(finding.detail), room)
    if finding.needs_action:
        lines += _prose(_shown(finding.remedy), room, STYLES[finding.outcome])
    if finding.commands:
        lines += _prose(f"Affects: {', '.join(finding.commands)}", room)
    return lines


def _prose(text: str, room: int, style: str = "") -> list[Text]:
    """Return a text in lines that break no word, with each command on a line of its own."""
    lines = list[Text]()
    for part, is_command in commands_apart(text):
        broken = [part] if is_command else in_lines(part, room).split("\n")
        lines += [Text(line, style, no_wrap=True, overflow="ignore") for line in broken]
    return lines


def _shown(text: str) -> str:
    return in_one_line(as_options(text))


def _not_here(findings: Sequence[Finding]) -> str:
    """Return the checks that could not be made, with the reason of each, in one line."""
    left = [f"{f.check} ({f.value})" for f in findings if f.outcome == "not here"]
    return f"Not applicable here: {', '.join(left)}." if left else ""


def _only_on_a_mac(answers: Sequence[MacAnswer], width: int) -> list[RenderableType]:
    intro = (
        "mlxchat was developed without a Mac, so its authors need these answers. Please send them "
        f"what this prints: {command('doctor', report='-')}"
    )
    parts: list[RenderableType] = [*_prose(intro, width)]
    for answer in answers:
        lines = _prose(in_one_line(answer.answer), width - _INDENT, "dim")
        parts += [*_prose(answer.question, width), Padding(Group(*lines), (0, 0, 0, _INDENT))]
    return parts


# ==== The report =================================================================================


def examination_markdown(examination: Examination) -> str:
    """Return the report to paste into an issue; nothing in it names the user."""
    lines = [
        f"**mlxchat {examination.mlxchat} doctor** on {examination.system}",
        "",
        summary(examination),
        "",
    ]
    lines += ["| check | | found | wanted | s |", "|---|---|---|---|---|"]
    for topic, findings in _topics(examination):
        lines.append(f"| **{topic}** | | | | |")
        for finding in findings:
            cells = (finding.check, finding.outcome, _found(finding), finding.limit)
            row = " | ".join(map(in_a_cell, cells))
            lines.append(f"| {row} | {finding.seconds:.1f} |")
    if wrong := [*examination.of("failed"), *examination.of("warning")]:
        lines += ["", "**To do**", ""]
        for finding in wrong:
            who = f" Affects {', '.join(finding.commands)}." if finding.commands else ""
            lines.append(f"- {finding.check} ({finding.outcome}): {_shown(finding.remedy)}{who}")
    if examination.only_on_a_mac:
        lines += ["", "**Questions that only a Mac can answer**", ""]
        lines += [
            f"- {answer.question} {in_one_line(answer.answer)}"
            for answer in examination.only_on_a_mac
        ]
    return "\n".join(lines)


def _found(finding: Finding) -> str:
    return ". ".join(filter(None, (finding.value, _shown(finding.detail))))
