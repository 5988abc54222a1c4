"""Removes the user's name, folders and tokens from texts that others will read."""

import os
import re
from contextlib import suppress
from getpass import getuser
from pathlib import Path

from mlxchat.errors import ConfigError
from mlxchat.home import Home, expanded

HOME_VARIABLE = "MLXCHAT_HOME"
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
KEPT_NAMES = {"root", "user", "runner", "admin", "mac"}  # names of users that are not replaced

_HOMES = re.compile(r"/(?:Users|home)/[^/\s]+")
_TOKEN = re.compile(r"\bhf_\w+")


def anonymous(text: str) -> str:
    """Return a text without the user's name, home folder and tokens.

    >>> anonymous("No room in /Users/ada/models")
    'No room in ~/models'
    """
    for secret in filter(None, map(os.environ.get, SECRETS)):
        text = text.replace(secret, "TOKEN")
    if os.environ.get(HOME_VARIABLE):
        text = _without(text, Home.from_environment().root, f"${HOME_VARIABLE}")
    with suppress(ConfigError):  # there is no home folder
        text = _without(text, expanded("~"), "~")
    text = _TOKEN.sub("TOKEN", _HOMES.sub("~", text))
    name = _user()
    if len(name) > 2 and name.lower() not in KEPT_NAMES:
        text = re.sub(rf"\b{re.escape(name)}\b", "USER", text)
    return text


def _without(text: str, folder: Path, name: str) -> str:
    """Replace the path of a folder, which may be followed by the rest of a path."""
    if folder == Path("/"):
        return text
    return re.sub(rf"{re.escape(str(folder))}(?![\w-])", name, text)


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # a user without an entry in the system's list
        return ""
