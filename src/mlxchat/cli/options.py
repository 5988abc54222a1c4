"""Command-line options made from the settings models, and options that several commands share."""

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mlxchat.cli.completion import COMPLETIONS, resumable_names, run_names
from mlxchat.cli.layers import Layers
from mlxchat.config.inference import Dtype
from mlxchat.config.run import RunConfig
from mlxchat.config.validate import spell_fault
from mlxchat.home import expanded
from mlxchat.ui.text import as_options

Command = Callable[..., None]

PATH: dict[str, Any] = {"parser": expanded, "metavar": "PATH"}  # of every option that names one

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for use by programs.")]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Start from scratch; an existing run of the same name is renamed."
    ),
]
Replace = Annotated[bool, typer.Option("--fresh", help="Replace an existing run of the same name.")]
Resume = Annotated[
    str | None,
    typer.Option(
        help="Resume this run with the settings it was started with. You may also give "
        "options that do not affect what is learned, such as --memory-limit.",
        show_default=False,
        metavar="NAME",
        autocompletion=resumable_names,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file of settings, with a line such as max_seq_len = 512 for an "
        "option --max-seq-len 512. Options on the command line take precedence.",
        show_default=False,
        **(PATH | {"metavar": "FILE"}),
    ),
]
LAYERS = {"resume": Resume, "settings_file": ConfigFile}  # the options that `Layers` stands for
Supervise = Annotated[
    bool,
    typer.Option(
        "--supervise", help="Restart from the last checkpoint whenever the process crashes."
    ),
]
StayAwake = Annotated[
    bool,
    typer.Option(
        "--stay-awake/--no-stay-awake",
        help="Keep a Mac awake while it trains. Closing the lid still puts it to "
        "sleep, and its display may turn off. Has no effect on other systems.",
    ),
]
ModelTag = Annotated[
    str | None,
    typer.Option(
        help="Name of the run. Default: the most recently saved one.",
        show_default=False,
        metavar="NAME",
        autocompletion=run_names,
    ),
]
AnyTag = Annotated[
    str | None,
    typer.Option(
        help="Name of a run. Default: all runs.",
        show_default=False,
        metavar="NAME",
        autocompletion=run_names,
    ),
]
StepNumber = Annotated[
    int | None,
    typer.Option(help="Step of the checkpoint. Default: the newest.", show_default=False),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Directory of a model anywhere on disk, instead of a run.", show_default=False, **PATH
    ),
]

DtypeOption = Annotated[
    Dtype,
    typer.Option(
        help="Precision of the computation. auto: float32 on a CPU; bfloat16 on a GPU, "
        "unless its float32 is faster. On M1 and M2, float16 may be faster than either."
    ),
]


def require_one_place(tag: str | None, step: int | None, checkpoint: Path | None) -> None:
    """Check that a model is named either by its run and step, or by its directory.

    Raises:
        typer.BadParameter: both are given.
    """
    if checkpoint and (tag or step is not None):
        raise typer.BadParameter("--checkpoint cannot be combined with --model-tag or --step.")


def model_in_words(folder: Path, checkpoint: Path | None) -> str:
    """Return the name of a model for messages: its run and step, or the directory that was given.

    Args:
        folder: the model's directory.
        checkpoint: what the user gave in place of a name.
    """
    return f"{folder.parent.name}/{folder.name}" if checkpoint is None else str(folder)


class Without(frozenset[str]):
    """In ``Annotated``, beside a settings model: its fields that are made no options.

    A parameter of the command that has the name of such a field is its option.
    """


class Unset(frozenset[str]):
    """In ``Annotated``, beside a settings model: its fields that the command line does not set.

    A parameter of the command that has the name of such a field is another thing.
    """


class First(tuple[str, ...]):
    """In ``Annotated``, beside a settings model: its fields that most users want.

    Their options are listed first in the help, before those of the command itself.
    """

    def __new__(cls, *names: str) -> "First":
        """Make the mark of these fields."""
        return super().__new__(cls, names)


class _Settings(NamedTuple):
    """A parameter that is a settings model, and the marks beside it."""

    model: type[BaseModel]
    without: Without
    unset: Unset
    first: First


