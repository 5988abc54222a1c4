"""Files of checkpoints and models: checksums, folders on other disks, JSON, and error messages.

Checksums have the form of ``sha256sum``, so that a directory can be checked without mlxchat too:
``sha256sum --check SHA256SUMS``. A run's folder may be a link to another disk; where that disk is
not connected, the messages say so.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from mlxchat.disk import open_regular, read_regular
from mlxchat.errors import CheckpointError, DiskError, MlxchatError, command, reason_of
from mlxchat.json_text import as_type, parse_json, parse_json_as

CONFIG = "config.json"
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
TRAINER = "trainer.json"
TRAINER_FORMAT = 4  # of trainer.json
READABLE_FORMATS = (3, 4)  # in format 3, the plan has older names and fewer fields
CHECKSUMS = "SHA256SUMS"
HISTORY = "history.json"
ORIGIN = "origin.json"  # of an imported model
QUANTIZATION = "quantization"  # in config.json, where mlx-lm has it
PIECE = 2**22  # bytes hashed at a time
LONGEST = 200  # characters of a reason, which may quote the file
MOST_JSON = 2**26  # bytes; a tokenizer of 65,536 tokens has 3 million
MOST_CHECKSUMS = 2**20  # bytes of their list

Record = TypeVar("Record", bound=BaseModel)
Loaded = TypeVar("Loaded")

_LINE = re.compile(r"([0-9a-f]{64})  ([^/]+)")  # of CHECKSUMS
_STEP = re.compile(r"step_\d+")
_EARLIER = (
    "To resume from an earlier checkpoint, delete that directory (for a chat, use `step`). Or "
    "start from scratch with `fresh`."
)
_COPY = "Copy it again from the original."


# Checksums


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    (folder / CHECKSUMS).write_text("".join(lines), "utf-8")


def verify_file(path: Path, report: Callable[[int], None] = lambda _: None) -> None:
    """Compare a file with its checksum, if its folder has checksums.

    Args:
        path: the file.
        report: called with the number of bytes read so far.

    Raises:
        CheckpointError: the file is missing or not what was saved, or the list is damaged.
    """
    if not os.path.lexists(path.parent / CHECKSUMS):
        return
    expected = files_with_checksums(path.parent).get(path.name)
    if expected is None:
        raise damaged(path.parent / CHECKSUMS, f"it does not list {path.name}")
    try:
        found = sha256_of(path, report)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except OSError as error:
        raise _cannot_be_read(path, error) from error
    if found != expected:
        raise damaged(path, f"its sha256 is not the one in {CHECKSUMS}")


def _cannot_be_read(path: Path, error: OSError) -> MlxchatError:
    if isinstance(error, PermissionError):
        return unreadable(path, error)
    return damaged(path, reason_of(error))


def files_with_checksums(folder: Path) -> dict[str, str]:
    """Return the checksums that a folder has, by the names of the files.

    Raises:
        CheckpointError: it has no checksums, or their list is damaged.
    """
    path = folder / CHECKSUMS
    try:
        lines = read_regular(path, MOST_CHECKSUMS).decode("utf-8").split("\n")
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except OSError as error:
        raise _cannot_be_read(path, error) from error
    except UnicodeDecodeError as error:
        raise damaged(path, "it is not text") from error
    sums = {}
    for number, line in enumerate(lines[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise damaged(path, f"line {number}")
        sums[match.group(2)] = match.group(1)
    if not sums or lines[-1]:
        raise damaged(path, "it ends too early")
    return sums


def sha256_of(path: Path, report: Callable[[int], None] = lambda _: None) -> str:
    """Return the checksum of a file; ``report`` is called with the bytes read so far.

    Raises:
        OSError: it cannot be read.
    """
    digest, done = hashlib.sha256(), 0
    with open_regular(path) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            done += len(piece)
            report(done)
    return digest.hexdigest()


# Weight files


def model_files(folder: Path) -> list[Path]:
    """Return the weight files of a model: those in its index, or the only one. Some may be missing.

    Raises:
        CheckpointError: the index is damaged, or names files in other folders.
    """
    index = folder / INDEX
    if not index.exists():
        return [folder / MODEL]
    verify_file(index)
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(map(_is_name, listed.values())):
        raise damaged(index, "no weight_map of files in the same folder")
    return sorted({folder / name for name in listed.values()})


def _is_name(file: object) -> bool:
    return isinstance(file, str) and re.fullmatch(r"(\./)*[\w.-]+\.safetensors", file) is not None


# Folders that may be links to another disk


def entries(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing if there is no folder.

    Raises:
        OSError: it cannot be read, or is on a disk that is not connected.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        if unplugged(folder):
            raise
        return []


def is_folder(path: Path) -> bool:
    """Tell whether a path is a folder, or a broken link, which may have been one."""
    return path.is_dir() or (path.is_symlink() and not path.exists())


def unplugged(path: Path) -> MlxchatError | None:
    """Return the error for a path that is, or is below, a broken link; None if it is not."""
    links = (part for part in (path, *path.parents) if part.is_symlink())
    broken = next((link for link in links if not link.exists()), None)
    if broken is None:
        return None
    return DiskError(
        f"{broken} is a link to {broken.readlink()}, which does not exist.",
        "Connect its disk, or remove the link to continue without it.",
    )


def require_connected(path: Path) -> None:
    """Check that a path is not a broken link, nor below one.

    Raises:
        DiskError: it is.
    """
    if error := unplugged(path):
        raise error


# JSON


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        CheckpointError: it is missing, damaged, very large or no regular file.
    """
    try:
        fields = parse_json(read_regular(path, MOST_JSON))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise damaged(path, error) from error
    if not isinstance(fields, dict):
        raise damaged(path, "not a JSON object")
    return fields


