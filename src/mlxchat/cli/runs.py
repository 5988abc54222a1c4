"""The commands `runs list`, `show`, `compare`, `rename`, `copy`, `remove` and `export`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxchat.cli.completion import recorded_names
from mlxchat.cli.options import PATH, Json
from mlxchat.cli.questions import Yes, require_agreement
from mlxchat.cli.session import exit_promptly
from mlxchat.disk import disk_use
from mlxchat.errors import command
from mlxchat.home import Home
from mlxchat.report.export import LogFormat
from mlxchat.ui.console import Screen, say, say_json
from mlxchat.ui.text import amount

if TYPE_CHECKING:
    from mlxchat.report.runs import RunSummary

RunName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Name of a run.", show_default=False, autocompletion=recorded_names
    ),
]
RunNames = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME", help="Names of runs.", show_default=False, autocompletion=recorded_names
    ),
]
NewRunName = Annotated[str, typer.Argument(metavar="NEW", help="Its new name.", show_default=False)]

NO_RUNS = "{} has no runs. Train a model: mlxchat quickstart"


def runs_list_command(json: Json = False) -> None:
    """Show all runs, the newest last: stage, model, steps, result, time, size and state.

    The result is bits per byte on validation text, or pass@1 after reinforcement
    learning. The size is that of checkpoints, log and evaluations.
    """
    from mlxchat.report.runs import summaries
    from mlxchat.ui.runs import show_runs

    home = Home.from_environment()
    found = summaries(home)
    if json:
        say_json([_facts(run) for run in found])
    elif found:
        show_runs(found, disk_use(path for run in found for path in run.places.paths).bytes)
    else:
        say(NO_RUNS.format(home.root))


def runs_show_command(
    name: RunName,
    everything: Annotated[
        bool, typer.Option("--all", help="Show settings that have their defaults, too.")
    ] = False,
    json: Json = False,
) -> None:
    """Show a run in detail: how it ended, its settings, data, checkpoints and last samples.

    Settings that mlxchat derived are listed apart from those that you gave. The last line is the
    command that repeats the run: add --fresh to start from scratch, or another --model-tag.
    """
    from mlxchat.report.description import described_run
    from mlxchat.report.scores import results_in_json
    from mlxchat.ui.run_details import show_description

    described = described_run(Home.from_environment(), name)
    if not json:
        show_description(described, everything)
        return
    say_json(
        {
            **_facts(described.summary),
            "settings": {
                row.name: {"value": row.value, "origin": row.origin} for row in described.rows
            },
            "command": described.command,
            "learns_from": list(described.data),
            "imported_from": described.origin,
            "made_from": described.made_from,
            "versions": described.versions,
            "starts": [asdict(start) for start in described.starts],
            "samples": [asdict(sample) for sample in described.samples],
            "checkpoints": [
                {**asdict(saved), "path": str(saved.path)} for saved in described.steps
            ],
            "tasks": results_in_json(described.tasks),
            "evaluations_of_other_models": [str(path) for path in described.of_other_models],
            "later_runs": list(described.continued),
            "unread": described.fault or " ".join(described.unread) or None,
        }
    )


def runs_compare_command(names: RunNames, json: Json = False) -> None:
    """Show runs side by side: results, tokens, time, size, and the settings that differ.

    Says which one is better if they were evaluated on the same text.
    """
    from mlxchat.report.description import described_run
    from mlxchat.report.differences import compared, differing_settings
    from mlxchat.report.scores import results_in_json
    from mlxchat.ui.run_details import show_comparison

    chosen = list(dict.fromkeys(names))
    if len(chosen) < 2:
        raise typer.BadParameter("Name two or more runs.", param_hint="NAME")
    described = [described_run(Home.from_environment(), name) for name in chosen]
    found = compared(described)
    if not json:
        show_comparison(described, found)
        return
    say_json(
        {
            "runs": [
                {**_facts(run.summary), "tasks": results_in_json(run.tasks)} for run in described
            ],
            "differences": {
                setting: {
                    run.summary.name: row and row.value
                    for run, row in zip(described, rows, strict=True)
                }
                for setting, rows in differing_settings(described)
            },
            "better": found.best,
            "reason": found.reason,
        }
    )


def runs_rename_command(name: RunName, new: NewRunName, json: Json = False) -> None:
    """Rename a run: its checkpoints, its log and its evaluations.

    To resume it, give its new name to --resume of train, mid, sft or rl.
    """
    from mlxchat.report.moves import rename_run

    home = Home.from_environment()
    later = rename_run(home, name, new)
    if json:
        facts = {"name": new, "before": name, "folder": str(home.run(new))}
        say_json({**facts, "later_runs": later})
        return
    say(f"{name} is now called {new}.")
    if later:
        say(
            f"Runs that started from it still call it {name} in their settings: {', '.join(later)}."
        )


def runs_copy_command(name: RunName, new: NewRunName, json: Json = False) -> None:
    """Copy a run, to train it further in two ways.

    Where the file system allows it, the copy shares the disk space of the original's checkpoints,
    so it is not a backup. Progress goes to standard error.
    """
    from mlxchat.report.moves import copy_run

    home = Home.from_environment()
    with exit_promptly(), Screen(stream=sys.stderr) as screen:
        copy_run(home, name, new, screen.show)
    if json:
        say_json({"name": new, "of": name, "folder": str(home.run(new))})
    else:
        say(f"{new} is a copy of {name}. See it: {command('runs show', new)}")


def runs_remove_command(
    names: RunNames, yes: Annotated[bool, Yes] = False, json: Json = False
) -> None:
    """Remove runs: their checkpoints, logs and evaluations. Shows their sizes, and asks first.

    Runs that are being trained are refused, and so are those that an adapter needs, unless the
    adapter is removed as well.
    """
    from mlxchat.report.moves import planned_removals, remove_run
    from mlxchat.ui.runs import removal_in_words

    home = Home.from_environment()
    planned = planned_removals(home, names)
    total = disk_use([path for one in planned for path in one.run.places.paths])
    if not json:
        for removal in planned:
            for line in removal_in_words(removal):
                say(line)
    what = "it" if len(planned) == 1 else f"these {amount(len(planned), 'runs')}"
    require_agreement(f"Remove {what}?", yes, json)
    for removal in planned:
        remove_run(home, removal.run.name)
    if json:
        removed = [{"name": one.run.name, **one.use._asdict()} for one in planned]
        say_json({"removed": removed, "bytes": total.bytes, "freed": total.freed})
    else:
        say(f"Removed {amount(len(planned), 'runs')} and freed {amount(total.freed, 'bytes')}.")


def runs_export_command(
    name: RunName,
    to: Annotated[LogFormat, typer.Option(help="What to write.")] = "csv",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file or, for tensorboard, the folder. Default: NAME.csv, or "
            "NAME-tensorboard.",
            show_default=False,
            **PATH,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a run's log as a CSV file, or as event files that TensorBoard reads.

    A CSV file has a line for each step: loss, learning rate, gradient norm, seconds,
    memory, bits per byte, pass@1. TensorBoard needs an extra: pip install
    "mlxchat[tensorboard]". Progress goes to standard error.
    """
    from mlxchat.report.export import export_log

    home = Home.from_environment()
    with exit_promptly(), Screen(stream=sys.stderr) as screen:
        exported = export_log(home, name, to, out, screen.show)
    if json:
        say_json({**exported._asdict(), "path": str(exported.path)})
        return
    say(f"Wrote {amount(exported.rows, 'lines' if to == 'csv' else 'values')} to {exported.path}.")
    if to == "tensorboard":
        say(f"Look at them: tensorboard --logdir {exported.path}")


def _facts(run: "RunSummary") -> dict[str, Any]:
    """Return a run at a glance as plain values for JSON."""
    facts = {name: value for name, value in asdict(run).items() if name != "places"}
    places = run.places
    return {
        "name": run.name,
        **facts,
        "bits_per_byte": run.bits_per_byte,
        "best_step": run.best and run.best[0],
        "best_bits_per_byte": run.best and run.best[1],
        "pass_1": run.pass_1,
        "folder": places.folder and str(places.folder),
        "log": places.log and str(places.log),
        "evaluation_files": [str(path) for path in places.evaluations],
    }
