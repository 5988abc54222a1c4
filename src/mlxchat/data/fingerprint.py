"""What tells a shard from another of its name, and a source that lets no other one pass.

A shard's *frame* is its size in bytes and the sha256 of its parquet footer, which has the place,
the length and the compressed length of every piece of a column. It takes a millisecond whatever the
size, and misses what leaves all of those as they were: one letter or word for another of its length
always where text is not compressed, up to every other time in zstd.

A shard's *fingerprint* is its frame and the sha256 of all of it. It misses nothing, and takes what
reading the file takes (0.06 s for 100 MB in memory on an AMD EPYC).
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlxchat.data.shards import MAGIC, ShardSource
from mlxchat.errors import DataError, MlxchatError

_END = 4 + len(MAGIC)  # bytes: the footer's length, and the magic number after it
_PIECE = 2**20  # bytes read at a time


def frame(path: Path) -> str:
    """A file's size in bytes and the sha256 of its footer, of its last bytes where it has none.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END))
        end = file.read()
        footer = int.from_bytes(end[:4], "little") if end.endswith(MAGIC) else 0
        file.seek(max(0, size - _END - footer))
        return f"{size} {hashlib.sha256(file.read()).hexdigest()}"


def frames(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Those of the files that are in a folder, by name.

    Raises:
        MlxchatError: one cannot be read.
    """
    found = {}
    for name in names:
        if (folder / name).is_file():
            with _reading(folder / name):
                found[name] = frame(folder / name)
    return found


def fingerprint(path: Path) -> str:
    """A file's frame and the sha256 of all of it.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return f"{frame(path)} {digest.hexdigest()}"


def agree(one: str, other: str) -> bool:
    """Whether two are of the same file, as far as the shorter of them tells: each is a frame or a
    fingerprint.
    """
    return one.startswith(other) or other.startswith(one)


def replaced(path: Path) -> MlxchatError:
    """What to tell the user of a file that is another one than the run knows."""
    return DataError(
        f"{path} is not the file of that name that the run began with.",
        "Put that one back (what streaming brought, delete: it is fetched again), name another run "
        "with `model_tag`, or begin anew with `fresh`.",
    )


class KnownShards:
    """A `ShardSource` of files that are known, or become so when they are first acquired.

    From its first reading on, a file cannot change unseen, however little. Before, it can where all
    that is known of it is its frame, and that misses the change; the run then keeps to it.

    Args:
        source: where they come from.
        known: frames or fingerprints by name, of some of them.
    """

    def __init__(self, source: ShardSource, known: Mapping[str, str]) -> None:
        self.training, self.validation = source.training, source.validation
        self._source, self._known = source, dict(known)
        self._compared: dict[str, tuple[int, ...]] = {}

    @property
    def known(self) -> dict[str, str]:
        """Fingerprints of the files that were acquired, and what was known of others."""
        return dict(self._known)

    def acquire(self, name: str) -> Path:
        """As the source does; the file is read once, and again whenever it has been touched.

        Raises:
            MlxchatError: the shard cannot be had, or is another one than was known.
        """
        path = self._source.acquire(name)
        try:
            with _reading(path):
                self._compare(name, path)
        except MlxchatError:
            self._source.release(name)
            raise
        return path

    def release(self, name: str) -> None:
        """Say that the reader has moved on."""
        self._source.release(name)

    def close(self) -> None:
        """Stop whatever brings shards."""
        self._source.close()

    def _compare(self, name: str, path: Path) -> None:
        """Raise unless it is the file that is known; what was not known of it is from then on."""
        stat = path.stat()
        version = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if self._compared.get(name) == version:
            return
        found = fingerprint(path)
        if not agree(self._known.get(name, found), found):
            raise replaced(path)
        self._known[name], self._compared[name] = found, version


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn a file that cannot be read into an error the user sees."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}).",
            "Look at its permissions and its disk; what came from the hub can be moved away and "
            "fetched again: mlxchat data fetch",
        ) from error
