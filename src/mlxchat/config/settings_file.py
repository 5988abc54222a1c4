"""Files of settings, in TOML: what a command line would say of a run, to keep and to share.

A key is the name of a setting as Python has it, such as ``max_seq_len``; the settings of an adapter
are in a table of their own, ``[lora]``. Values have the types of TOML: nothing is converted. Each
error names the file, the line and the key. Pure: quick to import.
"""

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from mlxchat.config.lora import LoraTraining
from mlxchat.config.validate import spell_fault
from mlxchat.disk import read_regular
from mlxchat.errors import ConfigError, NotFound, reason_of
from mlxchat.json_text import as_type, is_deep

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_SETTINGS = 2**16  # bytes of a file of settings; one with all of them has some thousand
_ADAPTER = "lora"  # the only setting that is a table
_LONGEST = 60  # characters of a value in an error message


@dataclass(frozen=True)
class SettingsFile:
    """The settings in a file; the types and bounds of all are right.

    Whether they go together is seen only when those of the command line are added.
    """

    path: Path
    text: str
    kind: type[BaseModel]
    values: Mapping[str, Any]

    @classmethod
    def read(
        cls, path: Path, kind: type[BaseModel], options: Collection[str] = ()
    ) -> "SettingsFile":
        """Read a file.

        Args:
            path: the file.
            kind: the settings model, whose fields may be given.
            options: names that the command line has in addition, for the error message.

        Raises:
            NotFound: there is no such file.
            ConfigError: it is not TOML; or a key is unknown, or has a value that it cannot have.
        """
        text = _read(path)
        try:
            values = _parsed(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path} is not TOML: {_in_words(error, text)}.",
                'Write one setting per line, such as depth = 4 or budget = "1h".',
            ) from error
        file = cls(
            path, text, kind, {name: _named_none(kind, name, values[name]) for name in values}
        )
        file._check(options)
        return file

    def explained(self, error: ConfigError) -> ConfigError:
        """Return an error with the line of this file that causes it, if one alone does."""
        for name, value in self.values.items():
            try:
                self.kind.model_validate({name: value})
            except ConfigError as alone:
                if alone.problem == error.problem:
                    return ConfigError(f"{self._place(name)}: {error.problem}", error.remedy)
            except ValidationError:
                continue
        return error

    def _check(self, options: Collection[str]) -> None:
        """Raise `ConfigError` for the first key that is unknown or has a wrong value."""
        for name, value in self.values.items():
            if name not in self.kind.model_fields:
                raise ConfigError(
                    f"{self._place(name)}: there is no setting {name!a:.99}.",
                    self._instead(name, options),
                )
            if isinstance(value, dict) and name == _ADAPTER:
                self._check_adapter(value)
            try:
                as_type({name: value}, TypeAdapter(self.kind))
            except ConfigError:  # that it lacks others, or is no size, is seen with all of them
                continue
            except ValidationError as error:
                fault = error.errors()[0]
                place = [str(part) for part in fault["loc"] if isinstance(part, str)]
                self._refuse(place or [name], spell_fault(fault))
            except TypeError:  # a date or a time, which no setting is
                self._refuse([name], "it cannot be a date or a time")

    def _check_adapter(self, table: Mapping[str, object]) -> None:
        known = LoraTraining.model_fields
        for name in table.keys() - known.keys():
            nearest = get_close_matches(name, known, 1)
            raise ConfigError(
                f"{self._place(_ADAPTER, name)}: [{_ADAPTER}] has no setting {name!a:.99}.",
                f"Did you mean {nearest[0]}?" if nearest else f"It has: {', '.join(known)}.",
            )

    def _refuse(self, place: list[str], fault: str) -> None:
        value: Any = self.values
        for number, part in enumerate(place):
            if not isinstance(value, dict) or part not in value:  # within a list, or of a union
                place = place[:number]
                break
            value = value[part]
        field = (self.kind if len(place) == 1 else LoraTraining).model_fields[place[-1]]
        raise ConfigError(
            f"{self._place(*place)}: {'.'.join(place)} = {_shown(value)}: {fault}.",
            f"{place[-1]}: {field.description}",
        )

    def _instead(self, name: str, options: Collection[str]) -> str:
        """Return what to do about an unknown key."""
        known, value = self.kind.model_fields, self.values[name]
        if name in LoraTraining.model_fields and _ADAPTER in known:
            return f"It is an adapter setting: put it below a line [{_ADAPTER}]."
        if name in options:
            return f"It can only be given on the command line: `{name}`."
        if nearest := get_close_matches(name, [_ADAPTER] if isinstance(value, dict) else known, 1):
            return f"Did you mean {nearest[0]}?"
        if isinstance(value, dict):
            return f"Remove the line [{name}] and keep what is below it: settings are not grouped."
        return (
            "Write each key as the command's option without the leading dashes, and with _ for -."
        )

    def _place(self, *path: str) -> str:
        number = line_of(self.text, path)
        return str(self.path) if number is None else f"{self.path}, line {number}"


def line_of(text: str, path: Collection[str]) -> int | None:
    """Return the line on which the value of a key begins in a text in TOML.

    Args:
        text: what `SettingsFile.read` could parse.
        path: the names of the tables around the key, and its own.

    Returns:
        A number from 1; None if the key is written in a way in which it is not found.

    >>> line_of('depth = 4\\n[lora]\\nrank = 2\\n', ["lora", "rank"])
    3
    """
    *_, name = path
    lines = text.splitlines(keepends=True)
    for index, line in enumerate(lines):
        if name not in line or _holds("".join(lines[:index]), path) is not False:
            continue
        ends = range(index + 1, len(lines) + 1)  # of its value, which may take several lines
        if next(
            (held for end in ends if (held := _holds("".join(lines[:end]), path)) is not None), 0
        ):
            return index + 1
    return None


def _holds(text: str, path: Collection[str]) -> bool | None:
    """Return whether a text has a value at a path; None if it ends amid another value."""
    try:
        value: Any = _parsed(text)
    except (ValueError, RecursionError):
        return None
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def _parsed(text: str) -> dict[str, Any]:
    values: dict[str, Any] = tomllib.loads(text)
    if is_deep(values):
        raise ValueError("it is nested too deeply")
    return values


def _in_words(error: Exception, text: str) -> str:
    """Return what is wrong with a text that is not TOML."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    last = len(text.rstrip().splitlines())
    said = str(error).replace("at end of document", f"at line {last}, its last")
    said = said.replace("Cannot overwrite a value", "a key appears twice")
    return said[:1].lower() + said[1:]


def _read(path: Path) -> str:
    try:
        return read_regular(path, MOST_SETTINGS).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise NotFound(
            f"There is no settings file {path}.", "Name an existing TOML file."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"{path} cannot be read: {reason}.",
            "Check its name, its type and its permissions.",
        ) from error


def _named_none(kind: type[BaseModel], name: str, value: object) -> object:
    """Return None for the word that stands for it, as ``auto`` does in `depth`: TOML has none."""
    field = kind.model_fields.get(name)
    extra = field.json_schema_extra if field else None
    return None if isinstance(extra, dict) and extra.get("none") == value else value


def _shown(value: object) -> str:
    """Write a value as in a file, shortened."""
    try:
        text = json.dumps(value)
    except TypeError:
        text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
