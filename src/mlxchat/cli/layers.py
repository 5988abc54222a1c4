"""The layers of a run's settings: those of a saved run, below a file's, below the command line's.

A parameter of a command that is `Layers` stands for the options ``--resume`` and ``--config``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import typer
from pydantic import BaseModel

from mlxchat.config.run import RunConfig
from mlxchat.config.settings_file import SettingsFile
from mlxchat.errors import ConfigError
from mlxchat.home import Home
from mlxchat.ui.tables import Row, Section

ADAPTER_TABLE = (
    "lora"  # the setting whose own settings are options too, those of `mlxchat.cli.adapters`
)
COMMAND_LINE = "command line"
LONG_VALUE = 20  # characters; a longer value stands in the last column of a table, which wraps

Explained = TypeVar("Explained")


@dataclass(frozen=True)
class Layers:
    """The settings below those of the command line, and where each is from.

    Attributes:
        values: by name, as in Python; but those of an adapter are beside the others, and ``lora``
            says whether one is trained.
        origins: the file or the run that each is from, or the command line.
        file: the file of settings; None if there is none.
        run: the name of the saved run; None if there is none.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    file: SettingsFile | None = None
    run: str | None = None

    @classmethod
    def below(
        cls, kind: type[RunConfig], options: Mapping[str, Any], given: Mapping[str, Any]
    ) -> "Layers":
        """Read the file and the run that the command line names, if it does.

        Args:
            kind: the settings model of the command.
            options: the value of each of its options.
            given: those that the user gave.

        Raises:
            typer.BadParameter: a run is to be resumed from scratch.
            MlxchatError: the file or the run cannot be used.
        """
        path, name = options.get("settings_file"), options.get("resume")
        if name is not None and options.get("fresh"):
            raise typer.BadParameter(
                "--resume cannot be combined with --fresh, which starts from scratch."
            )
        file, values, origins = None, dict[str, Any](), dict[str, str]()
        if path is not None:
            file = SettingsFile.read(path, kind, options)
            values = flat(file.values)
            origins = dict.fromkeys(values, str(path))
        if name is not None:
            saved = flat(_saved(kind, name, {**values, **given}))
            origins = {**dict.fromkeys(saved, f"as saved in {name}"), **origins}
            values = {**saved, **values}
        return cls(values, {**origins, **dict.fromkeys(given, COMMAND_LINE)}, file, name)

    def explain(self, make: Callable[[], Explained]) -> Explained:
        """Return what a function makes; if a setting of the file makes it fail, say so.

        Raises:
            ConfigError: it fails.
        """
        try:
            return make()
        except ConfigError as error:
            raise (self.file.explained(error) if self.file else error) from error

    def sections(self, config: BaseModel) -> list[Section]:
        """Return a table of a run's settings and where they are from, if a file or a run has some.

        Those that are left to their defaults are not in it.
        """
        if self.file is None and self.run is None:
            return []
        rows = []
        for name, value in config.model_dump(mode="json").items():
            if name != ADAPTER_TABLE or value is None:
                rows += self._row(name, name, value, type(config).model_fields[name].default)
                continue
            for part, of_part in value.items():
                default = type(getattr(config, name)).model_fields[part].default
                rows += self._row(f"{name}.{part}", part, of_part, default)
        return [Section("Settings", rows or [Row("all", "defaults")])]

    def _row(self, label: str, name: str, value: object, default: object) -> list[Row]:
        """Return the row of a setting, unless it is only the default of a saved run."""
        origin = self.origins.get(name)
        if origin is None or (origin.startswith("as saved") and value == default):
            return []
        shown = value if isinstance(value, str) else json.dumps(value)
        if len(shown) > LONG_VALUE:
            return [Row(label, "", f"{shown} ({origin})")]
        return [Row(label, "default" if value is None else shown, origin)]


def _saved(kind: type[RunConfig], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a saved run, which has the name that it is resumed by."""
    from mlxchat.train.saved_settings import settings_to_resume

    named = {"model_tag": given["model_tag"]} if "model_tag" in given else {}
    return settings_to_resume(kind, name, Home.from_environment(), named)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of the adapter beside the others, as options are.

    >>> flat({"step": 2, "lora": {"rank": 4}})
    {'step': 2, 'lora': True, 'rank': 4}
    """
    flattened = dict(settings)
    if ADAPTER_TABLE in settings:
        adapter = settings[ADAPTER_TABLE]
        flattened[ADAPTER_TABLE] = adapter not in (None, False)
        if isinstance(adapter, Mapping):
            flattened |= {name: value for name, value in adapter.items() if value is not None}
    return flattened
