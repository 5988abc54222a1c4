"""Files in folders are opened only if they are files, and never read beyond a bound."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.strange_files import STRANGE, put_strange

from mlxchat.checkpoint.layout import open_unchecked
from mlxchat.errors import ConfigError
from mlxchat.home import Home
from mlxchat.regular import open_regular, read_regular


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    (tmp_path / "link").symlink_to(path)
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"12345"
    with pytest.raises(OSError, match="More than 4 bytes"):
        read_regular(path, 4)


@pytest.mark.parametrize("kind", STRANGE)
def test_anything_else_is_an_error_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    put_strange(kind, path)
    with pytest.raises(OSError) as raised:
        read_regular(path, 1000)
    assert raised.value.strerror and str(path) in str(raised.value)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


@pytest.mark.parametrize("use", [Home, open_unchecked])
def test_a_path_that_mlx_cannot_open_is_refused(use: Callable[[Path], object]) -> None:
    with pytest.raises(ConfigError, match="is not in UTF-8"):
        use(Path(os.fsdecode(b"/caf\xe9")))
