"""Settings that a program gives by name; pydantic's errors become ours. Imports no arrays."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlxchat.config.pretrain import IN_WORDS
from mlxchat.errors import ConfigError

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
            else f"There are: {', '.join(kind.model_fields)}.",
        )
    try:
        return kind(**given)
    except ValidationError as error:
        fault = error.errors()[0]
        if not fault["loc"]:
            raise ConfigError(f"{fault['msg']}.") from error
        name = str(fault["loc"][0])
        raise ConfigError(
            f"`{name}={given.get(name)}`: {spell_fault(fault)}.",
            f"`{name}`: {kind.model_fields[name].description}",
        ) from error


def spell_fault(fault: ErrorDetails) -> str:
    """Return what pydantic finds wrong with a value, as the rest of a sentence."""
    if fault["type"] == "string_pattern_mismatch":
        return IN_WORDS[fault["ctx"]["pattern"]]
    return fault["msg"][:1].lower() + fault["msg"][1:]
