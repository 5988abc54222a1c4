"""Writes docs/settings.md: every option of every command, as the settings models declare it.

    python docs/make_settings.py           writes the page
    python docs/make_settings.py --check   exits with 1 if the page is not what it would write

The settings models have the bounds, the defaults and the descriptions, so the page cannot differ
from the program. A test runs the check.
"""

import inspect
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo

from mlxchat.cli.app import COMMANDS, GROUPS
from mlxchat.cli.environment import VARIABLES_BY_TOPIC
from mlxchat.cli.options import Command, options_from_models, settings_models
from mlxchat.config.pretrain import PRESETS
from mlxchat.config.recipes import RECIPES, Recipe
from mlxchat.ui.text import as_options

LONG = 4  # rows; shorter tables are shown each time
PAGE = Path(__file__).parent / "settings.md"
TOP = """# Settings

```
mlxchat train --help
```

prints the options of a command. This page lists those of all commands. It is written by
`docs/make_settings.py`, from the declarations that the program itself uses.

- In a settings file and in Python a setting has the same name with underscores:
  `--max-seq-len 512` is `max_seq_len=512` ([settings-files.md](settings-files.md),
  [api.md](api.md)).
- An empty default means that the value is derived from other settings, or that there is none; the
  description says which.
- Sizes are written 12GB, 800MB or 7.5GiB, durations 90s, 30m, 1h30m or 2d.
- `yes or no` is an option without a value. Many have an opposite: `--streaming`, `--no-streaming`.
- An unknown option, or a value out of bounds, ends the command with exit code 2 before anything is
  computed.
"""


class Row(NamedTuple):
    """An option of a command, as the page shows it."""

    name: str
    value: str
    default: str
    meaning: str


def page() -> str:
    """Return the text of the page."""
    parts = [TOP, *_commands(), _presets(), _recipes(), _environment()]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


# ==== Commands ====


def _commands() -> Iterator[str]:
    """Return a section for each command; a table that was shown before is linked instead."""
    seen: dict[tuple[Row, ...], str] = {}
    for name, command in COMMANDS.items():
        yield _command(name, command, seen)
    for group, (_, commands) in GROUPS.items():
        for name, command in commands.items():
            yield _command(f"{group} {name}", command, seen)


def _command(name: str, command: Command, seen: dict[tuple[Row, ...], str]) -> str:
    models, own = settings_models(command), inspect.signature(command).parameters
    panels: dict[str, list[Row]] = {}
    for parameter in inspect.signature(options_from_models(command)).parameters.values():
        if parameter.name != "context":
            field = None if parameter.name in own else _field(models, parameter.name)
            row, panel = _row(parameter, field)
            panels.setdefault(panel or "", []).append(row)
    lines = [f"## mlxchat {name}", "", _purpose(command)]
    for panel, rows in sorted(panels.items(), key=lambda item: bool(item[0])):
        title = f"{panel}, {name}" if panel else ""
        lines += ["", *([f"### {title}", ""] if title else [])]
        here = title or f"mlxchat {name}"
        shown = seen.setdefault(tuple(rows), here) if len(rows) >= LONG else here
        if shown == here:
            lines += _table(("option", "value", "default", "meaning"), rows)
        else:
            lines.append(f"As [{shown}](#{_anchor(shown)}).")
    return "\n".join(lines)


def _purpose(command: Command) -> str:
    """Return the first paragraph of a command's help."""
    return " ".join(inspect.cleandoc(command.__doc__ or "").split("\n\n")[0].split())


def _anchor(heading: str) -> str:
    return heading.lower().replace(",", "").replace(" ", "-")


def _field(models: Iterable[type[BaseModel]], name: str) -> FieldInfo | None:
    return next((model.model_fields[name] for model in models if name in model.model_fields), None)


def _row(parameter: inspect.Parameter, field: FieldInfo | None) -> tuple[Row, str | None]:
    """Return the row of an option or argument, and the panel of the help that it is in."""
    kind, info = get_args(parameter.annotation)[:2]
    if isinstance(info, ArgumentInfo):
        names = [parameter.name.upper()]
    else:
        given = [info.default, *(info.param_decls or ())]  # typer's first is the default elsewhere
        given = [part for name in given if isinstance(name, str) for part in name.split("/")]
        names = [name for name in given if name[:1] == "-" and not name.startswith("--no-")]
        names = names or ["--" + parameter.name.replace("_", "-")]
    default = parameter.default if field is None else field.get_default()
    extra = field.json_schema_extra if field and isinstance(field.json_schema_extra, dict) else {}
    value = _value(
        kind, info.metavar, _field_bounds(field) if field else (info.min, info.max, "", "")
    )
    if word := extra.get("none"):
        value = f"{value.replace(str(info.metavar), 'integer')}, or {word}"
    shown = Row(
        ", ".join(f"`{name}`" for name in names),
        value,
        "" if default is inspect.Parameter.empty else _default(default),
        as_options(" ".join((info.help or "").split())),
    )
    return shown, info.rich_help_panel