def options_from_models(command: Command) -> Command:
    """Replace each parameter that is a pydantic model by one option per field of the model.

    The command is called with models that hold only the options the user gave, so that
    `model_fields_set` tells them from defaults. A value out of bounds is a usage error that names
    the option. A parameter that is `Layers` is replaced by the options that add settings below
    those of the command line.
    """
    declared = inspect.signature(command).parameters
    models = {
        name: settings
        for name, parameter in declared.items()
        if (settings := _settings_of(parameter.annotation))
    }
    layered = next((name for name in declared if _is_layers(declared[name])), None)
    parameters = []
    for name, parameter in declared.items():
        if name in models:
            parameters += _options(models[name])
        elif name == layered:
            parameters += _layer_options(parameter)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    parameters.append(
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    )

    @functools.wraps(command)
    def called(context: typer.Context, **values: Any) -> None:
        given = {name: values[name] for name in values if _is_given(context, name)}
        made: dict[str, Any] = {}
        if layered is not None:
            kind = cast(type[RunConfig], next(iter(models.values())).model)
            made[layered] = layers = Layers.below(kind, values, given)
            given = {**layers.values, **given}
            values |= {name: given[name] for name in values.keys() & layers.values.keys()}
        for name, settings in models.items():
            make = functools.partial(_make, settings, given)
            made[name] = made[layered].explain(make) if layered is not None else make()
        own = {name: values[name] for name in declared.keys() & values.keys()}
        command(**made, **own)

    called.__doc__ = _help_text(command)
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def settings_models(command: Command) -> list[type[BaseModel]]:
    """Return the settings models among the parameters of a command, before they are replaced."""
    parameters = inspect.signature(command).parameters.values()
    return [found.model for each in parameters if (found := _settings_of(each.annotation))]


def _help_text(command: Command) -> str | None:
    """Return the docstring of a command, from its source where `python -OO` has dropped it."""
    if sys.flags.optimize < 2:
        return command.__doc__
    source = ast.parse(textwrap.dedent(inspect.getsource(command))).body[0]
    return ast.get_docstring(source) if isinstance(source, ast.FunctionDef) else None


def _settings_of(annotation: Any) -> _Settings | None:
    """Return a parameter's settings model and its marks; None if it has none."""
    without, unset, first = Without(), Unset(), First()
    if get_origin(annotation) is Annotated:
        annotation, *marks = get_args(annotation)
        without = next((mark for mark in marks if isinstance(mark, Without)), without)
        unset = next((mark for mark in marks if isinstance(mark, Unset)), unset)
        first = next((mark for mark in marks if isinstance(mark, First)), first)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _Settings(annotation, without, unset, first)
    return None


def _is_layers(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    return Layers in (annotation, *get_args(annotation)[:1])


def _layer_options(layers: inspect.Parameter) -> list[inspect.Parameter]:
    """Return the options that `Layers` stands for, but those that a mark beside it leaves out."""
    marks = [mark for mark in get_args(layers.annotation) if isinstance(mark, Without)]
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in LAYERS.items()
        if not any(name in mark for mark in marks)
    ]


def _options(settings: _Settings) -> list[inspect.Parameter]:
    """Return an option per field, in panels titled by the declaring models, own fields first.

    Those that most users want come before all others, in no panel. A field that is declared again,
    with another default, stays in the panel of the first.
    """
    model = settings.model
    options = [_option(name, model.model_fields[name], None) for name in settings.first]
    listed = settings.without | settings.unset | set(settings.first)
    for declaring in model.__mro__:
        if not issubclass(declaring, BaseModel) or declaring is BaseModel:
            continue
        panel = declaring.model_config.get("title")
        above = {name for base in declaring.__mro__[1:] for name in inspect.get_annotations(base)}
        for name in inspect.get_annotations(declaring):
            if name in model.model_fields and name not in listed | above:
                options.append(_option(name, model.model_fields[name], panel))
    return options


def _option(name: str, field: FieldInfo, panel: str | None) -> inspect.Parameter:
    """Return the option of a field.

    Four of the field's `json_schema_extra` matter here: ``metavar`` is the placeholder of its
    value in the help, ``{"none": WORD}`` makes WORD stand for None among integers, with
    ``{"text": True}`` the model itself makes the value of a text, and ``complete`` says what a
    shell completes its value with (`COMPLETIONS`).
    """
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    word = extra.get("none")
    metavar = f"INT|{word}" if word else extra.get("metavar")
    option = typer.Option(
        help=as_options(field.description or ""),
        show_default=field.default is not None,
        rich_help_panel=panel,
        parser=_integer_or(str(word)) if word else None,
        metavar=str(metavar) if metavar else None,
        autocompletion=COMPLETIONS.get(str(extra.get("complete"))),
    )
    annotation = str | None if extra.get("text") else field.annotation
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=Annotated[annotation, option],
    )


def _integer_or(word: str) -> Callable[[str], int | None]:
    def parse(text: str) -> int | None:
        if text == word:
            return None
        if not text.isdecimal():
            raise typer.BadParameter(f"{text!r} is neither a number nor {word}.")
        return int(text)

    return parse


def _is_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def _make(settings: _Settings, given: dict[str, Any]) -> BaseModel:
    fields = settings.model.model_fields.keys() - settings.unset
    try:
        return settings.model(**{name: given[name] for name in given if name in fields})
    except ValidationError as error:
        fault = error.errors()[0]
        name = as_options(f"`{fault['loc'][0]}`") if fault["loc"] else None
        message = f"{fault['input']}: {spell_fault(fault)}"
        raise typer.BadParameter(message, param_hint=name) from error
