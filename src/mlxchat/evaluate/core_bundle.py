"""The bundle of files with the examples of CORE's tasks: read from disk, downloaded if missing.

It is nanochat's: a folder ``eval_bundle`` with a file of JSON lines for each task; two tasks share
that of hellaswag.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mlxchat.data.download import download
from mlxchat.data.hub import Hub, RemoteFile
from mlxchat.disk import read_regular
from mlxchat.errors import DataError, NotFound, reason_of
from mlxchat.evaluate.core_tasks import BUNDLE_ADDRESS, BUNDLE_HOST, CORE_TASKS
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Noted, Progressed, Report

BUNDLE_SHA256 = "46269c9bfde713cede6f3becaf3b5533731afc68857056febed2043883043198"
BUNDLE_BYTES = 8_319_914
MOST_FILE_BYTES = 2**27  # of a task; the largest, coqa, has 19 million
_DATA = "eval_data"  # the folder of the tasks' files


class Bundle:
    """The files of the tasks, in a zip file or a folder.

    A zip file must be the original; a folder may contain other examples, such as your own.

    Args:
        path: ``eval_bundle.zip``, the folder ``eval_bundle``, or the folder that it is in.

    Attributes:
        path: the argument.

    Raises:
        NotFound: there is no such file or folder, or it has no tasks.
        DataError: it cannot be read, or is not the original.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder: Path | None = None
        if path.is_dir():
            self._folder = _folder_of_data(path)
        elif not path.exists():
            raise NotFound(
                f"There is no bundle of CORE tasks at {path}.",
                f"Name another one, or none: it is then downloaded from {BUNDLE_ADDRESS}.",
            )
        elif (found := _sha256_of(path)) != BUNDLE_SHA256:
            raise DataError(
                f"{path} is not the CORE bundle: its sha256 is {found[:16]}..., not "
                f"{BUNDLE_SHA256[:16]}...",
                f"Download it again from {BUNDLE_ADDRESS}, or name the folder it was unpacked "
                "into.",
            )

    @property
    def checksum(self) -> str:
        """The sha256 of the zip file, or of all tasks' files in the folder."""
        if self._folder is None:
            return BUNDLE_SHA256
        digest = hashlib.sha256()
        for file in sorted({task.file for task in CORE_TASKS.values()}):
            path = self._folder / file
            if path.is_file():
                digest.update(f"{file} {_sha256_of(path)}\n".encode())
        return digest.hexdigest()

    def read(self, labels: Iterable[str]) -> dict[str, bytes]:
        """Return the content of the tasks' files, by label.

        Raises:
            NotFound: one is missing.
            DataError: one cannot be read.
        """
        contents: dict[str, bytes] = {}
        try:
            if self._folder is not None:
                for label in labels:
                    path = self._folder / CORE_TASKS[label].file
                    contents[label] = read_regular(path, MOST_FILE_BYTES)
            else:
                with zipfile.ZipFile(self.path) as archive:
                    for label in labels:
                        name = f"eval_bundle/{_DATA}/{CORE_TASKS[label].file}"
                        contents[label] = archive.read(name)
        except FileNotFoundError as error:
            raise NotFound(
                f"{self.path} has no {CORE_TASKS[label].file}, the examples of {label}.",
                f"Use the complete bundle, {BUNDLE_ADDRESS}, or leave that task out.",
            ) from error
        except OSError as error:
            problem = f"The examples of {label} in {self.path} cannot be read: {reason_of(error)}."
            raise DataError(problem, "Check their type and permissions.") from error
        return contents


def bundle_host() -> Hub:
    """Return the server of `BUNDLE_ADDRESS`, which gets no token of the user's."""
    return replace(Hub.from_environment(BUNDLE_HOST), token=None)


def open_bundle(
    path: Path | None,
    default: Path,
    report: Report,
    open_hub: Callable[[], Hub] = bundle_host,
) -> Bundle:
    """Open a bundle; the default one is fetched if it is missing.

    Args:
        path: the bundle that the user named; None for the default.
        default: where the original is kept.
        report: receives the progress of the download.
        open_hub: connects to the server to download from.

    Raises:
        MlxchatError: as `Bundle`; or it cannot be fetched.
    """
    if path is None and not default.exists():
        with closing(open_hub()) as hub:
            fetch_bundle(default, report, hub)
    return Bundle(path or default)


def fetch_bundle(destination: Path, report: Report, hub: Hub, clock: Clock = SYSTEM_CLOCK) -> None:
    """Download the bundle, whole and verified or not at all.

    Args:
        destination: the path of the zip file.
        report: receives the progress.
        hub: the server to download from.
        clock: stamps the events.

    Raises:
        DataError: it cannot be had.
        DiskError: it cannot be stored.
    """
    remote = RemoteFile(f"{hub.endpoint}/eval_bundle.zip", BUNDLE_BYTES, BUNDLE_SHA256, None)
    hub = replace(hub, note=lambda text: report(Noted(clock(), text)))

    def progress(done: int) -> None:
        report(Progressed(clock(), destination.name, done, BUNDLE_BYTES, "bytes"))

    try:
        download(hub, remote, destination, progress)
    except (DataError, NotFound) as error:
        remedy = (
            f"Check the network, or download {remote.url} by other means and save it "
            f"as {destination}."
        )
        raise DataError(error.problem, remedy) from error


def _folder_of_data(path: Path) -> Path:
    for folder in (path, path / "eval_bundle"):
        if (folder / _DATA).is_dir():
            return folder / _DATA
    raise NotFound(
        f"{path} has no folder {_DATA}, so it is not a bundle of CORE tasks.",
        f"Name the zip file from {BUNDLE_ADDRESS}, or the folder it was unpacked into.",
    )


def _sha256_of(path: Path) -> str:
    try:
        return hashlib.sha256(read_regular(path, MOST_FILE_BYTES)).hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {reason_of(error)}.", "Check its type and permissions."
        ) from error