def read_json_as(path: Path, kind: TypeAdapter[Loaded]) -> Loaded:
    """Read a JSON file as an object of a type, quickly: what the type leaves out is not looked at.

    Raises:
        CheckpointError: it is missing, damaged, very large or no regular file.
    """
    try:
        return parse_json_as(read_regular(path, MOST_JSON), kind)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise damaged(path, error) from error


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """Read a JSON file that holds a pydantic model; None if there is no such file.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.exists():
        return None
    verify_file(path)
    try:
        return as_type(read_json(path), TypeAdapter(kind))
    except ValidationError as error:
        raise damaged(path, "it is not in mlxchat's format") from error


def read_checked_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a model's directory.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.exists():
        raise missing_file(path)
    verify_file(path)
    return read_json(path)


# Error messages


def missing_file(path: Path, importing: bool = False) -> MlxchatError:
    """Return the error for a file that is missing in a model's directory.

    Args:
        path: the file.
        importing: whether the directory is being imported, so that this is no remedy.
    """
    folder = path.parent
    problem = f"{folder} is incomplete: {path.name} is missing."
    if away := unplugged(path):
        return away
    return CheckpointError(problem, _COPY) if importing else unusable(folder, problem)


def unreadable(path: Path, error: OSError) -> MlxchatError:
    """Return the error for a folder or file that cannot be read."""
    away = unplugged(path) if isinstance(error, FileNotFoundError) else None
    return away or CheckpointError(
        f"{path} cannot be read: {reason_of(error)}.",
        "Check its type, owner and permissions.",
    )


def damaged(path: Path, reason: str | Exception) -> MlxchatError:
    """Return the error for a file whose contents are not what its writer meant."""
    remedy = _EARLIER if _STEP.fullmatch(path.parent.name) else _COPY
    return CheckpointError(f"{path} is damaged ({in_words(reason)}).", remedy)


def unusable(folder: Path, problem: str) -> MlxchatError:
    """Return the error for files that do not fit together; ``problem`` may quote them."""
    another = f"{_COPY} If it is another program's, import it first: {command('import', folder)}"
    remedy = _EARLIER if _STEP.fullmatch(folder.name) else another
    return CheckpointError(one_line(problem, 5 * LONGEST), remedy)


def refused(path: Path, reason: str) -> MlxchatError:
    """Return the error for a file that asks for more than being read as data."""
    return CheckpointError(
        f"{path} is refused: {one_line(reason)}.",
        "None of its code was run. Do not load it with pickle or torch unless you trust its "
        "author. Save it again with only tensors, numbers, strings, lists and dictionaries.",
    )


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return a text as one line that is safe to show: without escape sequences for a terminal."""
    words = " ".join(text[: 2 * longest].split())[:longest]
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def in_words(reason: str | Exception) -> str:
    """Return what is wrong with a file's contents, on one line that is safe to show."""
    if isinstance(reason, ValidationError):
        fault = reason.errors()[0]
        said = fault["msg"].removeprefix("Value error, ")
        reason = f"{'.'.join(map(str, fault['loc']))}: {said}".removeprefix(": ")
    return one_line(str(reason))
