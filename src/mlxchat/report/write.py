"""Reads runs and writes their report."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mlxchat.disk import open_regular, replacing, storing
from mlxchat.errors import ConfigError, MlxchatError
from mlxchat.home import Home
from mlxchat.report.facts import RunFacts, read_facts
from mlxchat.report.page import GENERATOR, Shown, page
from mlxchat.report.picture import PNG_MARK, draw_picture, require_matplotlib
from mlxchat.report.places import find_run
from mlxchat.report.scores import kept_scores
from mlxchat.telemetry.events import Report

LONGEST_FILE_NAME = 100  # characters of a file's name by default
_ELSEWHERE = "choose another file with `output`"


class WrittenReport(NamedTuple):
    """A report on disk, its picture if one was asked for, and the runs in it."""

    path: Path
    picture: Path | None
    runs: list[RunFacts]


def write_report(
    home: Home,
    names: Sequence[str],
    output: Path | None = None,
    report: Report = lambda _: None,
    png: bool = False,
) -> WrittenReport:
    """Write the report of one or more runs.

    Args:
        home: where the runs are.
        names: the names of the runs; the first one is what the others are compared with.
        output: the file, or a folder for it; None for one in `Home.reports`. An earlier report
            there is replaced.
        report: receives the progress of reading long logs.
        png: whether to draw a picture beside it, too.

    Raises:
        NotFound: there is no such run.
        ConfigError: the file is there, and is no report, or there is no matplotlib for a picture.
        DiskError: it cannot be written.
    """
    if png:
        require_matplotlib()
    names = list(dict.fromkeys(names))
    for name in names:
        find_run(home, name)
    path = report_path(home, names, output)
    picture = path.with_suffix(".png") if png else None
    if picture:
        _require_own(picture, PNG_MARK)
    runs = [read_facts(home, name, report=report) for name in names]
    shown = [_shown(home, facts) for facts in runs]
    text = page(shown, time.time())
    with storing(path, _ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(text, "utf-8")
    if picture:
        draw_picture(runs, picture)
    return WrittenReport(path, picture, [run.facts for run in shown])


def report_path(home: Home, names: Sequence[str], output: Path | None) -> Path:
    """Return where the report of these runs is written.

    Raises:
        ConfigError: there is another file, or it has the name of a picture.
    """
    file = f"{'_and_'.join(names)}.html"
    if len(file) > LONGEST_FILE_NAME:
        file = f"{names[0]}_and_{len(names) - 1}_others.html"
    path = home.reports / file if output is None else output
    path = path / file if path.is_dir() else path
    if path.suffix.lower() == ".png":
        raise ConfigError(
            f"A report is an HTML file, but {path.name} is the name of a picture.",
            "Give it a name that ends in .html. `png` writes a picture next to it.",
        )
    _require_own(path, GENERATOR.encode())
    return path


def _require_own(path: Path, mark: bytes) -> None:
    """Check that a file is missing or empty, or has the mark of those that are written here."""
    if path.exists():
        with storing(path, _ELSEWHERE), open_regular(path) as existing:
            head = existing.read(1000)
        if head and mark not in head:
            raise ConfigError(
                f"{path} is not a report, so it was not replaced.",
                "Give another file with `output`.",
            )


def _shown(home: Home, facts: RunFacts) -> Shown:
    """Return a run with what has been kept of CORE for its newest checkpoint."""
    if facts.folder is None:
        return Shown(facts)
    try:
        return Shown(facts, kept_scores(find_run(home, facts.name), facts.saved[-1]))
    except MlxchatError as error:
        faults = tuple(dict.fromkeys([*facts.faults, error.problem]))
        return Shown(replace(facts, faults=faults))
