"""The command `report`: one HTML file about one or more runs."""

import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxchat.cli.completion import recorded_names
from mlxchat.cli.options import PATH, Json
from mlxchat.cli.session import exit_promptly
from mlxchat.home import Home
from mlxchat.ui.console import Screen, say, say_json, warning

if TYPE_CHECKING:
    from mlxchat.report.write import WrittenReport


def report_command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Runs to report on. With several, all others are compared with the first.",
            show_default=False,
            autocompletion=recorded_names,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write, or a folder for it. Default: reports/NAME.html in "
            "$MLXCHAT_HOME. An earlier report is replaced.",
            show_default=False,
            **PATH,
        ),
    ] = None,
    png: Annotated[
        bool,
        typer.Option(
            "--png",
            help="Also save the main curves as a PNG image next to the report (needs matplotlib).",
        ),
    ] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the report in your browser.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a report on one run, or a comparison of several, as a single HTML file.

    The page works offline and without other files, and shows each run's curves, samples, settings,
    data, scores and origin, and the command that repeats it. You can also report on a run that is
    still training.
    """
    with exit_promptly():
        from mlxchat.report.write import write_report

        with Screen(stream=sys.stderr) as screen:
            written = write_report(Home.from_environment(), names, output, screen.show, png)
    if json:
        say_json(_facts(written))
    else:
        for state in (run for run in written.runs if run.state == "running"):
            say(f"{state.name} is still training. The report shows it at step {state.step:,}.")
        for run in written.runs:
            for fault in run.faults:
                say(f"{run.name}: {fault}")
        say(f"The report: {written.path}")
        if written.picture:
            say(f"The picture: {written.picture}")
    if open_page and not webbrowser.open(written.path.resolve().as_uri()):
        warning("No browser could be opened.")


def _facts(written: "WrittenReport") -> dict[str, Any]:
    from mlxchat.report.curves import facts_in_json

    each = [facts_in_json(run) for run in written.runs]
    return {"report": written.path, "picture": written.picture, "runs": each}
