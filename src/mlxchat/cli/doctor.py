"""The command `doctor`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxchat.cli.options import Json
from mlxchat.disk import storing
from mlxchat.home import Home, expanded
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.ui.console import Screen, say_json, say_whole

if TYPE_CHECKING:
    from mlxchat.doctor.examination import Examination
    from mlxchat.doctor.host import Host

STANDARD_OUTPUT = Path("-")
_ELSEWHERE = "name another file with --report"


def doctor_command(
    report: Annotated[
        Path | None,
        typer.Option(
            parser=expanded,
            metavar="FILE",
            show_default=False,
            help="Write a Markdown report that you can paste into an issue; - prints "
            "it. It contains neither your name nor your folders.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check this machine in under two minutes: its hardware, correctness and speed.

    Each check shows what it measures and what it found and, if something is wrong, what to do and
    which commands are affected. Exits with code 1 if a check failed. Progress goes to standard
    error.
    """
    if json and report == STANDARD_OUTPUT:
        raise typer.BadParameter(f"--json cannot be combined with --report {STANDARD_OUTPUT}.")
    from mlxchat.doctor.examination import SECONDS
    from mlxchat.doctor.host import Host

    file = None if report == STANDARD_OUTPUT else report
    if file:
        with storing(file, _ELSEWHERE):
            file.open("a").close()  # to fail now, and not after a minute of checks
    examination = examine_host(Host(Home.from_environment(), SYSTEM_CLOCK.seconds() + SECONDS))
    from mlxchat.ui.doctor import examination_markdown, show_examination

    if json:
        say_json(examination.model_dump(mode="json"))
    elif report == STANDARD_OUTPUT:
        say_whole(examination_markdown(examination))
    else:
        show_examination(examination)
    if file:
        with storing(file, _ELSEWHERE):
            file.write_text(examination_markdown(examination) + "\n", "utf-8")
    if examination.of("failed"):
        raise typer.Exit(1)


def examine_host(host: "Host") -> "Examination":
    """Make all checks, showing the progress."""
    from mlxchat.doctor.check import Finding
    from mlxchat.doctor.examination import Examination, examine

    begun, findings = SYSTEM_CLOCK.seconds(), []
    with Screen(stream=sys.stderr) as screen:
        for event in examine(host):
            if isinstance(event, Finding):
                findings.append(event)
            else:
                screen.show(event)
    return Examination.on(host, findings, SYSTEM_CLOCK.seconds() - begun)
