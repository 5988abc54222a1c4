"""Settings that a program gives by name; pydantic's errors become ours. Imports no arrays."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlxchat.config.lora import LoraTraining
from mlxchat.config.pretrain import IN_WORDS
from mlxchat.config.run import NAME_IN_WORDS
from mlxchat.errors import ConfigError, command

Validated = TypeVar("Validated", bound=BaseModel)


def validated(kind: type[Validated], given: Mapping[str, Any]) -> Validated:
    """Return settings made of what a program gives by name.

    >>> from mlxchat.config.sft import SftConfig
    >>> validated(SftConfig, {"epoch": 2})
    Traceback (most recent call last):
    mlxchat.errors.ConfigError: There is no setting `epoch`.
    Did you mean `epochs`?

    Raises:
        ConfigError: one is unknown, or its value is not one that it can have.
    """
    for name in given.keys() - kind.model_fields.keys():
        nearest = get_close_matches(name, kind.model_fields, 1)
        raise ConfigError(
            f"There is no setting `{name}`.",
            f"Did you mean `{nearest[0]}`?"
            if nearest
            else f"The settings are: {', '.join(kind.model_fields)}.",
        )
    try:
        return kind(**{name: _as_text(kind, name, value) for name, value in given.items()})
    except ValidationError as error:
        fault = error.errors()[0]
        if not fault["loc"]:
            raise ConfigError(f"{fault['msg']}.") from error
        name = str(fault["loc"][0])
        if isinstance(given.get(name), Mapping) and len(fault["loc"]) > 1:
            raise _refused_within(name, fault) from error
        raise ConfigError(
            f"`{name}={given.get(name)}`: {spell_fault(fault)}.",
            f"`{name}`: {kind.model_fields[name].description}",
        ) from error


def _refused_within(name: str, fault: ErrorDetails) -> ConfigError:
    """Return the error for a key or a value within a setting that is a group of others."""
    known, key = LoraTraining.model_fields, str(fault["loc"][1])
    if key not in known:
        nearest = get_close_matches(key, known, 1)
        return ConfigError(
            f"`{name}` has no setting {key!a:.99}.",
            f"Did you mean {nearest[0]}?" if nearest else f"It has: {', '.join(known)}.",
        )
    return ConfigError(
        f"`{name}`: {key} = {fault['input']!r:.99}: {spell_fault(fault)}.",
        f"{key}: {known[key].description}",
    )


def _as_text(kind: type[BaseModel], name: str, value: object) -> object:
    """Return a path, or each path of a list, as text if that is what the setting holds."""
    annotation = kind.model_fields[name].annotation
    if Path in (annotation, *get_args(annotation)):
        return value
    if isinstance(value, list | tuple):
        return [str(item) if isinstance(item, Path) else item for item in value]
    return str(value) if isinstance(value, Path) else value


def spell_fault(fault: ErrorDetails) -> str:
    """Return what pydantic finds wrong with a value, as the rest of a sentence."""
    if fault["type"] == "string_pattern_mismatch":
        if fault["loc"][:1] == ("dataset",):
            fetch = command("data fetch", from_=fault["input"])
            return f"{NAME_IN_WORDS}; to give your own text such a name: {fetch}"
        return IN_WORDS[fault["ctx"]["pattern"]]
    return fault["msg"][:1].lower() + fault["msg"][1:]