def _default(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,g}" if abs(value) < 10**6 else f"{value:g}"
    return "" if value is None else str(value)


Bounds = tuple[float | None, float | None, str, str]
"""The least and the most value; a word that is not empty leaves the bound itself out."""


def _value(kind: Any, metavar: str | None, bounds: Bounds) -> str:
    """Return what kind of value an option takes."""
    members = [kind]
    if get_origin(kind) in (Union, UnionType):
        members = [member for member in get_args(kind) if member is not type(None)]
    member, repeatable = members[0], get_origin(members[0]) is list
    if repeatable:
        member = get_args(member)[0]
    if member is bool:
        return "yes or no"
    if get_origin(member) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(member))
    words = {int: "integer", float: "number", Path: "PATH"}
    parts = [metavar or words.get(member, "text"), _in_words(bounds)]
    return ", ".join([*filter(None, parts), *(["repeatable"] if repeatable else [])])


def _field_bounds(field: FieldInfo) -> Bounds:
    least = most = None
    above = below = ""
    for bound in field.metadata:
        least = getattr(bound, "ge", getattr(bound, "gt", least))
        most = getattr(bound, "le", getattr(bound, "lt", most))
        above = above or ("more than" if hasattr(bound, "gt") else "")
        below = below or ("less than" if hasattr(bound, "lt") else "")
    return least, most, above, below


def _in_words(bounds: Bounds) -> str:
    least, most, above, below = bounds
    if None not in (least, most) and not (above or below):
        return f"{_number(least)} to {_number(most)}"
    low = "" if least is None else f"{above or 'at least'} {_number(least)}"
    high = "" if most is None else f"{below or 'at most'} {_number(most)}"
    return ", ".join(filter(None, (low, high)))


def _number(value: float | None) -> str:
    """Write a bound: large powers as powers."""
    assert value is not None
    for base in (2, 10) if value >= 10**8 else ():
        exponent = round(math.log(value, base))
        if base**exponent == value:
            return f"{base}^{exponent}"
    return f"{value:,g}" if isinstance(value, float) and value < 10**6 else f"{value:,.0f}"


# ==== Presets and recipes ====


def _presets() -> str:
    rows = [
        (
            f"`--preset {name}`",
            f"`{as_options(' '.join(f'`{key}={value}`' for key, value in given.items()))}`",
        )
        for name, given in PRESETS.items()
    ]
    return "\n".join(["## Presets", "", *_table(("preset", "stands for"), rows)])


def _recipes() -> str:
    """Return the numbers that each recipe trains with."""
    settings = {"vocabulary": "vocab_size"}
    rows = [
        (
            f"`{as_options(f'`{settings.get(name, name)}`')}`",
            *(_default(getattr(recipe, name)) for recipe in RECIPES.values()),
        )
        for name in Recipe._fields
        if name != "transferred"
    ]
    text = (
        "The defaults of `train`. Learning rates are for a model of width 768; those of modern, "
        "and its weight decay, are scaled by batch size and depth. An empty cell means that the "
        "value is derived. The vocabulary and the data ratio of budget are upper bounds: both are "
        "smaller in short runs ([recipes.md](recipes.md#the-budget-recipe))."
    )
    return "\n".join(["## Recipes", "", text, "", *_table(("option", *RECIPES), rows)])


def _environment() -> str:
    """Return the table of environment variables, as `mlxchat help environment` prints it."""
    rows = [
        (topic, ", ".join(f"`{name}`" for name in variable.names), variable.purpose)
        for topic, variables in VARIABLES_BY_TOPIC.items()
        for variable in variables
    ]
    heads = ("for", "variable", "meaning")
    text = "`mlxchat help environment` prints them, too. Options take precedence over them."
    return "\n".join(["## Environment variables", "", text, "", *_table(heads, rows)])


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    heads = list(heads)
    cells = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def main() -> int:
    """Write the page, or with --check compare it."""
    text = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text("utf-8") == text else 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
