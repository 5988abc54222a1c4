"""Files found in folders, which may be anything: only regular ones are opened.

Opening a pipe would wait for its writer, and a device may have no end.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from mlxchat.errors import ConfigError


def require_utf8(path: Path) -> None:
    """Check that MLX can open files at a path: it takes only those whose names are in UTF-8.

    Raises:
        ConfigError: it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{path} is not in UTF-8, and MLX opens no files there.",
            "Rename it, or choose another folder.",
        ) from error


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes, without waiting.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a file.

    Args:
        path: the file.
        most: the bytes beyond which it is not read.

    Raises:
        OSError: as for `open_regular`, or it is larger.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"More than {most:,} bytes", str(path))
    return content
