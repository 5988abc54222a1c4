"""Runs side by side: the settings in which they differ, and which of them is better.

Bits per byte tell runs apart only if they were measured on the same text; then vocabularies and
architectures may differ. Pass@1 does only if the questions are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxchat.report.description import RunDescription
from mlxchat.report.provenance import SettingRow, measured_on

NO_DIFFERENCE = 0.001  # of the bits per byte; another order of the data changes as much
NO_DIFFERENCE_RIGHT = 0.03  # of the questions; less may be chance
_ASKED = ("task", "level", "calculator", "eval_questions", "max_tokens")


@dataclass(frozen=True)
class Comparison:
    """The verdict on which of several runs is best.

    Attributes:
        best: its name; None if they cannot be compared, or differ no more than by chance.
        reason: why, or why none is, in a sentence.
    """

    best: str | None
    reason: str


def differing_settings(runs: Sequence[RunDescription]) -> list[tuple[str, list[SettingRow | None]]]:
    """Return the settings whose values differ, each with the values of all runs.

    A run whose stage does not have a setting, or whose settings are not known, has None there,
    which counts as a difference only if another run was given that setting.
    """
    tables = [{row.name: row for row in run.rows} for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    differing = []
    for name in names:
        rows = [table.get(name) for table in tables]
        present = [row for row in rows if row is not None]
        lacking = any(name not in table for table in tables if table)
        given = any(row.origin == "given" for row in present)
        if len({row.value for row in present}) > 1 or (lacking and given):
            differing.append((name, rows))
    return differing


def compared(runs: Sequence[RunDescription]) -> Comparison:
    """Return which of two or more runs is better, by the lowest bits per byte of each."""
    stages = {run.summary.stage for run in runs}
    if len(stages) > 1:
        return Comparison(
            None, "They are runs of different stages, whose results cannot be compared."
        )
    if stages == {"reinforcement learning"}:
        return _by_questions(runs)
    unmeasured = [run.summary.name for run in runs if run.summary.best is None]
    if unmeasured:
        return Comparison(None, f"No bits per byte were measured for {_listed(unmeasured)}.")
    if len({_measured_on(run) for run in runs}) > 1:
        return Comparison(None, "Their bits per byte were measured on different text.")
    ranked = sorted(runs, key=lambda run: run.summary.best[1] if run.summary.best else 0.0)
    (first, lowest), (second, next_lowest) = [
        (run.summary.name, run.summary.best[1] if run.summary.best else 0.0) for run in ranked[:2]
    ]
    share = (next_lowest - lowest) / next_lowest if next_lowest else 0.0
    if share < NO_DIFFERENCE:
        chance = "another order of the data makes as much difference"
        return Comparison(None, f"{first} and {second} differ by {share:.2%}; {chance}.")
    amounts = {run.plan.eval_rows * run.plan.model.sequence_len for run in runs if run.plan}
    unequal = ", measured on unequal amounts of text" if len(amounts) > 1 else ""
    below = f"{next_lowest - lowest:.4f} bits per byte ({share:.1%}) below {second}{unequal}."
    return Comparison(first, below)


def _by_questions(runs: Sequence[RunDescription]) -> Comparison:
    unmeasured = [run.summary.name for run in runs if not run.summary.scores]
    if unmeasured:
        return Comparison(None, f"No held-out questions were asked of {_listed(unmeasured)}.")
    asked = {tuple(_setting(run, name) for name in _ASKED) for run in runs}
    if len(asked) > 1:
        return Comparison(None, "They were asked different questions.")
    best = {run.summary.name: max(share for _, share in run.summary.scores) for run in runs}
    first, second, *_ = sorted(best, key=lambda name: -best[name])
    ahead = best[first] - best[second]
    if ahead < NO_DIFFERENCE_RIGHT:
        return Comparison(None, f"{first} and {second} differ by {ahead:.1%}, which may be chance.")
    return Comparison(first, f"{ahead:.1%} more held-out questions right than {second}.")


def _setting(run: RunDescription, name: str) -> Any:
    return getattr(run.config, name, None)


def _measured_on(run: RunDescription) -> tuple[object, ...]:
    """Return what tells the text of a run's bits per byte from other text; its name if unknown."""
    if run.config is None:
        return (run.summary.name,)
    return measured_on(run.config, [run.validation_file or ""], dict(run.files))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
