"""The findings of `mlxchat doctor` as a table, check by check, and as a report in Markdown."""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

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

STYLES: dict[Health, str] = {
    "ok": "green",
    "warning": "bold yellow",
    "failed": "bold red",
    "not here": "dim",
}
NAME_WIDTH = 16
NARROW = 60  # columns of a terminal below which a check's name has a line of its own
PIPED = ABREAST - 1  # columns where nobody's terminal gives them


def show_examination(examination: Examination) -> None:
    """Print what was found."""
    console = console_for(sys.stdout)
    width = console.width if console.is_terminal else PIPED
    console.print(examination_table(examination, width), width=width)


def examination_table(examination: Examination, width: int) -> Group:
    """Return what was found, topic by topic, at most ``width`` characters wide."""
    parts: list[RenderableType] = [
        Text(f"mlxchat {examination.mlxchat} on {examination.system}", style="bold")
    ]
    for topic, findings in _topics(examination):
        parts += [Text(), Text(topic, style="bold cyan")]
        made = [finding for finding in findings if finding.outcome != "not here"]
        if made:
            parts.append(_stacked(made) if width < NARROW else _side_by_side(made, width))
        if left := _not_here(findings):
            parts.append(Text(left, style="dim"))
    if examination.only_on_a_mac:
        parts += [Text(), Text("Questions that only a Mac can answer", style="bold cyan")]
        parts += _only_on_a_mac(examination.only_on_a_mac)
    return Group(*parts, Text(), Text(summary(examination), style="bold"))


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


def _stacked(findings: Sequence[Finding]) -> Group:
    parts: list[RenderableType] = []
    for finding in findings:
        parts.append(Text.assemble(_outcome(finding), "  ", (finding.check, "bold")))
        parts.append(Padding(Group(*_lines(finding)), (0, 0, 0, 2)))
    return Group(*parts)


def _side_by_side(findings: Sequence[Finding], width: int) -> Table:
    """Return a table of outcome, name and finding.

    On wide terminals a column of its own says what is measured; else that is below the finding.
    """
    wide = width >= ABREAST
    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(width=len("warning"))
    drawn.add_column(width=NAME_WIDTH)
    drawn.add_column(overflow="fold", ratio=3)
    if wide:
        drawn.add_column(overflow="fold", ratio=2)
    drawn.expand = True
    for finding in findings:
        value, measures, *rest = _lines(finding)
        columns = [Group(value, *rest), measures] if wide else [Group(value, measures, *rest)]
        drawn.add_row(_outcome(finding), Text(finding.check, "bold"), *columns)
    return drawn


def _outcome(finding: Finding) -> Text:
    return Text(finding.outcome, style=STYLES[finding.outcome])


def _lines(finding: Finding) -> list[Text]:
    """Return what was found and is wanted, what that measures and means, and what to do."""
    lines = [
        Text.assemble(in_one_line(finding.value), (f"  (wanted: {finding.limit})", "dim")),
        Text(finding.measures, style="dim"),
    ]
    if finding.detail:
        lines.append(Text(_shown(finding.detail)))
    if finding.needs_action:
        lines.append(Text(_shown(finding.remedy), style=STYLES[finding.outcome]))
    if finding.commands:
        lines.append(Text(f"Affects: {', '.join(finding.commands)}"))
    return lines


def _shown(text: str) -> str:
    return in_one_line(as_options(text))


def _not_here(findings: Sequence[Finding]) -> str:
    """Return the checks that could not be made, with the reason of each, in one line."""
    left = [f"{f.check} ({f.value})" for f in findings if f.outcome == "not here"]
    return f"Not applicable here: {', '.join(left)}." if left else ""


def _only_on_a_mac(answers: Sequence[MacAnswer]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for answer in answers:
        parts += [
            Text(answer.question),
            Padding(Text(in_one_line(answer.answer), "dim"), (0, 0, 0, 2)),
        ]
    intro = (
        "mlxchat was developed without a Mac, so its authors need these answers. Please send them "
        f"the output of {command('doctor', report='-')}"
    )
    return [Text(intro), *parts]


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
