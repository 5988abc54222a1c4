"""What is to be said of files that cannot be used, and JSON files, whoever wrote them."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlxchat.ckpt.folders import unreadable
from mlxchat.errors import MlxchatError

LONGEST = 200  # characters of a reason, which may quote the file
MOST_JSON = 2**26  # bytes; a tokenizer of 65,536 tokens has 3 million

_STEP = re.compile(r"step_\d+")
_EARLIER = (
    "Delete that directory to go on from an earlier step (chat: --step), or train with --fresh."
)
_COPY = "Copy it again from where it was made."


def damaged(path: Path, reason: str | Exception) -> MlxchatError:
    """The file is not what its writer meant it to be."""
    remedy = _EARLIER if _STEP.fullmatch(path.parent.name) else _COPY
    return MlxchatError(f"{path} is damaged ({_reason(reason)}).", remedy)


def unusable(folder: Path, problem: str) -> MlxchatError:
    """The files of a model do not go together; ``problem`` may quote them."""
    another = f"{_COPY} Another program's is to be taken over first: mlxchat import {folder}"
    remedy = _EARLIER if _STEP.fullmatch(folder.name) else another
    return MlxchatError(one_line(problem, 5 * LONGEST), remedy)


def refused(path: Path, reason: str) -> MlxchatError:
    """The file asks for more than data."""
    return MlxchatError(
        f"{path} is refused: {one_line(reason)}.",
        "Nothing in it was run. Do not load it with pickle or torch unless you trust its maker; "
        "save it again as tensors, numbers, text, lists and dictionaries alone.",
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        MlxchatError: it is damaged, very large, or not there.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_JSON + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > MOST_JSON:
        raise damaged(path, f"more than {MOST_JSON:,} bytes")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(fields, dict):
        raise damaged(path, "not a JSON object")
    return fields


def one_line(text: str, longest: int = LONGEST) -> str:
    """One line that can be shown: no escape sequence of a file's reaches a terminal."""
    words = " ".join(text[: 2 * longest].split())[:longest]
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def _reason(given: str | Exception) -> str:
    if isinstance(given, ValidationError):
        fault = given.errors()[0]
        given = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ")
    return one_line(str(given))
